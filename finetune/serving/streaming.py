"""Texts on their way from the batcher to whoever asked: whole, or piece by piece as server-sent events.
Knows no routes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi.responses import StreamingResponse

from finetune.errors import InputError
from finetune.pool.decoding import Row
from finetune.serving.batcher import Busy, Order

logger = logging.getLogger(__name__)


class Written:
    """A text on its way, heard from the batcher's thread and read by the request."""

    def __init__(self, row: Row, loop: asyncio.AbstractEventLoop) -> None:
        self.row, self.pieces, self.loop = row, asyncio.Queue[tuple[str, Row | Exception, str | None]](), loop
        self.order = Order(row, self._hear)

    def _hear(self, piece: str, what: Row | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody reads any more
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, (piece, what, self.row.ended))

    async def read(self, seconds: float) -> AsyncIterator[str]:
        """Pieces as they come; an order that nobody reads any more is given up."""
        until = time.monotonic() + seconds
        try:
            while True:
                piece, what, ended = await asyncio.wait_for(
                    self.pieces.get(), max(0.0, until - time.monotonic())
                )
                if isinstance(what, Exception):
                    raise what
                yield piece
                if ended:
                    return
        finally:
            self.order.abandoned = True

    async def whole(self, seconds: float) -> str:
        return "".join([piece async for piece in self.read(seconds)])


async def all_whole(written: Sequence[Written], seconds: float) -> list[str]:
    """Every text to its end; where one fails, the others are given up."""
    try:
        return await asyncio.gather(*(one.whole(seconds) for one in written))
    finally:
        for one in written:
            one.order.abandoned = True


async def merged(written: Sequence[Written], seconds: float) -> AsyncIterator[tuple[int, str, str | None]]:
    """(which text, piece, how it ended) of several texts as they come."""
    for_all: asyncio.Queue[tuple[int, str, str | None] | Exception] = asyncio.Queue()

    async def forward(index: int, one: Written) -> None:
        try:
            async for piece in one.read(seconds):
                await for_all.put((index, piece, None))
            await for_all.put((index, "", one.row.ended))
        except Exception as error:
            await for_all.put(error)

    tasks = [asyncio.create_task(forward(index, one)) for index, one in enumerate(written)]
    try:
        left = len(written)
        while left:
            got = await for_all.get()
            if isinstance(got, Exception):
                raise got
            left -= got[2] is not None
            if got[1] or got[2]:
                yield got
    finally:
        for task in tasks:
            task.cancel()
        for one in written:
            one.order.abandoned = True


async def numbered(written: Sequence[Written], seconds: float) -> AsyncIterator[dict[str, Any]]:
    """The same as objects for `/v1/generate`."""
    async for index, piece, ended in merged(written, seconds):
        yield {"index": index, "text": piece, "finish_reason": ended}


def events(
    chunks: AsyncIterator[dict[str, Any]], plain: Callable[[str], str], last: str | None = None
) -> StreamingResponse:
    """Server-sent events, one JSON object each; an error after the start is an event too.

    Args:
        plain: an error's message → what a client may read of it.
        last: what ends the stream, as it stands.
    """

    async def lines() -> AsyncIterator[str]:
        try:
            async for chunk in chunks:
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

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def _failed(message: str, code: int) -> str:
    kind = "invalid_request_error" if code < 500 else "server_error"
    return f"data: {json.dumps({'error': {'message': message, 'type': kind, 'code': code}})}\n\n"
