"""A ladder from its rows to its page: what is run in which order, until the budget is spent. Knows all of
the room; knows no command line.

Runs that are done are files; started again, only what is missing is run. The order is such that whenever
time is up,
what is there can be compared: first what costs nothing, then every way once at each number of labels, then
again with other draws.
"""

from __future__ import annotations

import json
import logging
import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from finetune.artefacts.files import write_atomically
from finetune.data.sources import DataArguments
from finetune.errors import InputError
from finetune.models.load import ModelArguments
from finetune.reports.ladder import LadderPage, LadderPoint, write_ladder_page
from finetune.training.interrupts import seconds_of
from prompts.ladder.asked import LadderPrompts
from prompts.ladder.budget import BudgetSpent, Peak, TimeBudget
from prompts.ladder.options import WAYS, LadderArguments
from prompts.ladder.result import LadderRun, read_runs, run_name
from prompts.ladder.rows import ladder_rows, settled_counts
from prompts.ladder.tuned import LSTM, LSTM_RATE, STEPS, Said, batch_for, epochs_for, fit, learn

logger = logging.getLogger(__name__)
# What may differ when a ladder is taken up again: how long, and what else is tried.
FREE = ("budget", "ways", "label_seeds", "label_counts", "more_labels", "output_dir")
Step = tuple[str, int, int]  # way, labels, seed


