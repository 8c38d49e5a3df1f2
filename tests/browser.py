"""A headless Chromium for the tests of the page, asked by WebDriver's own HTTP; no further package is
needed.
"""

import base64
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

httpx = pytest.importorskip("httpx", reason="the browser is asked by httpx")

ELEMENT = (
    "element-6066-11e4-a52e-4f735466cecf"  # the key under which WebDriver's standard hands out an element
)


class Browser:
    """One window of one session."""

    def __init__(self, client: httpx.Client, session: str) -> None:
        self.client, self.path = client, f"/session/{session}"

    def _post(self, path: str, **body: Any) -> Any:
        answer = self.client.post(self.path + path, json=body).json()["value"]
        assert not (isinstance(answer, dict) and "error" in answer), answer
        return answer

    def open(self, address: str) -> None:
        self._post("/url", url=address)

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function body in JavaScript gives back."""
        return self._post("/execute/sync", script=script, args=list(arguments))

    def click(self, selector: str) -> None:
        self._post(f"/element/{self._find(selector)}/click")

    def type(self, selector: str, text: str) -> None:
        element = self._find(selector)
        self._post(f"/element/{element}/clear")
        self._post(f"/element/{element}/value", text=text)

    def choose(self, selector: str, value: str) -> None:
        """Pick an entry of a list as a person does: the page hears of it."""
        self.click(f"{selector} option[value='{value}']")

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0]).innerText", selector)

    def until(self, script: str, seconds: float = 60.0) -> Any:
        """Wait for an expression in JavaScript to become true."""
        end = time.monotonic() + seconds
        while not (found := self.run(f"return {script}")):
            assert time.monotonic() < end, f"{script} did not become true"
            time.sleep(0.05)
        return found

    def messages(self) -> list[str]:
        """What the console was told since the last time: errors of scripts, refused requests."""
        return [entry["message"] for entry in self._post("/se/log", type="browser")]

    def picture(self, file: Path, width: int = 1100, height: int = 900) -> None:
        self._post("/window/rect", width=width, height=height)
        file.write_bytes(base64.b64decode(self.client.get(self.path + "/screenshot").json()["value"]))

    def look(self, width: int, dark: bool = False, height: int = 900) -> None:
        """As through a window of so many pixels; narrower than Chromium's own least, and by day or night."""
        self._devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._devtools("Emulation.setEmulatedMedia", features=[scheme])

    def whole_picture(self, file: Path, below: bool = True) -> None:
        """The page from top to bottom; what lies below the window if that is wanted."""
        shot = self._devtools("Page.captureScreenshot", captureBeyondViewport=below)
        file.write_bytes(base64.b64decode(shot["data"]))

    def _devtools(self, command: str, **values: Any) -> Any:
        return self._post("/goog/cdp/execute", cmd=command, params=values)

    def _find(self, selector: str) -> str:
        return self._post("/element", using="css selector", value=selector)[ELEMENT]


@contextmanager
def browser() -> Iterator[Browser]:
    """A fresh Chromium; the test is skipped where there is none."""
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or chromium is None:
        pytest.skip("chromium and chromedriver are not installed: make test-browser sets them up")
    process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        port = (
            next(line for line in process.stdout if "successfully on port" in line)
            .rstrip(".\n")
            .rpartition(" ")[2]
        )
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False) as client:
            flags = [
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--window-size=1100,900",
            ]
            wanted = {
                "goog:chromeOptions": {"binary": chromium, "args": flags},
                "goog:loggingPrefs": {"browser": "ALL"},
            }
            started = client.post("/session", json={"capabilities": {"alwaysMatch": wanted}}).json()["value"]
            assert "sessionId" in started, started
            try:
                yield Browser(client, started["sessionId"])
            finally:
                client.delete(f"/session/{started['sessionId']}")
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()
