"""What reaches the application at all: size and pace of bodies, their encoding, the key, figures of every request.

Plain ASGI, so that a body is refused while it arrives. Knows no routes but the open ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

OPEN = ("/", "/health")
BUCKETS = (0.01, 0.05, 0.25, 1.0, 5.0, 30.0)


@dataclass
class Figures:
    """Counts for `/metrics`."""

    requests: Counter = field(default_factory=Counter)
    seconds: Counter = field(default_factory=Counter)
    running: int = 0

    def note(self, path: str, status: int, seconds: float) -> None:
        self.requests[path, status] += 1
        for bucket in (*BUCKETS, float("inf")):
            if seconds <= bucket:
                self.seconds["+Inf" if bucket == float("inf") else f"{bucket:g}"] += 1
        self.seconds["sum"] += seconds  # type: ignore[assignment]

    def text(self, gauges: dict[str, float]) -> str:
        """All figures in Prometheus' text format 0.0.4."""
        lines = ["# TYPE finetune_requests_total counter"]
        lines += [f'finetune_requests_total{{path="{p}",status="{s}"}} {n}' for (p, s), n in sorted(self.requests.items())]
        lines += ["# TYPE finetune_request_seconds histogram"]
        for bucket in [*(f"{b:g}" for b in BUCKETS), "+Inf"]:
            lines.append(f'finetune_request_seconds_bucket{{le="{bucket}"}} {self.seconds[bucket]}')
        lines += [f"finetune_request_seconds_sum {float(self.seconds['sum']):.6f}"]
        lines += [f"finetune_request_seconds_count {self.seconds['+Inf']}"]
        for name, value in (gauges | {"requests_running": self.running}).items():
            lines += [f"# TYPE finetune_{name} {'counter' if name.endswith('_total') else 'gauge'}", f"finetune_{name} {value:g}"]
        return "\n".join(lines) + "\n"


class Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def strict_json(body: bytes) -> None:
    """Refuse what isn't plain JSON in UTF-8: NaN, infinities, half characters, nests too deep.

    Raises:
        Refused: with what is wrong.
    """

    def no_number(name: str) -> None:
        raise Refused(400, f"The body holds {name}, which is no number in JSON")

    try:
        content = json.loads(body.decode("utf-8"), parse_constant=no_number)
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    except UnicodeError as error:
        raise Refused(400, f"The body is no UTF-8: {error}") from error
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The body is no JSON: {str(error) or 'too deeply nested'}") from error


class Limits:
    """An ASGI application around another: reads the whole body first, within its limits.

    Args:
        body: most bytes of a body.
        seconds: longest time a body may take to arrive.
        key: what `Authorization: Bearer ...` must hold; None lets everyone in.
    """

    def __init__(self, app: Callable, *, body: int, seconds: float, key: str | None, figures: Figures) -> None:
        self.app, self.body, self.seconds, self.key, self.figures = app, body, seconds, key, figures

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, seen = time.monotonic(), 500
        self.figures.running += 1

        async def noting(message: dict[str, Any]) -> None:
            nonlocal seen
            seen = message.get("status", seen)
            await send(message)

        try:
            self._check_key(scope)
            body = await self._read(scope, receive)
            await self.app(scope, _replayed(body, receive), noting)
        except Refused as refused:
            await self._drain(receive, refused)
            await _refuse(noting, refused)
        finally:
            self.figures.running -= 1
            route = scope.get("route")
            self.figures.note(route.path if route else "other", seen, time.monotonic() - started)

    async def _drain(self, receive: Callable, refused: Refused) -> None:
        """Swallow a little more of a body that is too long: whose data is left unread never sees the answer."""
        if refused.status != 413:
            return

        async def swallow() -> None:
            size, more = 0, True
            while more and size < 16 * self.body:
                message = await receive()
                size += len(message.get("body", b""))
                more = message.get("more_body", False)

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(swallow(), min(2.0, self.seconds))

    def _check_key(self, scope: dict[str, Any]) -> None:
        if self.key is None or scope["path"] in OPEN:
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(given, b"Bearer " + self.key.encode()):
            raise Refused(401, "Wrong or missing key; wanted the header 'Authorization: Bearer KEY'")

    async def _read(self, scope: dict[str, Any], receive: Callable) -> bytes:
        headers = dict(scope["headers"])
        said = headers.get(b"content-length", b"0")
        if said.isdigit() and int(said) > self.body:
            raise Refused(413, f"The body has {int(said)} bytes; {self.body} at most")
        try:
            body = await asyncio.wait_for(self._collect(receive), self.seconds)
        except TimeoutError as error:
            raise Refused(408, f"The body took longer than {self.seconds:g} seconds") from error
        if body:
            strict_json(body)
        return body

    async def _collect(self, receive: Callable) -> bytes:
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "The connection ended before the body")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.body:
                raise Refused(413, f"The body has more than {self.body} bytes")
            if not message.get("more_body"):
                return b"".join(parts)


def _replayed(body: bytes, receive: Callable) -> Callable:
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> dict[str, Any]:
        return pending.pop() if pending else await receive()

    return again


async def _refuse(send: Callable, refused: Refused) -> None:
    body = json.dumps({"error": {"message": refused.message, "type": "invalid_request_error", "code": refused.status}}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