class Ladder:
    """Rows, folder and clock of one ladder."""

    def __init__(self, options: LadderArguments, data: DataArguments, model: ModelArguments) -> None:
        """
        Raises:
            InputError: rows that can't be used, or a folder that holds another ladder.
        """
        self.clock = TimeBudget(seconds_of(options.budget, "--budget"))
        self.options, self.model = options, model
        self.rows = ladder_rows(data, [model.model_name_or_path, options.prompt_model])
        self.counts = settled_counts(options.label_counts, len(self.rows.pool))
        self.folder = Path(options.output_dir or f"runs/ladder_{Path(data.name).stem}")
        self._claim(data)
        # those of earlier calls, which are not made again
        self.runs = read_runs(self.folder / "runs")
        self.troubles: dict[str, str] = {}
        self.prompts = LadderPrompts(self.rows, options, self.clock, self.folder)

    def _claim(self, data: DataArguments) -> None:
        options = {name: value for name, value in asdict(self.options).items() if name not in FREE}
        # runs that were trained for fewer steps are no points of the same curve
        now = options | asdict(self.model) | {"rows": self.rows.fingerprint, "least_steps": STEPS}
        # through JSON, as the file has it
        now = json.loads(json.dumps(now, default=str))
        file = self.folder / "ladder.json"
        if file.is_file():
            before = json.loads(file.read_text(encoding="utf-8"))
            # what is there decides: fewer options then are no contradiction
            other = [f"{k}: {before.get(k)!r} there, {now[k]!r} now" for k in now if before.get(k) != now[k]]
            if other:
                raise InputError(
                    f"{self.folder} holds another ladder ({'; '.join(other[:3])}). Set --output_dir to a "
                    "new folder"
                )
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise InputError(
                f"{self.folder} holds files that are no ladder's. Set --output_dir to a new folder"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(now, indent=1))

    def climb(self) -> Path:
        """Run what is missing as long as time is left; the page, whatever ends it.

        Raises:
            InputError: nothing could be run at all.
        """
        stopped: BaseException | None = None
        try:
            for step in self.steps():
                if run_name(*step) not in self.runs:
                    self._try(step)
        # an interruption ends the work, and its page is wanted all the same
        except (KeyboardInterrupt, SystemExit) as error:  # the page of what is there is wanted then too
            stopped = error
        if not self.runs:
            if stopped is not None:
                raise stopped
            raise InputError(
                f"Nothing could be run: {'; '.join(self.troubles.values()) or 'no time'}. Set --budget"
            )
        page = self.write()
        if stopped is not None:
            logger.warning("Stopped; the page of what is there: %s", page)
            # raised again: the exit status tells whoever waits for it
            raise stopped
        return page

    def steps(self) -> Iterator[Step]:
        """All runs in their order."""
        ways = [name for name in WAYS if name in self.options.ways]
        # by kind, in the order of WAYS
        kinds = {
            kind: [way for way in ways if WAYS[way].kind == kind] for kind in ("fitted", "tuned", "asked")
        }
        # fits first: they take seconds, and a page has something to compare from the beginning
        for way in kinds["fitted"]:
            for count in self.counts if WAYS[way].labels else [self.labels_of(way)]:
                yield way, count, 0
        for seed in range(self.options.label_seeds):
            for count in self.counts:
                # fewer draws where rows are many: they differ less, and cost more
                if seed and count > (64 if seed > 1 else 256):
                    continue
                for way in [*(kinds["fitted"] if seed else ()), *kinds["tuned"], *kinds["asked"]]:
                    if WAYS[way].labels:
                        yield way, count, seed
                    # once a draw, at the first count: labels can't help
                    elif count == self.counts[0] and way not in (
                        # without examples nothing is drawn, and a second draw would be the same
                        "majority",
                        *(("zero_shot",) if seed else ()),
                    ):
                        yield way, self.labels_of(way), seed

    def labels_of(self, way: str) -> int:
        """Labels of a way that more can't help: none, its examples, or all there are."""
        if way == "zero_shot":
            return 0
        return self.counts[-1] if way == "majority" else min(self.options.shots, len(self.rows.pool))

    def _try(self, step: Step) -> None:
        way, labels, seed = step
        name = f"{WAYS[way].title}, {labels} labels, draw {seed + 1}"
        foreseen = self.foreseen(way, labels)
        # a way that is known to be too long isn't begun; one that is not known is
        if not self.clock.left or (foreseen is not None and foreseen > self.clock.left):
            self.troubles[run_name(*step)] = f"{name}: no time left" + (
                f" (about {foreseen:.0f} s)" if foreseen and self.clock.left else ""
            )
            return
        start = time.monotonic()
        try:
            for run in self.run(way, labels, seed):
                # one after the other: a kill loses what runs, not what is done
                run.save(self.folder / "runs")
                self.runs[run.name] = run
                right = sum(a == b for a, b in zip(run.said, self.rows.gold.tolist(), strict=True))
                logger.warning(
                    "%s: accuracy %.3f in %.0f s; %.0f s left", f"{WAYS[run.way].title}, {labels} labels",
                    right / len(run.said), time.monotonic() - start, self.clock.left,
                )  # fmt: skip
        except BudgetSpent:
            self.troubles[run_name(*step)] = f"{name}: the budget ended while it ran"
        # out of memory, or a method that this model can't have: the others go on
        except (InputError, RuntimeError, MemoryError) as error:
            self.troubles[run_name(*step)] = f"{name}: {str(error).splitlines()[0]}"
            logger.warning("%s", self.troubles[run_name(*step)])

    def foreseen(self, way: str, labels: int) -> float | None:
        """Seconds that a run will likely take, by what the same way took; None where nothing tells."""
        known = [run for run in self.runs.values() if run.way == way]
        if not known:
            return None
        # the nearest number, since speed depends on how many rows there are
        near = min(known, key=lambda run: abs(run.labels - labels))
        # rows read in all, by which time grows
        learnt = labels * epochs_for(way, labels) if WAYS[way].kind == "tuned" else near.kept_rows
        return near.seconds * learnt / max(near.kept_rows, 1) + near.row_ms * len(near.said) / 1000

    def run(self, way: str, labels: int, seed: int) -> list[LadderRun]:
        """One step's runs: a prompt behind fixed examples gives a calibrated one too.

        Raises:
            BudgetSpent: time ran out.
            InputError: it can't be done with these rows or this model.
        """
        # before anything is loaded: the peak is that of this run
        peak, train = Peak(), self.rows.labelled(max(labels, 1), seed)
        # both come of the same questions
        asked = "few_shot" if way == "calibrated" else way
        found: list[Said]
        if WAYS[way].kind == "asked":
            found = self.prompts.ask(asked, train, seed)
        elif WAYS[way].kind == "fitted":
            found = [fit(way, self.rows, train)]
        else:
            found = [learn(way, self.rows, train, seed, (self.model, self.options.max_length, self.clock))]
        if torch.cuda.is_available():
            # or the next way's peak would hold this one's memory
            torch.cuda.empty_cache()
        names = ("few_shot", "calibrated") if asked == "few_shot" else (way,)
        memory = peak.mb()
        return [
            LadderRun(name, labels, seed, one.said, one.seconds, one.row_ms, memory, one.own_mb, one.base_mb,
                      one.kept_rows)
            # what wasn't asked for isn't kept
            for name, one in zip(names, found, strict=True) if name in self.options.ways
        ]  # fmt: skip

    def commands(self) -> dict[str, str]:
        """What makes each way's model of all labelled rows, by `finetune train`."""
        given = {
            "dataset_name": self.rows.name, "text_column": self.rows.columns.text,
            "label_column": self.rows.columns.label,
        }  # fmt: skip
        # quoted: columns may have spaces
        common = " ".join(f"--{name} {shlex.quote(value)}" for name, value in given.items())
        length, folder = f"--max_length {self.options.max_length}", "--output_dir runs/chosen"
        model = f"--model_name_or_path {shlex.quote(self.model.model_name_or_path)}"
        count = len(self.rows.pool)
        batch = f"--per_device_train_batch_size {batch_for(count)}"
        # as long as here: `train` itself takes three epochs
        often = {
            way: f"--num_train_epochs {epochs_for(way, count)} {batch}"
            for way, one in WAYS.items() if one.kind == "tuned"
        }  # fmt: skip
        made = {
            way: f"finetune train {model} --method {way} {common} {length} {times} {folder}"
            for way, times in often.items()
        }
        words = (
            "finetune tokenizer --kind words --lowercase true --vocab_size 10000 --output_dir runs/words "
            # a tokenizer is made of the texts alone
            + common.partition(" --label_column")[0]
        )
        made["lstm"] = (
            f"{words}\nfinetune train --from_config lstm --config_overrides {LSTM} --tokenizer_name "
            "runs/words "
            f"--method full --learning_rate {LSTM_RATE} {common} {length} {often['lstm']} {folder}"
        )
        fitted = {
            way: f"finetune train --model_name_or_path {way} {common} {folder}"
            for way, one in WAYS.items() if one.kind == "fitted"
        }  # fmt: skip
        return made | fitted

    def write(self) -> Path:
        """The page, of all runs that are done."""
        gold = self.rows.gold
        points = [
            LadderPoint(
                WAYS[run.way].title, run.labels, run.seed, [a == b for a, b in zip(run.said, gold,
                strict=True)], run.said, run.seconds, run.row_ms, run.memory_mb, run.own_mb, run.base_mb,
                grows=WAYS[run.way].labels,
            )
            # runs of ways that this version doesn't know stay in the folder
            for run in self.runs.values() if run.way in WAYS
        ]  # fmt: skip
        page = LadderPage(
            self.rows.name, points, gold.tolist(), self.rows.labels, self.options.more_labels,
            {
                "labelled rows": len(self.rows.pool), "unseen rows": len(gold), "classes":
                len(self.rows.labels),
                "model": self.model.model_name_or_path, "asked model": self.options.prompt_model,
                "tokens of a text": self.options.max_length, "budget": self.options.budget,
            },
            list(self.troubles.values()),
            {WAYS[way].title: command for way, command in self.commands().items()},
        )  # fmt: skip
        return write_ladder_page(page, self.folder)


def climb(options: LadderArguments, data: DataArguments, model: ModelArguments) -> Path:
    """Make or take up a ladder; its page.

    Raises:
        InputError: rows or options that can't be used, or a folder that holds something else.
    """
    return Ladder(options, data, model).climb()
