"""What reaches the application at all: size, pace and encoding of bodies, the key; and what stops when the
client hangs up.

Plain ASGI, so that a body is refused while it arrives. Knows no routes but the open ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import time
import uuid
from collections.abc import Callable
from typing import Any

from finetune.serving.access import Key, current_key, key_of
from finetune.serving.prometheus import Figures
from finetune.serving.tracing import RequestSpan

logger = logging.getLogger("finetune.serving.access")  # one line of JSON a request

PROBES = ("/health", "/ready")  # by whatever name an orchestrator calls
OPEN = ("/", "/docs", "/health", "/ready")
# two of them, and this server may read one where something before it read the other
ONCE = (b"host", b"authorization", b"content-type", b"content-length", b"transfer-encoding")
DEPTH = 32
HEAD = 32_768
# nginx's number for a client that did not wait for its answer: nobody is sent it, the figures show it
HUNG_UP = 499


class Refused(Exception):
    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


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
        # What JSON's escapes can smuggle in: half a surrogate pair is read, and can't be written.
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeError as error:
        raise Refused(400, f"The body is no UTF-8: {error}") from error
    except RecursionError as error:
        raise Refused(400, f"The body nests deeper than {DEPTH} levels") from error
    except ValueError as error:
        raise Refused(400, f"The body is no JSON: {error}") from error
    # After reading: the parser's own limit is the interpreter's, and much deeper.
    if _deep(content):
        raise Refused(400, f"The body nests deeper than {DEPTH} levels")


def _deep(content: Any) -> bool:
    # Level by level and no recursion, which a deep nest would break.
    level = [content]
    for _ in range(DEPTH):
        level = [
            part
            for one in level
            if isinstance(one, (dict, list))
            for part in (one.values() if isinstance(one, dict) else one)
        ]
    return any(isinstance(one, (dict, list)) for one in level)


class RequestLimits:
    """An ASGI application around another: reads the whole body first, within its limits.

    Args:
        body: most bytes of a body.
        seconds: longest time a body may take to arrive.
        running: requests at a time; the open ones (probes among them) are answered beyond it.
        keys: what `Authorization: Bearer ...` must hold one of; none lets everyone in.
        hosts: names that this server may be called by; none allows any.
        texts: write bodies into the log.
    """

    def __init__(
        self,
        app: Callable,
        *,
        body: int,
        seconds: float,
        running: int,
        keys: list[Key],
        hosts: list[str],
        figures: Figures,
        texts: bool = False,
    ) -> None:
        self.app, self.body, self.seconds, self.running, self.figures = app, body, seconds, running, figures
        self.keys, self.hosts, self.texts = keys, hosts, texts

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        # Lifespan, which is no request.
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        # Unless an answer begins, the client has hung up.
        started, seen, body = time.monotonic(), HUNG_UP, b""
        name, span = _request_id(scope), RequestSpan(scope)
        self.figures.running += 1

        async def noting(message: dict[str, Any]) -> None:
            nonlocal seen
            # Only the first message of an answer has a status.
            seen = message.get("status", seen)
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"x-request-id", name.encode())]
            await send(message)

        try:
            _check_head(scope["headers"])
            self._check_host(scope)
            self._check_key(scope)
            if self.figures.running > self.running and scope["path"] not in OPEN:
                raise Refused(
                    503, (f"{self.running} requests are running; try again later"), **{"Retry-After": "1"}
                )
            # Whole, before the application runs: a slow body holds no place in it.
            body = await self._read(scope, receive)
            await _while_heard(self.app, scope, body, receive, noting)
        except Refused as refused:
            # Clients that are still sending hear nothing until they have sent.
            await self._drain(receive, refused)
            await _refuse(noting, refused)
        except HungUp:
            pass
        finally:
            self.figures.running -= 1
            # By the route and not by the path, or everyone could make new series in the figures.
            route, passed = scope.get("route"), time.monotonic() - started
            self.figures.note(route.path if route else "other", seen, passed)
            span.end(name, route.path if route else "other", seen)
            key = current_key.get()
            # Cut: a path may be of any length.
            said = {"id": name, "path": scope["path"][:200], "status": seen, "seconds": round(passed, 4)}
            # The key's name, never the key.
            said |= {"key": key.name if key else None, "client": (scope.get("client") or [None])[0]}
            said |= {"body": body.decode("utf-8", "replace")} if self.texts else {}
            logger.info("%s", json.dumps(said, ensure_ascii=False))

    async def _drain(self, receive: Callable, refused: Refused) -> None:
        """Swallow a little more of a body that is too long: whose data is left unread never sees the
        answer."""
        if refused.status != 413:
            return

        async def swallow() -> None:
            size, more = 0, True
            # Sixteen bodies at most: a larger one is not worth the wait.
            while more and size < 16 * self.body:
                message = await receive()
                size += len(message.get("body", b""))
                more = message.get("more_body", False)

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(swallow(), min(2.0, self.seconds))

    def _check_host(self, scope: dict[str, Any]) -> None:
        """A page that has its own name lead here (DNS rebinding) could ask in its reader's stead."""
        # Names go without their port; an IPv6 address has colons inside its brackets.
        said = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        name = said.rpartition(":")[0] if not said.endswith("]") and ":" in said else said
        # Orchestrators call probes by the pod's address.
        if self.hosts and name.strip("[]").lower() not in self.hosts and scope["path"] not in PROBES:
            raise Refused(421, "This server doesn't go by that name; --allowed_hosts lists those it does")

    def _check_key(self, scope: dict[str, Any]) -> None:
        if not self.keys or scope["path"] in OPEN:
            return
        key = key_of(dict(scope["headers"]).get(b"authorization", b""), self.keys)
        if key is None:
            raise Refused(401, "Wrong or missing key; wanted the header 'Authorization: Bearer KEY'")
        wait = key.wait()
        if wait:
            message = (
                f"The key '{key.name}' has used what it may in a minute; try again in {wait:.0f} seconds"
            )
            raise Refused(429, message, **{"Retry-After": str(max(1, round(wait)))})
        # Counted before it is answered, or a burst would pass as one.
        key.requests.use(1)
        current_key.set(key)

    async def _read(self, scope: dict[str, Any], receive: Callable) -> bytes:
        headers = dict(scope["headers"])
        said = headers.get(b"content-length", b"0")
        # Refused by its own word, before a byte is read.
        if said.isdigit() and int(said) > self.body:
            raise Refused(
                413, f"The body has {int(said)} bytes; {self.body} at most. Send fewer texts at a time"
            )
        try:
            # A timer on the whole body: a byte now and then buys no more time.
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
            # While it arrives: chunked bodies announce no size.
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
    # Servers before this one may believe the other (request smuggling).
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

    # The body was read already, and is handed to the application once.
    async def again() -> dict[str, Any]:
        if pending:
            return pending.pop()
        # Starlette asks for more to hear of a hang-up, which comes only when it has happened.
        await gone.wait()
        return {"type": "http.disconnect"}

    async def listen() -> None:
        # Further messages would be of no request; only the end counts.
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    async def noting(message: dict[str, Any]) -> None:
        await send(message)
        # The answer is complete though the application may still clean up.
        if message["type"] == "http.response.body" and not message.get("more_body"):
            complete.set()

    answering, listening = asyncio.create_task(app(scope, again, noting)), asyncio.create_task(listen())
    try:
        # Whichever comes first: the answer, or the client's end.
        await asyncio.wait((answering, listening), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done() and not complete.is_set():
            raise HungUp
        await answering
    finally:
        for task in (answering, listening):
            task.cancel()
        # Waited for: a cancelled task that is dropped would warn, and free nothing in time.
        await asyncio.gather(answering, listening, return_exceptions=True)


async def _refuse(send: Callable, refused: Refused) -> None:
    body = json.dumps(
        {"error": {"message": refused.message, "type": "invalid_request_error", "code": refused.status}}
    ).encode()
    # What is left unread of the body can't be the next request's head.
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    headers += [(name.lower().encode(), value.encode()) for name, value in refused.headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _request_id(scope: dict[str, Any]) -> str:
    """The client's own name for a request, where it brings a sane one; else a fresh one."""
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    # ASCII alone, since it is written into a header and a log.
    return given if re.fullmatch(r"[\w.-]{1,64}", given, re.ASCII) else uuid.uuid4().hex
