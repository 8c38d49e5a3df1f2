"""What all endpoints share: the pool, its batcher, the limits. Knows what is asked; knows no routes."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.errors import InputError
from finetune.pool.pool import AdapterPool
from finetune.pool.registry import BASE
from finetune.pool.sampling import Sampling
from finetune.pool.task_heads import FORECAST
from finetune.serving.access import AccessArguments, charge
from finetune.serving.batcher import BatchBudget, Batcher, Busy, Question
from finetune.serving.finished_runs import FinishedRuns, file_contents
from finetune.serving.prometheus import Figures
from finetune.serving.streaming import WrittenPart

ABOVE = re.compile(r"(?<![\w/.])/(?:[^/\s'\"]+/)+")  # what stands before the last name of an absolute path


@dataclass
class ServeArguments:
    """What is served, and within which limits."""

    base: str = field(
        default="smollm2", metadata={"help": "The base: a hub name, a folder, or a packaged model."}
    )
    adapters: list[str] = field(
        default_factory=list, metadata={"help": "Adapters from the start, each as name=folder."}
    )
    runs: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Finished runs that read pictures, sounds or series beside the base, each as "
            "name=folder, for /v1/classify with images, sounds or series, and /v1/forecast."
        },
    )
    adapters_dir: str | None = field(
        default=None,
        metadata={"help": "Folder below which adapters may be added over HTTP; without it none can."},
    )
    max_body_kb: int = field(default=1024, metadata={"help": "Largest body of a request."})
    max_queue: int = field(default=512, metadata={"help": "Texts that may wait; more are answered with 503."})
    max_batch_rows: int = field(default=32, metadata={"help": "Texts in one batch."})
    max_batch_tokens: int = field(
        default=16384, metadata={"help": "Tokens in one batch, padding and tokens to come counted."}
    )
    gather_ms: float = field(default=5.0, metadata={"help": "How long a first request waits for others."})
    timeout_seconds: float = field(
        default=120.0,
        metadata={"help": "Longest time of an answer (of a request's head, of its body: 20 at most)."},
    )
    max_new_tokens: int = field(
        default=1024, metadata={"help": "Most new tokens that a request may ask for."}
    )
    memory_limit_mb: float = field(
        default=1024.0, metadata={"help": "Memory for adapters; the least used are put aside."}
    )
    allow_mismatch: bool = field(
        default=False, metadata={"help": "Serve adapters that don't belong on the base."}
    )

    strict: bool = field(
        default=False,
        metadata={
            "help": "Refuse fields that OpenAI's endpoints here don't know (default: name them in a head)."
        },
    )

    require_passport: bool = field(
        default=False,
        metadata={"help": ("Refuse adapters whose folder doesn't say which base they belong on.")},
    )

    def patience(self) -> float:
        """Seconds that a client may take for a request's head, for its body, and to read on in an answer."""
        return min(20.0, self.timeout_seconds)


