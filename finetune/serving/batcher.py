"""Requests of many callers → few batches on one pool. Knows batches, budgets and waiting; knows no HTTP."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from finetune.errors import InputError
from finetune.pool.decoding import Row
from finetune.pool.pool import AdapterPool, Text
from finetune.pool.registry import Name

logger = logging.getLogger(__name__)


class Busy(Exception):
    """More is waiting than the queue may hold."""


@dataclass(frozen=True)
class BatchBudget:
    """What one batch may hold, and how long the first request waits for others.

    Attributes:
        rows: texts in a batch.
        tokens: tokens in a batch, padding counted; a longer text goes alone.
        seconds: how long a first request waits for company.
        waiting: requests that may wait; more are refused.
    """

    rows: int = 32
    tokens: int = 8192
    seconds: float = 0.005
    waiting: int = 512


@dataclass(eq=False)
class Question:
    """One text to be classified, tagged or embedded."""

    kind: str
    text: Text
    adapter: Name
    length: int
    truncate: bool = False
    answer: Future = field(default_factory=Future)


@dataclass(eq=False)
class Order:
    """One text to be written; `tell` hears every piece, from another thread, the last one with the row
    ended."""

    row: Row
    tell: Callable[[str, Row | Exception], None]
    abandoned: bool = False

    @property
    def length(self) -> int:
        return len(self.row.prompt) + self.row.sampling.max_new_tokens


class Batcher:
    """One thread that owns the batches: questions of one kind are answered together, orders are written side
    by side."""

    def __init__(self, pool: AdapterPool, budget: BatchBudget | None = None) -> None:
        self.pool, self.budget = pool, budget or BatchBudget()
        # A guess at the speed before anything is read would refuse what fits.
        self.tokens_per_second = 0.0  # of questions, 0 while nothing is known
        self.counts = {"batches": 0, "rows": 0, "steps": 0, "tokens": 0}
        # The only thing that other threads touch. Lines and batch below belong to the one thread, so that
        # they need no lock, and the pool sees one caller.
        self._inbox: queue.Queue[Question | Order | None] = queue.Queue()
        self._questions: deque[Question] = deque()
        self._orders: deque[Order] = deque()
        self._writing, self._written = pool.writing() if pool.writes else None, dict[Row, Order]()
        # When the batch at hand began: a thread that hangs in a kernel still lives, and only its age tells.
        self._closed, self._busy_since = threading.Event(), 0.0
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        # Three lengths at three moments: near enough for a limit and a figure.
        return self._inbox.qsize() + len(self._questions) + len(self._orders)

    def working(self, seconds: float) -> bool:
        """Whether the thread lives, and hasn't been at one batch for longer than that."""
        busy = time.monotonic() - self._busy_since if self._busy_since else 0.0
        return self._thread.is_alive() and busy < seconds

    def submit(self, job: Question | Order) -> None:
        """Put a job in line.

        Raises:
            Busy: the line is full, or the batcher is closed.
        """
        if self._closed.is_set():
            raise Busy("The server is stopping; try again later")
        # Not exact: two callers may pass at once. A lock would have every request wait for a limit that only
        # has to hold roughly.
        if self.waiting >= self.budget.waiting:
            raise Busy(f"{self.waiting} texts are waiting; try again later")
        self._inbox.put(job)

    def close(self) -> None:
        """Answer nothing more; who still waits hears so."""
        self._closed.set()
        # Wakes the thread where it waits for a first job.
        self._inbox.put(None)
        self._thread.join(timeout=30)

    def _work(self) -> None:
        while self._receive():
            self._busy_since = time.monotonic()
            try:
                # Before a batch is chosen and not after: who has hung up shall not cost others their place.
                self._questions = deque(q for q in self._questions if not q.answer.cancelled())
                self._orders = deque(order for order in self._orders if not order.abandoned)
                if self._questions:
                    self._answer(self._next_questions())
                if self._writing is not None and (self._orders or self._written):
                    self._write()
            except Exception as error:  # whatever it was: without this thread nobody is ever answered again
                logger.exception("A batch broke")
                self._fail(error)
            self._busy_since = 0.0
        self._dismiss()

    def _receive(self) -> bool:
        """Fetch what came in; idle, wait for a first job and then a moment for company. False at the end."""
        idle = not (self._questions or self._orders or self._written)
        until = None
        while True:
            try:
                # None waits for ever, 0.0 not at all. With work at hand the inbox is only emptied: whoever
                # writes must not stand still for somebody who might come.
                patience = None if idle else 0.0 if until is None else max(0.0, until - time.monotonic())
                job = self._inbox.get(block=patience != 0.0, timeout=patience)
            except queue.Empty:
                return True
            if job is None:
                return False
            if idle:
                # Counted from the first job and not from the latest, or a steady trickle would put the batch
                # off for ever.
                idle, until = False, time.monotonic() + self.budget.seconds
            line: Any = self._questions if isinstance(job, Question) else self._orders
            line.append(job)
            # A full batch waits for nobody.
            if len(self._questions) >= self.budget.rows:
                return True

    def _next_questions(self) -> list[Question]:
        """The first in line and those like it that fit: one kind, single texts or pairs, tokens with
        padding."""
        first = self._questions[0]
        chosen: list[Any] = []
        longest = 0
        for question in self._questions:
            alike = (question.kind, question.truncate, isinstance(question.text, tuple))
            if alike != (first.kind, first.truncate, isinstance(first.text, tuple)):
                # Skipped and not a stop: one request of another kind shall not cut a batch of twenty in two.
                continue
            wide = max(longest, question.length)
            # A stop here and no skipping: with short ones taken past it, a long text could wait as long as
            # others come.
            if chosen and (len(chosen) == self.budget.rows or wide * (len(chosen) + 1) > self.budget.tokens):
                break
            chosen.append(question)
            longest = wide
        # By identity: two callers may ask the very same thing.
        taken = set(map(id, chosen))
        self._questions = deque(q for q in self._questions if id(q) not in taken)
        return chosen

    def _answer(self, asked: list[Question]) -> None:
        self.counts["batches"] += 1
        self.counts["rows"] += len(asked)
        pool, begun = self.pool, time.monotonic()
        kinds: dict[str, Callable] = {
            "classify": pool.classify, "tag": pool.tag, "embed": pool.embed, "score": pool.logits,
            # a past is always cut at what the model reads
            "forecast": lambda pasts, names, truncate: pool.forecast(pasts, names),
        }  # fmt: skip
        try:
            texts, adapters = [q.text for q in asked], [q.adapter for q in asked]
            # `truncate` is one for all: questions are alike in it.
            answers = list(kinds[asked[0].kind](texts, adapters, truncate=asked[0].truncate))
        except Exception as error:
            if len(asked) == 1:
                _finish(asked[0].answer, error)
            else:  # one that can't be answered (an adapter taken out meanwhile) spoils nobody else's
                for question in asked:
                    self._answer([question])
            return
        # Only of batches that came through: a failure says nothing of speed.
        self._note_speed(sum(q.length for q in asked), time.monotonic() - begun)
        for question, answer in zip(asked, answers, strict=True):
            _finish(question.answer, answer)

    def _note_speed(self, tokens: int, seconds: float) -> None:
        """A mean in which the latest batches weigh most; a few tokens say nothing of many."""
        # Below 256 the fixed cost of a batch is most of its time.
        if tokens >= 256:
            speed = tokens / max(seconds, 1e-6)
            before = self.tokens_per_second or speed
            self.tokens_per_second = 0.8 * before + 0.2 * speed

    def _write(self) -> None:
        assert self._writing is not None
        # Between two steps, where the cache is whole; in the midst of one their rows still stand in its
        # tensors.
        gone = [row for row, order in self._written.items() if order.abandoned]
        if gone:
            self._writing.leave(gone)
            for row in gone:
                del self._written[row]
        fresh = self._next_orders()
        try:
            if fresh:
                for order in fresh:
                    # Noted before they join: where joining breaks, `_fail` tells them too.
                    self._written[order.row] = order
                # Joining writes a first token as well, so that it takes the place of a step.
                pieces = self._writing.join([order.row for order in fresh])
            elif self._writing.rows:
                pieces = self._writing.step()
            else:
                return
        except Exception as error:
            # InputErrors are the caller's, who hears of it; the rest needs a trace.
            if not isinstance(error, InputError):
                logger.exception("Writing broke")
            self._fail(error)
            return
        # In this thread alone, so that no lock is wanted.
        self.counts["steps"] += 1
        self.counts["tokens"] += len(pieces)
        for row, piece in pieces:
            # Looked up, not kept: a row that ended is told once and forgotten.
            order = self._written.pop(row) if row.ended else self._written[row]
            order.tell(piece, row)

    def _next_orders(self) -> list[Order]:
        fresh: list[Order] = []
        # What each may grow to, not what it is now: a batch that fits today must still fit when all have
        # written their last token.
        held = sum(order.length for order in self._written.values())
        while self._orders:
            order = self._orders[0]
            full = (
                len(self._written) + len(fresh) >= self.budget.rows
                or held + order.length > self.budget.tokens
            )
            # An order that never fits goes alone; refused, it would block the line for ever.
            if full and (self._written or fresh):
                break
            self._orders.popleft()
            if not order.abandoned:
                fresh.append(order)
                held += order.length
        return fresh

    def _fail(self, error: Exception) -> None:
        """Something broke in the batch: everyone in it hears so, and the next batch starts afresh."""
        orders, self._written = list(self._written.values()), {}
        # A fresh one: after an error nobody knows which rows its cache holds.
        self._writing = self.pool.writing() if self.pool.writes else None
        for order in orders:
            order.row.ended = "error"
            order.tell("", error)

    def _dismiss(self) -> None:
        """The end: everyone in line or in a batch hears that there will be no answer."""
        late: list[Any] = []
        with contextlib.suppress(queue.Empty):
            while True:
                late.append(self._inbox.get_nowait())
        for job in [*late, *self._questions, *self._orders, *self._written.values()]:
            if isinstance(job, Question):
                _finish(job.answer, Busy("The server is stopping; try again later"))
            elif isinstance(job, Order):
                job.row.ended = "error"
                job.tell("", Busy("The server is stopping; try again later"))


def _finish(answer: Future, result: Any) -> None:
    # Cancelled meanwhile: setting its result would raise in this thread.
    if not answer.set_running_or_notify_cancel():
        return
    if isinstance(result, Exception):
        answer.set_exception(result)
    else:
        answer.set_result(result)
