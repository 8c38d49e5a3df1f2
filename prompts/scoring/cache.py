"""Answers that were asked before, on disk, and work shared out to processes. Knows keys and blocks; knows no
templates.

A key is the hash of the rendered text, the answer, the model's weights and the way of scoring: one changed
character is another key. Blocks of requests are fixed before they are handed out, so that every number of
processes computes the same passes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from finetune.errors import InputError
from prompts.scoring.generate import generate
from prompts.scoring.score import Request, Scorer
from prompts.templates.entries import Ending

logger = logging.getLogger(__name__)
BLOCK = 64  # requests; also what an interruption loses at most, for each process


class Memory:
    """Asks a scorer what the file doesn't hold yet, in as many processes as there are."""

    def __init__(self, scorer: Scorer, fingerprint: str, path: Path | None = None) -> None:
        """
        Args:
            fingerprint: of the model and the way of scoring.
            path: the file; None keeps nothing.

        Raises:
            InputError: the file is there and holds something else.
        """
        self.scorer, self.fingerprint, self.state, self.computed = scorer, fingerprint, PartialState(), 0
        self.file = None
        if path is not None and self.state.is_main_process:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = sqlite3.connect(path, timeout=60)  # another study may keep answers in the same file
            try:
                self.file.execute(
                    "create table if not exists answers (key blob primary key, value blob not null)"
                )
            except sqlite3.DatabaseError as error:
                raise InputError(
                    f"{path} can't keep answers: {error}. Remove it, or set --cache_file"
                ) from error

    def __call__(self, requests: Sequence[Request]) -> list[list[np.ndarray]]:
        """The scorer's answers, the same in every process: one list a request, one float32 [tokens] an
        answer."""
        keys = [[self._key(r.context, a, r.rest, r.special) for a in r.answers] for r in requests]
        wanted = {}
        for request, row in zip(requests, keys, strict=True):
            wanted.update({key: (request, answer) for key, answer in zip(row, request.answers, strict=True)})
        known = {
            key: np.frombuffer(value, dtype=np.float32) for key, value in self._look_up(list(wanted)).items()
        }
        missing = [key for key in wanted if key not in known]
        for block in self._share(self._blocks([(key, *wanted[key]) for key in missing]), self._score):
            known.update(block)
            self._keep({key: value.tobytes() for key, value in block.items()})
        return [[known[key] for key in row] for row in keys]

    def written(self, requests: Sequence[Request], ending: Ending) -> list[str]:
        """What the model writes, the same in every process."""
        keys = [
            self._key(r.context, json.dumps([ending.until, ending.tokens]), r.rest, r.special)
            for r in requests
        ]
        known = {key: value.decode() for key, value in self._look_up(list(dict.fromkeys(keys))).items()}
        missing = list(
            {key: request for key, request in zip(keys, requests, strict=True) if key not in known}.items()
        )

        def write(block: list[tuple[bytes, Request]]) -> dict[bytes, str]:
            return dict(
                zip(
                    [key for key, _ in block],
                    generate(self.scorer, [r for _, r in block], ending),
                    strict=True,
                )
            )

        for block in self._share([missing[i : i + BLOCK] for i in range(0, len(missing), BLOCK)], write):
            known.update(block)
            self._keep({key: value.encode() for key, value in block.items()})
        return [known[key] for key in keys]

    def _key(self, *parts: object) -> bytes:
        return hashlib.blake2b(json.dumps([self.fingerprint, *parts]).encode(), digest_size=20).digest()

    def _blocks(self, wanted: list[tuple[bytes, Request, str]]) -> list[list[tuple[Request, list[bytes]]]]:
        """Answers to the same text side by side in one request, requests in blocks."""
        grouped: dict[tuple[str, str, bool], list[tuple[bytes, str]]] = {}
        for key, request, answer in wanted:
            grouped.setdefault((request.context, request.rest, request.special), []).append((key, answer))
        items = [
            (Request(context, tuple(answer for _, answer in pairs), rest, special), [key for key, _ in pairs])
            for (context, rest, special), pairs in grouped.items()
        ]
        return [items[i : i + BLOCK] for i in range(0, len(items), BLOCK)]

    def _score(self, block: list[tuple[Request, list[bytes]]]) -> dict[bytes, np.ndarray]:
        answers = self.scorer([request for request, _ in block])
        return {
            key: value
            for (_, keys), row in zip(block, answers, strict=True)
            for key, value in zip(keys, row, strict=True)
        }

    def _share(self, blocks: list[Any], work: Callable[[Any], dict[bytes, Any]]) -> Any:
        """Each block's result, in order; block i is computed by process i modulo their number."""
        began = told = time.monotonic()
        world = self.state.num_processes
        for first in range(0, len(blocks), world):
            mine = first + self.state.process_index
            own = [work(blocks[mine])] if mine < len(blocks) else [{}]
            for result in gather_object(own) if world > 1 else own:
                self.computed += len(result)
                yield result
            if time.monotonic() - told > 30:
                told = time.monotonic()
                done = min(first + world, len(blocks))
                logger.warning("%d of %d blocks of prompts, %.0f s", done, len(blocks), told - began)

    def _look_up(self, keys: list[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        if self.file is not None:
            for first in range(0, len(keys), 500):
                part = keys[first : first + 500]
                marks = ",".join("?" * len(part))
                found.update(
                    self.file.execute(
                        f"select key, value from answers where key in ({marks})", part
                    ).fetchall()
                )
        if self.state.num_processes > 1:
            found = broadcast_object_list([found])[0]
        return found

    def _keep(self, fresh: dict[bytes, bytes]) -> None:
        if self.file is not None:
            with self.file:
                self.file.executemany("insert or replace into answers values (?, ?)", list(fresh.items()))
