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
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from finetune.errors import InputError
from prompts.scoring.endpoint import Endpoint
from prompts.scoring.generate import Drawing, generate
from prompts.scoring.score import Request, Scorer
from prompts.templates.entries import Ending

logger = logging.getLogger(__name__)
BLOCK = 64  # requests; also what an interruption loses at most, for each process


class Memory:
    """Asks a scorer what the file doesn't hold yet, in as many processes as there are."""

    def __init__(self, scorer: Scorer | Endpoint, fingerprint: str, path: Path | None = None) -> None:
        """
        Args:
            fingerprint: of the model and the way of scoring.
            path: the file; None keeps nothing.

        Raises:
            InputError: the file is there and holds something else.
        """
        self.scorer, self.fingerprint, self.state, self.computed = scorer, fingerprint, PartialState(), 0
        self.file = None
        # one process looks up and keeps; the others are told
        if path is not None and self.state.is_main_process:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = sqlite3.connect(path, timeout=60)  # another study may keep answers in the same file
            # whoever asks last closes it, not the interpreter's end
            weakref.finalize(self, self.file.close)
            try:
                self.file.execute(
                    "create table if not exists answers (key blob primary key, value blob not null)"
                )
            except sqlite3.DatabaseError as error:
                raise InputError(
                    f"{path} can't keep answers: {error}. Remove it, or set --cache_file"
                ) from error

    @property
    def exact(self) -> bool:
        """Whether the whole answer's log-probability is had, for any text."""
        return not isinstance(self.scorer, Endpoint) or self.scorer.how == "echo"

    def reason(self, request: Request) -> str:
        """Why no answer came to a request."""
        return (
            self.scorer.reasons.get(request.context, "unknown")
            if isinstance(self.scorer, Endpoint)
            else "unknown"
        )

    def __call__(self, requests: Sequence[Request]) -> list[list[np.ndarray] | None]:
        """The scorer's answers, the same in every process: one list a request, one float32 [tokens] an
        answer.

        None stands where an endpoint gave none; such an answer isn't kept, so that the next run asks again.
        """
        keys = [self._keys(request) for request in requests]
        wanted = {}
        # by key: the same text and answer asked twice goes through the model once
        for request, row in zip(requests, keys, strict=True):
            wanted.update({key: (request, answer) for key, answer in zip(row, request.answers, strict=True)})
        known = {
            key: np.frombuffer(value, dtype=np.float32) for key, value in self._look_up(list(wanted)).items()
        }
        missing = [key for key in wanted if key not in known]
        # kept block by block, so that an interruption loses one of them
        for block in self._share(self._blocks([(key, *wanted[key]) for key in missing]), self._score):
            known.update(block)
            self._keep({key: value.tobytes() for key, value in block.items()})
        # a request stands or falls as a whole: labels can't be compared by some of their answers
        return [[known[key] for key in row] if all(key in known for key in row) else None for row in keys]

    def _keys(self, request: Request) -> list[bytes]:
        told: list[object] = [request.context, request.rest, request.special]
        told += [request.turns, request.prefill] if request.turns else []
        # an answer that is drawn or looked up among others depends on what they are
        told += [] if self.exact else [request.answers]
        return [self._key(answer, *told) for answer in request.answers]

    def written(
        self, requests: Sequence[Request], ending: Ending, drawing: Drawing | None = None
    ) -> list[str | None]:
        """What the model writes, the same in every process; None where an endpoint gave nothing."""
        # what a text is written by belongs to its key as its prompt does
        how = [ending.until, ending.tokens, ending.keep, *(vars(drawing).values() if drawing else ())]
        keys = [
            self._key(r.context, json.dumps(how), r.rest, r.special, r.turns, r.prefill) for r in requests
        ]
        known = {key: value.decode() for key, value in self._look_up(list(dict.fromkeys(keys))).items()}
        missing = list(
            {key: request for key, request in zip(keys, requests, strict=True) if key not in known}.items()
        )

        def write(block: list[tuple[bytes, Request]]) -> dict[bytes, str]:
            asked = [request for _, request in block]
            if isinstance(self.scorer, Endpoint):
                texts: list[str | None] = self.scorer.write(asked, ending, drawing)
            else:
                texts = [*generate(self.scorer, asked, ending, drawing)]
            return {key: text for (key, _), text in zip(block, texts, strict=True) if text is not None}

        for block in self._share([missing[i : i + BLOCK] for i in range(0, len(missing), BLOCK)], write):
            known.update(block)
            self._keep({key: value.encode() for key, value in block.items()})
        return [known.get(key) for key in keys]

    def _key(self, *parts: object) -> bytes:
        # 20 bytes are enough: a chance collision is out of reach
        return hashlib.blake2b(json.dumps([self.fingerprint, *parts]).encode(), digest_size=20).digest()

    def _blocks(self, wanted: list[tuple[bytes, Request, str]]) -> list[list[tuple[Request, list[bytes]]]]:
        """Answers to the same text side by side in one request, requests in blocks."""
        grouped: dict[Request, list[tuple[bytes, str]]] = {}
        for key, request, answer in wanted:
            # an endpoint that counts or looks up first tokens weighs all of a request's answers together
            # without its answers: requests of one text are joined again, and answered in one pass
            alike = replace(request, answers=()) if self.exact else request
            grouped.setdefault(alike, []).append((key, answer))
        items = [
            (replace(alike, answers=tuple(answer for _, answer in pairs)), [key for key, _ in pairs])
            for alike, pairs in grouped.items()
        ]
        # texts that begin alike stand in one block, whichever prompt they came from: what they share is
        # computed once a block
        items.sort(key=lambda item: item[0].context)
        # cut before they are handed out: a batch's rounding must not depend on the number of processes
        return [items[i : i + BLOCK] for i in range(0, len(items), BLOCK)]

    def _score(self, block: list[tuple[Request, list[bytes]]]) -> dict[bytes, np.ndarray]:
        answers = self.scorer([request for request, _ in block])
        return {
            key: value
            for (_, keys), row in zip(block, answers, strict=True)
            if row is not None
            for key, value in zip(keys, row, strict=True)
            # of an endpoint that is asked answer by answer, some may have come
            if value is not None
        }

    def _share(self, blocks: list[Any], work: Callable[[Any], dict[bytes, Any]]) -> Any:
        """Each block's result, in order; block i is computed by process i modulo their number."""
        began = told = time.monotonic()
        world = self.state.num_processes
        for first in range(0, len(blocks), world):
            mine = first + self.state.process_index
            # an empty part where blocks run out: every process has to take part in the gather
            own = [work(blocks[mine])] if mine < len(blocks) else [{}]
            # in the order of processes, which is that of blocks
            for result in gather_object(own) if world > 1 else own:
                self.computed += len(result)
                yield result
            # of long work alone, and not more often than one would look
            if time.monotonic() - told > 30:
                told = time.monotonic()
                done = min(first + world, len(blocks))
                logger.warning("%d of %d blocks of prompts, %.0f s", done, len(blocks), told - began)

    def _look_up(self, keys: list[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        if self.file is not None:
            # sqlite bounds the values of one statement
            for first in range(0, len(keys), 500):
                part = keys[first : first + 500]
                marks = ",".join("?" * len(part))
                found.update(
                    self.file.execute(
                        f"select key, value from answers where key in ({marks})", part
                    ).fetchall()
                )
        # the main process alone has the file
        if self.state.num_processes > 1:
            found = broadcast_object_list([found])[0]
        return found

    def _keep(self, fresh: dict[bytes, bytes]) -> None:
        if self.file is not None:
            # one transaction a block
            with self.file:
                self.file.executemany("insert or replace into answers values (?, ?)", list(fresh.items()))
