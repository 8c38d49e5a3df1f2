"""Names → adapters: added, replaced, taken out, put aside when memory is short. Knows folders; knows no texts
and no batches.

Looking up waits for no model: an adapter is read outside the lock, while others are asked for and listed.
"""

from __future__ import annotations

import logging
import re
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.errors import InputError
from finetune.pool.loading import digest, figures_in, stamp_of
from finetune.pool.plan import Chain, Ready

logger = logging.getLogger(__name__)
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")
BASE = "base"
Name = str | tuple[str, ...] | None


class UnknownAdapter(InputError):
    """No adapter of that name is in the pool."""


@dataclass
class Entry:
    """An adapter that the pool knows; its tensors are there only while they are used now and then."""

    folder: Path
    digest: str
    task: str | None
    labels: list[str] | None
    alone: str | None
    stamp: tuple[int, int]
    figures: dict[str, list[float]]
    ready: Ready | None = None
    used: int = 0
    # What was put aside and still answers texts that wait or are being written.
    alive: Callable[[], Ready | None] = lambda: None
    reading: threading.Lock = field(default_factory=threading.Lock)


class Registry:
    """What a pool knows by name; safe to ask from several threads.

    Args:
        read: folder → the adapter, ready for use.
        limit: bytes of adapters in memory; those not used for longest are put aside beyond it.
    """

    def __init__(self, read: Callable[[Path], Ready], limit: int) -> None:
        self._read, self.limit = read, limit
        self._entries: dict[str, Entry] = {}
        self._lock, self._clock, self._told = threading.Lock(), 0, False

    def add(self, name: str, folder: str | Path, replace: bool) -> None:
        """Take an adapter in.

        Raises:
            InputError: a bad or taken name, or what `read` refuses.
        """
        # A name stands in URLs and file names: ".." could step out of a folder.
        if not NAME.fullmatch(name) or ".." in name or name == BASE:
            raise InputError(
                f"The name {name!r} is no adapter's; wanted up to 64 letters, digits, '-', '_' and '.', and "
                "not "
                f"'{BASE}', which is the base's own"
            )
        # Asked again below: the name may be taken while this thread reads.
        self._check_free(name, replace)
        path = Path(folder)
        # Before reading: a file rewritten meanwhile then shows as changed, not as current.
        stamp = stamp_of(path)
        ready = self._read(path)
        figures = figures_in(ready.adapter.passport)
        entry = Entry(path, digest(path), ready.task, ready.labels, _reason(ready), stamp, figures, ready)
        with self._lock:
            self._check_free(name, replace)
            self._entries[name] = entry
            # The new one stays, whatever else must go, or adding would end with nothing loaded.
            self._put_aside(keep=[entry])
            self._tell()

    def _tell(self) -> None:
        """Say once that memory doesn't hold all adapters: asked for in turn, each is read again each time."""
        aside = sum(entry.ready is None for entry in self._entries.values())
        if aside and not self._told:
            self._told = True
            logger.warning(
                "The memory for adapters (%.0f MB) doesn't hold these %d: those not used for longest are "
                "read again when asked for. Raise --memory_limit_mb",
                self.limit / 2**20, len(self._entries),
            )  # fmt: skip

    def _check_free(self, name: str, replace: bool) -> None:
        if name in self._entries and not replace:
            raise InputError(f"There is an adapter '{name}' already; wanted another name, or replace=True")

    def remove(self, name: str) -> None:
        """Take an adapter out.

        Raises:
            UnknownAdapter: there is none of that name.
        """
        with self._lock:
            self._entry(name)
            del self._entries[name]

    def listed(self) -> dict[str, dict[str, Any]]:
        """Name → folder, kind of task, labels, figures of its training (value, lower and upper bound),
        whether its tensors are in memory, why it is run by itself (None: it mixes), and whether its file has
        changed since it was read (what was read is served)."""
        with self._lock:
            return {
                name: {
                    "folder": str(e.folder),
                    "task": e.task,
                    "labels": e.labels,
                    "figures": e.figures,
                    "in_memory": e.ready is not None,
                    "by_itself": e.alone,
                    "changed": stamp_of(e.folder) != e.stamp,
                }
                for name, e in self._entries.items()
            }

    def chain(self, name: Name) -> Chain:
        """The adapters of one name, of several in sequence (a stack), or of none, ready for use.

        Raises:
            UnknownAdapter: there is none of a name.
            InputError: files that changed since they were added.
        """
        names = () if name is None else (name,) if isinstance(name, str) else name
        with self._lock:
            entries = [self._entry(one) for one in names]
            for entry in entries:
                # A count and not the time, which may stand still between two requests, or be set back.
                self._clock += 1
                entry.used = self._clock
        # Outside the lock: reading takes seconds.
        found = [self._loaded(one, entry) for one, entry in zip(names, entries, strict=True)]
        with self._lock:
            for entry, ready in zip(entries, found, strict=True):
                entry.ready = ready
            # A chain larger than the limit stands whole while it is used.
            self._put_aside(keep=entries)
        return tuple(one for ready in found for one in (*ready.below, ready))

    def _loaded(self, name: str, entry: Entry) -> Ready:
        # One thread reads, and what anybody still holds isn't read at all: a hundred requests that wait would
        # else hold a copy each, far beyond the limit.
        with entry.reading:
            entry.ready = entry.ready or entry.alive() or self._back(name, entry)
            return entry.ready

    def _back(self, name: str, entry: Entry) -> Ready:
        """Read again what was put aside."""
        # Under this name others trust the weights that were checked at its adding.
        if digest(entry.folder) != entry.digest:
            raise InputError(
                f"The files of '{name}' in {entry.folder} have changed; add it again with replace=True"
            )
        return self._read(entry.folder)

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            known = ", ".join(sorted(self._entries)[:20]) or "none"
            raise UnknownAdapter(f"Unknown adapter {name!r}; there are: {known}. Add it first")
        return self._entries[name]

    def _put_aside(self, keep: Sequence[Entry]) -> None:
        loaded = [e for e in self._entries.values() if e.ready is not None]
        total = sum(e.ready.size() for e in loaded if e.ready)
        for entry in sorted(loaded, key=lambda e: e.used):
            if total <= self.limit:
                return
            if entry.ready is not None and entry not in keep:
                total -= entry.ready.size()
                # Rows that are being written hold their own reference, so that they end undisturbed.
                entry.alive, entry.ready = weakref.ref(entry.ready), None


def _reason(ready: Ready) -> str | None:
    return ready.alone.reason if ready.alone else None
