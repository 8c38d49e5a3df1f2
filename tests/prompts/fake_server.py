"""A small OpenAI-compatible server that does what it is told: answers, is slow, refuses, says other
things."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# path, body → status, body: a text is sent as it is, bytes stand for all that goes over the line, headers too
Answer = Callable[[str, dict[str, Any]], tuple[int, Any]]


@dataclass
class Fake:
    """What the server does, and what it was asked."""

    answer: Answer
    asked: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    busy: int = 0
    most: int = 0
    url: str = ""


@contextmanager
def fake_server(answer: Answer, seconds: float = 0.0, drip: float = 0.0) -> Iterator[Fake]:
    """
    Args:
        seconds: before an answer.
        drip: seconds between its bytes.
    """
    fake, lock = Fake(answer), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                fake.asked.append((self.path, body, dict(self.headers)))
                fake.busy += 1
                fake.most = max(fake.most, fake.busy)
            time.sleep(seconds)
            status, said = fake.answer(self.path, body)
            with lock:
                fake.busy -= 1
            if isinstance(said, bytes):
                self.wfile.write(said)
                self.close_connection = True
                return
            data = (said if isinstance(said, str) else json.dumps(said)).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            if status == 429:
                self.send_header("retry-after", "0.01")
            self.end_headers()
            with suppress(OSError):  # who asked may have gone
                for byte in (bytes([one]) for one in data) if drip else [data]:
                    self.wfile.write(byte)
                    time.sleep(drip)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def text(*written: str) -> dict[str, Any]:
    """A completion."""
    return {
        "choices": [{"text": one} for one in written],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2},
    }


def echoed(body: dict[str, Any], value: float = -1.0) -> dict[str, Any]:
    """A prompt said back, a token a character, each with the same log-probability but the first."""
    tokens = list(body["prompt"])
    told = {
        "tokens": tokens,
        "token_logprobs": [None, *[value] * (len(tokens) - 1)],
        "text_offset": list(range(len(tokens))),
    }
    return {"choices": [{"text": body["prompt"], "logprobs": told}], "usage": {"prompt_tokens": len(tokens)}}
