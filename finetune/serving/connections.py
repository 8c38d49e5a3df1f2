"""A server's connections: heads that never end, answers that nobody reads, too many from one address. Knows
uvicorn; knows no routes and no models."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol


class Patient(H11Protocol):
    """uvicorn's HTTP/1.1 with an end to patience; alone it waits for a head, or for a reader, for ever.

    Where an address has too many connections, those that have long said nothing make room: whoever opens
    many and says nothing keeps nobody out, a probe from the same address neither; whoever sends many requests
    at once gets an answer to each.
    """

    seconds = 20.0
    per_address = 64
    # Seconds without a request that are no silence: of a hundred requests sent at once, the last ones' heads
    # are read after all hundred connections are made.
    grace = 1.0
    # Times `per_address`; beyond, nobody has grace, or a flood would take every file handle of the process.
    flood = 8
    open: dict[str, list[Patient]]
    _head: asyncio.TimerHandle | None = None
    _reader: asyncio.TimerHandle | None = None
    _idle_since = 0.0

    def connection_made(self, transport: Any) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        mine = self.open[self.address]
        mine.append(self)
        self._idle_since = self.loop.time()
        self._make_room(mine)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    # The buffer of what is sent is full: the reader has stopped reading.
    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader = self.loop.call_later(self.seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reader is not None:
            self._reader.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # Gone already where it made room for another.
        if self in self.open[self.address]:
            self.open[self.address].remove(self)
        # Or the mapping would grow with every address that ever came.
        if not self.open[self.address]:
            del self.open[self.address]
        for timer in (self._head, self._reader):
            if timer is not None:
                timer.cancel()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._idle_since = self.loop.time()

    def _make_room(self, mine: list[Patient]) -> None:
        """End the oldest of this address's idle connections, until as many are left as it may have."""
        old = self.loop.time() - self.grace
        for one in mine[:-1]:
            if len(mine) <= self.per_address:
                return
            # Between two requests or before the first: nobody waits for an answer on it.
            idle = one.cycle is None or one.cycle.response_complete
            if idle and (one._idle_since < old or len(mine) > self.flood * self.per_address):
                mine.remove(one)  # at once: many may come before its end is heard of
                # A client keeps a connection for its next request: it hears an end, and opens another. But
                # where something is still to be sent, a polite end would wait for a peer that doesn't read.
                if one.transport.get_write_buffer_size():
                    one.transport.abort()
                else:
                    one.transport.close()

    def _watch_head(self) -> None:
        """One timer from the first byte (or the connection) to the head's end; more bytes buy no more
        time."""
        # A head is complete; from here the application's own limits count.
        if self.cycle is not None and not self.cycle.response_complete:
            if self._head is not None:
                self._head.cancel()
            self._head = None
        # Not started anew by more bytes: one byte a second would hold a connection for ever.
        elif self._head is None:
            self._head = self.loop.call_later(self.seconds, self._give_up)

    def _give_up(self) -> None:
        if self.transport.is_closing():
            return
        # Before an answer has begun; in the midst of one, a second head would be read as its text.
        if self.conn.our_state is h11.IDLE:
            headers = [("Content-Type", "text/plain"), ("Connection", "close")]
            message = (
                f"The head of the request took longer than {self.seconds:g} seconds to arrive\n".encode()
            )
            for event in (
                h11.Response(status_code=408, headers=headers),
                h11.Data(data=message),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def configure(app: Any, host: str = "127.0.0.1", port: int = 8000, **options: Any) -> uvicorn.Config:
    """uvicorn's settings for the application.

    Args:
        options: uvicorn's own; `seconds`, the patience with a slow head or reader; `per_address`, connections
            that an address may have open; `drain`, seconds that running requests may go on after a signal to
            stop.
    """
    settings = {
        "seconds": options.pop("seconds", Patient.seconds),
        "per_address": options.pop("per_address", Patient.per_address),
        "open": defaultdict(list),
    }
    # an answer that streams must not keep the server from stopping for ever
    ends = {"timeout_graceful_shutdown": round(options.pop("drain", 5)), "server_header": False}
    # A class made here: uvicorn makes the protocol itself and hands no settings through.
    return uvicorn.Config(
        app, host=host, port=port, http=type("Patient", (Patient,), settings), ws="none", **(ends | options)
    )
