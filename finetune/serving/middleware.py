"""What reaches the application at all: size, pace and encoding of bodies, the key; and what stops when the
client hangs up.

Plain ASGI, so that a body is refused while it arrives. Knows no routes but the open ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

from finetune.serving.prometheus import Figures

OPEN = ("/", "/docs", "/health")
# two of them, and this server may read one where something before it read the other
ONCE = (b"host", b"authorization", b"content-type", b"content-length", b"transfer-encoding")
DEPTH = 32
HEAD = 32_768
# nginx's number for a client that did not wait for its answer: nobody is sent it, the figures show it
HUNG_UP = 499


class Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class HungUp(Exception):
    """Nobody waits for the answer any more."""


def strict_json(body: bytes) -> None:
    """Refuse what isn't plain JSON in UTF-8: NaN, infinities, half characters, nests too deep.

    Raises:
        Refused: with what is wrong.
    """

    def no_number(name: str) -> None:
        raise Refused(400, f"The body holds {name}, which is no number in JSON")

    try:
        content = json.loads(body.decode("utf-8"), parse_constant=no_number)
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeError as error:
        raise Refused(400, f"The body is no UTF-8: {error}") from error
    except RecursionError as error:
        raise Refused(400, f"The body nests deeper than {DEPTH} levels") from error
    except ValueError as error:
        raise Refused(400, f"The body is no JSON: {error}") from error
    if _deep(content):
        raise Refused(400, f"The body nests deeper than {DEPTH} levels")


def _deep(content: Any) -> bool:
    level = [content]
    for _ in range(DEPTH):
        level = [
            part
            for one in level
            if isinstance(one, (dict, list))
            for part in (one.values() if isinstance(one, dict) else one)
        ]
    return any(isinstance(one, (dict, list)) for one in level)


class Limits:
    """An ASGI application around another: reads the whole body first, within its limits.

    Args:
        body: most bytes of a body.
        seconds: longest time a body may take to arrive.
        key: what `Authorization: Bearer ...` must hold; None lets everyone in.
    """

    def __init__(
        self, app: Callable, *, body: int, seconds: float, key: str | None, figures: Figures
    ) -> None:
        self.app, self.body, self.seconds, self.key, self.figures = app, body, seconds, key, figures

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, seen = time.monotonic(), HUNG_UP
        self.figures.running += 1

        async def noting(message: dict[str, Any]) -> None:
            nonlocal seen
            seen = message.get("status", seen)
            await send(message)

        try:
            _check_head(scope["headers"])
            self._check_key(scope)
            body = await self._read(scope, receive)
            await _while_heard(self.app, scope, body, receive, noting)
        except Refused as refused:
            await self._drain(receive, refused)
            await _refuse(noting, refused)
        except HungUp:
            pass
        finally:
            self.figures.running -= 1
            route = scope.get("route")
            self.figures.note(route.path if route else "other", seen, time.monotonic() - started)

    async def _drain(self, receive: Callable, refused: Refused) -> None:
        """Swallow a little more of a body that is too long: whose data is left unread never sees the
        answer."""
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
            raise Refused(
                413, f"The body has {int(said)} bytes; {self.body} at most. Send fewer texts at a time"
            )
        try:
            body = await asyncio.wait_for(self._collect(receive), self.seconds)
        except TimeoutError as error:
            raise Refused(408, f"The body took longer than {self.seconds:g} seconds to arrive") from error
        if body:
            strict_json(body)
            # also keeps other sites' pages out: without asking first, a browser sends them no other type
            # than forms' and text
            if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
                raise Refused(
                    415,
                    "The body must be JSON and say so; wanted the header 'Content-Type: application/json'",
                )
        return body

    async def _collect(self, receive: Callable) -> bytes:
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise HungUp
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.body:
                raise Refused(413, f"The body has more than {self.body} bytes. Send fewer texts at a time")
            if not message.get("more_body"):
                return b"".join(parts)


def _check_head(headers: list[tuple[bytes, bytes]]) -> None:
    names, size = [name for name, _ in headers], sum(len(name) + len(value) for name, value in headers)
    if size > HEAD:
        raise Refused(431, f"The head has {size} bytes; {HEAD} at most")
    twice = next((name for name in ONCE if names.count(name) > 1), None)
    if twice is not None:
        raise Refused(400, f"The header '{twice.decode()}' stands twice; wanted it once")
    if {b"content-length", b"transfer-encoding"} <= set(names):
        raise Refused(400, "The head names a Content-Length and a Transfer-Encoding; wanted one of them")


async def _while_heard(
    app: Callable, scope: dict[str, Any], body: bytes, receive: Callable, send: Callable
) -> None:
    """Run the application on the body until it has answered; whoever hangs up frees what works for him.

    Raises:
        HungUp: the client left before the answer's end.
    """
    pending, gone, complete = (
        [{"type": "http.request", "body": body, "more_body": False}],
        asyncio.Event(),
        asyncio.Event(),
    )

    async def again() -> dict[str, Any]:
        if pending:
            return pending.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def listen() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    async def noting(message: dict[str, Any]) -> None:
        await send(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            complete.set()

    answering, listening = asyncio.create_task(app(scope, again, noting)), asyncio.create_task(listen())
    try:
        await asyncio.wait((answering, listening), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done() and not complete.is_set():
            raise HungUp
        await answering
    finally:
        for task in (answering, listening):
            task.cancel()
        await asyncio.gather(answering, listening, return_exceptions=True)


async def _refuse(send: Callable, refused: Refused) -> None:
    body = json.dumps(
        {"error": {"message": refused.message, "type": "invalid_request_error", "code": refused.status}}
    ).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