class Served:
    """What the endpoints share: the pool, its batcher, the limits."""

    def __init__(
        self, pool: AdapterPool, options: ServeArguments, access: AccessArguments | None = None
    ) -> None:
        self.access = access or AccessArguments()
        self.pool, self.options, self.figures = pool, options, Figures()
        self.since = int(time.time())
        budget = BatchBudget(
            options.max_batch_rows, options.max_batch_tokens, options.gather_ms / 1000, options.max_queue
        )
        self.batcher = Batcher(pool, budget)
        self.finished = FinishedRuns(options.runs)
        twice = next((name for name in pool.adapters() if self.taken(name)), None)
        if twice is not None:
            raise InputError(f"'{twice}' is in --runs and in --adapters; give one another name")

    def taken(self, name: Any) -> bool:
        """Whether a finished run of that name answers requests that an adapter on the base would be asked."""
        # adapters on a base of series may give classes or forecasts
        kinds = (self.pool.reads, "forecast") if self.pool.reads == "series" else (self.pool.reads,)
        return any(self.finished.taken(name, kind) for kind in kinds)

    async def ask_run(self, count: int, ask: Callable[..., Any], *given: Any) -> Any:
        """The answer of a finished run to so many inputs, in a batch of their own."""
        charge(count)
        return await asyncio.wait_for(asyncio.to_thread(ask, *given), self.options.timeout_seconds)

    async def ask_fields(self, reads: str, inputs: list[Any], names: list[Any]) -> dict[str, Any]:
        """Classes of pictures, sounds or series, by adapters on the base or by one finished run; and what was
        made of inputs that came in another form than their model wants.

        Raises:
            InputError: names of which some are runs, or an input that can't be read.
        """
        # A base of texts has no adapter for these, so that whatever is named can but be a run.
        if self.pool.reads != reads or any(self.finished.taken(name, reads) for name in names):
            if len(set(names)) != 1:
                raise InputError("A finished run answers a request of its own; wanted one 'adapter' for all")
            answers = await self.ask_run(len(inputs), self.finished.classify, reads, inputs, names[0])
            return {"answers": answers}
        read = await asyncio.to_thread(self._read, reads, inputs)
        answers = await self.ask("classify", read, names)
        notes = await asyncio.to_thread(self.pool.notes, read, names)
        return {"answers": answers} | ({"notes": notes} if notes else {})

    async def ask_forecast(
        self, past: dict[str, list[float]], times: list[str] | None, name: str
    ) -> dict[str, list[float]]:
        """What comes next in each channel, by an adapter on the base or by a finished run.

        Raises:
            InputError: neither of that name forecasts, or a past that can't be read.
        """
        if self.pool.reads == "series" and not self.finished.taken(name, "forecast"):
            (answer,) = await self.ask("forecast", [past], [name])
            return answer
        return await self.ask_run(len(past), self.finished.forecast, past, times, name)

    def _read(self, reads: str, inputs: list[Any]) -> list[Any]:
        return self.pool.read(file_contents(inputs, reads))

    async def ask(
        self,
        kind: str,
        texts: list[Any],
        names: list[Any],
        truncate: bool = False,
        counts: list[int] | None = None,
    ) -> list[Any]:
        """The answer to each text; all are checked before any is put in line.

        Args:
            counts: gains the tokens of each text.
        """
        if len(texts) != len(names):
            raise InputError(f"{len(texts)} texts and {len(names)} adapters; wanted one each")
        # Tokenising in a thread: it would hold the loop.
        lengths = await asyncio.to_thread(self._checked, kind, texts, names, truncate)
        if counts is not None:
            counts += lengths
        self._check_time(sum(lengths))
        # Before the answer: what is read costs the same where the client hangs up.
        charge(sum(lengths))
        questions = [Question(kind, *one, truncate) for one in zip(texts, names, lengths, strict=True)]
        try:
            for question in questions:
                self.batcher.submit(question)
            # Futures of threads, made awaitable; all at once, so that they may share batches.
            waiting = asyncio.gather(*(asyncio.wrap_future(q.answer) for q in questions))
            return await asyncio.wait_for(waiting, self.options.timeout_seconds)
        finally:
            for question in questions:  # those that nobody waits for any more; the others are done
                question.answer.cancel()

    def _checked(self, kind: str, texts: list[Any], names: list[Any], truncate: bool) -> list[int]:
        task = {"classify": "SEQ_CLS", "tag": "TOKEN_CLS", "forecast": FORECAST}.get(kind)
        # Tags and classes need their own head, embeddings none.
        chains = self.pool.check(texts, names, task)
        return self.pool.fit(texts, chains, truncate)

    def _check_time(self, tokens: int) -> None:
        """Say at once what would end as a time-out, by what was read in a second so far."""
        speed, limit = self.batcher.tokens_per_second, self.options.timeout_seconds
        if speed and tokens / speed > limit:
            raise InputError(
                f"{tokens} tokens would take about {tokens / speed:.0f} seconds here, and this server waits "
                f"{limit:g}; send fewer texts at a time"
            )

    async def orders(
        self, prompts: list[Any], names: list[Any] | str, sampling: Sampling, special: bool = True
    ) -> list[WrittenPart]:
        """Texts (or tokens) that are being written; `names` one each, or OpenAI's one `model` for all."""
        if isinstance(names, str):
            names = [self.adapter_of(names)] * len(prompts)
        if len(prompts) != len(names):
            raise InputError(f"{len(prompts)} texts and {len(names)} adapters; wanted one each")
        if sampling.max_new_tokens > self.options.max_new_tokens:
            raise InputError(
                f"{sampling.max_new_tokens} new tokens asked for; {self.options.max_new_tokens} at most "
                "here. Ask for fewer"
            )
        rows = await asyncio.to_thread(self.pool.rows, prompts, names, sampling, special)
        charge(sum(len(row.prompt) for row in rows))
        written = [
            WrittenPart(row, asyncio.get_running_loop(), name, self.figures)
            for row, name in zip(rows, map(_label, names), strict=True)
        ]
        # All or none: half of a request's texts would be written for nobody.
        try:
            for one in written:
                self.batcher.submit(one.order)
        except Busy:
            for one in written:
                one.order.abandoned = True
            raise
        return written

    @property
    def answer_tokens(self) -> int:
        """New tokens of an answer where a chat doesn't say."""
        return min(256, self.options.max_new_tokens)

    def task_of(self, name: str) -> str | None:
        """What an adapter was trained for, by PEFT's name."""
        return self.pool.chain(name)[0].task

    def ignored(self, ask: Any, unread: Sequence[str] = ()) -> dict[str, str]:
        """A head that names the fields of a request that this server doesn't know, or that go `unread`.

        Raises:
            InputError: there are some, and --strict is set.
        """
        # As JSON, without its quotes: a name may hold line breaks, which would end the header.
        unknown = dict.fromkeys(json.dumps(name)[1:-1][:80] for name in ask.unknown())
        names = [*unread, *unknown][:32]
        if names and self.options.strict:
            raise InputError(f"Unknown fields: {', '.join(names)}; this server is strict. Leave them out")
        return {"X-Ignored-Fields": ", ".join(names)} if names else {}

    def adapter_of(self, model: str) -> str | None:
        """OpenAI's `model` → the adapter; the base by its own name or as "base"."""
        return None if model in (BASE, self.base) else model

    @property
    def working(self) -> bool:
        """Whether batches are being made; without that thread nobody is ever answered."""
        return self.batcher.working(2 * self.options.timeout_seconds)

    @property
    def base(self) -> str:
        """The base's name; where it is a folder, without what lies above it."""
        return Path(self.options.base).name if Path(self.options.base).is_dir() else self.options.base

    def plain(self, message: str) -> str:
        """An error's message without the server's folders: an adapter's goes by its name."""
        # Names for folders first; what is left of paths goes below.
        for name, entry in self.pool.adapters().items():
            if Path(entry["folder"]).is_absolute():
                message = message.replace(entry["folder"], name)
        if self.options.adapters_dir is not None:
            message = message.replace(f"{Path(self.options.adapters_dir).resolve()}/", "")
        return ABOVE.sub("", message)


def _label(name: Any) -> str:
    """How an adapter (or several, or none) is called in figures."""
    return BASE if name is None else name if isinstance(name, str) else "+".join(name)
