"""The pages in headless Chromium: what a person chooses and asks is answered, and nothing is fetched from
elsewhere."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from browser import browser
from served import filled, make_folders, serving
from test_pool import TEXTS

pytestmark = pytest.mark.browser
DONE = "!document.getElementById('ask').disabled"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folders = make_folders(tmp_path_factory.mktemp("adapters"))
    passport = folders / "films" / "passport.json"
    told = json.loads(passport.read_text()) if passport.is_file() else {}
    told["metrics"] = {"accuracy": 0.875, "intervals": {"accuracy": [0.8, 0.95], "f1": ["<b>", 1]}}
    passport.write_text(json.dumps(told))
    with serving(filled(folders), adapters_dir=str(folders)) as running:
        yield running


@pytest.fixture(scope="module")
def page(served):
    with browser() as opened:
        yield opened


@pytest.fixture(autouse=True)
def fresh(page, served):
    page.open(f"http://127.0.0.1:{served.port}/")
    page.until("document.querySelectorAll('#left .adapter option').length > 1")
    page.until(DONE)  # the example that is asked at once
    assert page.run("return document.querySelector('#right .said').childElementCount")
    page.messages()  # whose 64 tokens have no room in the tiny base
    yield
    assert page.messages() == []


def ask(page, text: str, left: str, right: str) -> None:
    page.type("#text", text)
    page.choose("#left .adapter", left)
    page.choose("#right .adapter", right)
    page.click("#ask")
    page.until(DONE)


def test_two_answers_stream_side_by_side(page, served):
    page.type("#most", "6")
    page.run(
        "window.grown = []; new MutationObserver(() => grown.push(document.querySelector('#left "
        ".said').innerText.length))"
        ".observe(document.querySelector('#left .said'), {subtree: true, childList: true, characterData: "
        "true})"
    )
    ask(page, TEXTS[0], "write0", "")
    wanted = served.pool.generate([TEXTS[0]] * 2, ["write0", None], max_new_tokens=6)
    said = [
        page.run(f"return document.querySelector('#{side} .answer').textContent")
        for side in ("left", "right")
    ]
    assert said == wanted
    sizes = page.run("return grown")
    assert len(set(sizes)) > 3  # it grew piece by piece
    assert "s" in page.text("#left .said .note")


def test_a_prompt_and_a_chat_of_one_s_own(page, served):
    page.type("#most", "5")
    page.run(
        "document.querySelector('#left .prompt').value = 'own…'; "
        "document.querySelector('#left').dispatchEvent(new Event('change'))"
    )
    page.type("#left .template", "the {text} film")
    page.choose("#right .prompt", "as a chat")
    ask(page, "awful", "write1", "write1")
    wanted = served.pool.generate(["the awful film", "awful "], ["write1"] * 2, max_new_tokens=5)
    said = [
        page.run(f"return document.querySelector('#{side} .answer').textContent")
        for side in ("left", "right")
    ]
    assert said == wanted


def test_labels_are_bars_and_words_are_coloured(page, served):
    ask(page, TEXTS[0], "films", "words")
    found = served.pool.classify([TEXTS[0]], ["films"])[0]
    bars = page.run(
        "return [...document.querySelectorAll('#left .bar')].map(row => [row.children[0].textContent, "
        "row.querySelector('i').style.width])"
    )
    wanted = sorted(found["probabilities"].items(), key=lambda entry: -entry[1])
    assert [name for name, _ in bars] == [name for name, _ in wanted]
    assert [float(width.rstrip("%")) for _, width in bars] == pytest.approx(
        [100 * share for _, share in wanted], abs=0.1
    )
    words = page.run(
        "return [...document.querySelectorAll('#left .words span')].map(span => [span.textContent, "
        "span.style.background, span.title])"
    )
    why = served.client.post("/v1/attribute", json={"text": TEXTS[0], "adapter": "films"}).json()
    assert [word for word, _, _ in words] == TEXTS[0].split()
    for share, (_, colour, title) in zip(why["attributions"], words, strict=True):
        assert ("46, 160, 80" if share > 0 else "214, 72, 60") in colour
        assert float(title.split()[0]) == pytest.approx(100 * share, abs=0.02)
    tags = page.run(
        "return [...document.querySelectorAll('#right .words span')].map(span => span.textContent)"
    )
    assert tags == TEXTS[0].split()
    # what it may answer, and what its training found it to be worth
    assert page.text("#left .about").endswith("On rows kept aside: accuracy 0.875 (0.800–0.950).")
    assert page.text("#left .about").startswith(f"Answers: {', '.join(found['probabilities'])}.")
    assert page.run("return document.querySelector('#right .prompt').closest('label').hidden")


def test_a_refusal_is_shown_and_the_page_goes_on(page):
    page.type("#most", "999")
    ask(page, TEXTS[0], "write0", "films")
    assert "the context holds 64" in page.text("#left .error")
    assert page.run("return document.querySelectorAll('#right .bar').length") == 2
    assert any("400" in message for message in page.messages())  # Chromium notes it; `fresh` wants none left


def test_stop_ends_an_answer(page, served):
    page.type("#text", "the film")
    page.type("#most", "60")
    page.run("document.getElementById('ask').click(); document.getElementById('stop').click()")
    page.until(DONE)
    assert page.text("#left .said").strip() == "Stopped." and page.run(
        "return document.getElementById('stop').disabled"
    )
    assert served.until(lambda: not served.served.batcher._written and not served.served.batcher.waiting)


def test_markup_in_an_answer_stays_text(page):
    ask(page, "<img src=x onerror=alert(1)> <b>the</b> film", "films", "words")
    assert page.run("return document.querySelectorAll('.said img, .said b').length") == 0


def test_nothing_is_fetched_from_elsewhere(page, served):
    ask(page, TEXTS[0], "films", "films")
    addresses = page.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert addresses and all(address.startswith(f"http://127.0.0.1:{served.port}/") for address in addresses)


def test_the_routes_are_told(page, served):
    page.open(f"http://127.0.0.1:{served.port}/docs")
    page.until("document.querySelectorAll('details').length > 8")
    page.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert "max_new_tokens" in page.text("main") and "/v1/chat/completions" in page.text("main")


@pytest.mark.parametrize("size", [(1100, 900), (420, 900)])
def test_it_fits_the_window(page, size, tmp_path):
    ask(page, "a very very long" + "g" * 200 + " film", "films", "write0")
    page.picture(tmp_path / "page.png", *size)
    assert page.run("return document.documentElement.scrollWidth <= window.innerWidth")
    page.messages()


def test_what_was_asked_can_be_asked_by_curl(page, served):
    page.type("#most", "6")
    ask(page, "the film's great", "write0", "")
    command = page.run("return document.querySelector('#left details pre').textContent")
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    if shutil.which("curl"):
        assert json.loads(done.stdout)["texts"] == served.pool.generate(
            ["the film's great"], ["write0"], max_new_tokens=6
        )
    code = page.run("return document.querySelectorAll('#left details pre')[1].textContent")
    assert json.loads(code.split("json=")[1].rpartition(").json")[0])["texts"] == ["the film's great"]


def test_it_fits_a_screen_and_a_telephone_by_day_and_night(page, served):
    page.type("#most", "6")
    for width, dark in ((390, False), (390, True), (1366, True), (1366, False)):
        page.look(width, dark)
        ask(page, TEXTS[0], "write0", "")
        wide = page.run("return document.documentElement.scrollWidth")
        assert wide <= width, f"{wide} px in a window of {width}"
        if kept := os.environ.get("PICTURES"):
            page.whole_picture(Path(kept) / f"server-{width}{'-dark' if dark else ''}.png")
