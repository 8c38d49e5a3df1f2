"""Texts on their way from the batcher to whoever asked: whole, or piece by piece as server-sent events.
Knows no routes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

from fastapi.responses import StreamingResponse

from finetune.errors import InputError
from finetune.pool.decoding import Row
from finetune.pool.sampling import Noted
from finetune.serving.access import charge
from finetune.serving.batcher import Busy, Order
from finetune.serving.prometheus import Figures

logger = logging.getLogger(__name__)


class WrittenPart:
    """A text on its way, heard from the batcher's thread and read by the request."""

    def __init__(
        self, row: Row, loop: asyncio.AbstractEventLoop, name: str = "base", figures: Figures | None = None
    ) -> None:
        self.row, self.loop, self.name, self.figures = row, loop, name, figures
        self._begun, self._heard = time.monotonic(), False
        # Without a limit: the batcher must not wait for a reader.
        self.pieces = asyncio.Queue[tuple[str, Row | Exception, str | None, int]]()
        self.order = Order(row, self._hear)

    def _hear(self, piece: str, what: Row | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody reads any more
            # Copied now: by the time it is read, the thread has gone on.
            heard = (piece, what, self.row.ended, len(self.row.noted))
            # Queues of asyncio are for one thread; this is how another reaches it.
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, heard)

    async def read(self, seconds: float) -> AsyncIterator[tuple[str, int]]:
        """Pieces as they come, each with how many tokens are noted by then; an order that nobody reads any
        more is given up."""
        # One limit for the whole text, not for each piece.
        until = time.monotonic() + seconds
        try:
            while True:
                piece, what, ended, noted = await asyncio.wait_for(
                    self.pieces.get(), max(0.0, until - time.monotonic())
                )
                if isinstance(what, Exception):
                    raise what
                self._note(ended)
                yield piece, noted
                if ended:
                    return
        finally:
            # Also where the reader left: the batcher drops the row at its next step.
            self.order.abandoned = True

    def _note(self, ended: str | None) -> None:
        if self.figures is None:
            return
        passed = time.monotonic() - self._begun
        if not self._heard:
            self.figures.note_first(self.name, passed)
        self._heard = True
        if ended:
            self.figures.note_text(self.name, passed, len(self.row.ids))
            # At the end and for what was really written.
            charge(len(self.row.ids))

    async def whole(self, seconds: float) -> str:
        return "".join([piece async for piece, _ in self.read(seconds)])


async def all_whole(written: Sequence[WrittenPart], seconds: float) -> list[str]:
    """Every text to its end; where one fails, the others are given up."""
    try:
        return await asyncio.gather(*(one.whole(seconds) for one in written))
    finally:
        for one in written:
            one.order.abandoned = True


class Piece(NamedTuple):
    """What comes next of one of several texts, with what was noted of its tokens; `ended` says that it's the
    last."""

    index: int  # type: ignore[assignment]
    text: str
    ended: str | None
    noted: list[Noted]


async def merged(written: Sequence[WrittenPart], seconds: float) -> AsyncIterator[Piece]:
    """Pieces of several texts as they come."""
    for_all: asyncio.Queue[tuple[int, str, str | None, int] | Exception] = asyncio.Queue()

    async def forward(index: int, one: WrittenPart) -> None:
        try:
            async for piece, noted in one.read(seconds):
                await for_all.put((index, piece, None, noted))
            # Only when all of its pieces are on the queue, so that the end comes last.
            await for_all.put((index, "", one.row.ended, len(one.row.noted)))
        except Exception as error:
            await for_all.put(error)

    tasks = [asyncio.create_task(forward(index, one)) for index, one in enumerate(written)]
    sent = [0] * len(written)
    try:
        left = len(written)
        while left:
            got = await for_all.get()
            if isinstance(got, Exception):
                raise got
            index, text, ended, noted = got
            left -= ended is not None
            # Most pieces are empty while a character is half written.
            if text or ended:
                # Sliced by counts that came with the piece; the row has grown since.
                yield Piece(index, text, ended, written[index].row.noted[sent[index] : noted])
                sent[index] = noted
    finally:
        for task in tasks:
            task.cancel()
        for one in written:
            one.order.abandoned = True


async def numbered(written: Sequence[WrittenPart], seconds: float) -> AsyncIterator[dict[str, Any]]:
    """The same as objects for `/v1/generate`."""
    async for piece in merged(written, seconds):
        yield {"index": piece.index, "text": piece.text, "finish_reason": piece.ended}


def events(
    chunks: AsyncIterator[dict[str, Any]],
    plain: Callable[[str], str],
    last: str | None = None,
    headers: dict[str, str] | None = None,
    named: bool = False,
) -> StreamingResponse:
    """Server-sent events, one JSON object each; an error after the start is an event too.

    Args:
        plain: an error's message → what a client may read of it.
        last: what ends the stream, as it stands.
        named: each event goes by the name that stands as `type` in its object.
    """

    async def lines() -> AsyncIterator[str]:
        # The status is sent by now: what goes wrong can only be an event.
        try:
            async for chunk in chunks:
                if named:
                    yield f"event: {chunk['type']}\n"
                yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
        except TimeoutError:
            yield _failed("The answer took longer than this server waits; ask for fewer tokens", 504)
        except Busy as error:
            yield _failed(str(error), 503)
        except InputError as error:
            yield _failed(plain(str(error)), 400)
        except Exception as error:
            logger.exception("A stream broke")
            yield _failed(f"The server failed: {type(error).__name__}", 500)
        if last:
            yield f"data: {last}\n\n"

    # Proxies that keep an answer would hold the stream back.
    head = {"Cache-Control": "no-store"} | (headers or {})
    return StreamingResponse(lines(), media_type="text/event-stream", headers=head)


def _failed(message: str, code: int) -> str:
    kind = "invalid_request_error" if code < 500 else "server_error"
    return f"data: {json.dumps({'error': {'message': message, 'type': kind, 'code': code}})}\n\n"
