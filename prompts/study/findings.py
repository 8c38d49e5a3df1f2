"""What a study found out, and what is said of it in numbers: lines of figures, tests, the baseline. Asks no
model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from finetune.metrics import bootstrap
from finetune.metrics.significance import Comparison, compare, holm, rows_needed
from prompts.study.asking import Notes
from prompts.study.measures import of_labels
from prompts.study.outcomes import Outcome, baseline, chosen_of, shared_rows
from prompts.study.rows import StudyRow
from prompts.study.written import Written
from prompts.templates.entries import Entry
from prompts.templates.template import Template

SAMPLES = 2000  # of the bootstrap
TESTED = 48  # outcomes that the heading one is tested against


@dataclass(frozen=True)
class Population:
    """Where the measured rows come from.

    Attributes:
        rows: that the split has; asked: those measured; how: how they were drawn.
        questions: what those measured ask, one each; of named entities one each entity.
        left_out: rows of the split that a model was trained on, and that no model is asked.
        trained_on: the same where they are asked all the same (--keep_trained_rows).
    """

    name: str
    split: str
    rows: int
    asked: int
    how: str = "drawn plainly"
    questions: int = 0
    left_out: int = 0
    trained_on: int = 0

    def in_words(self) -> str:
        """For the head of a report."""
        there = self.rows - self.left_out
        drawn = "all" if self.asked == there else f"{self.asked}, {self.how},"
        said = f"{drawn} of {there} rows of {self.name}, {self.split}"
        if self.left_out:
            said += f"; {self.left_out} more are left out, which a model asked here was trained on"
        if self.trained_on:
            said += f" ({self.trained_on} of the {there} are rows that a model asked here was trained on)"
        return said


@dataclass(frozen=True)
class Findings:
    """What a study found out on unseen rows.

    Attributes:
        kind: labels, choices or text.
        ensembles: model → name → scores [rows, labels] on all unseen rows.
        models: model → how it answers, tokens and costs, in words.
        judge: what the judge's word is worth, in words.
        trial: what a search for instructions came to.
        templates: those that were asked, by name.
    """

    entry: Entry
    kind: str
    metric: str
    labels: tuple[str, ...]
    parts: dict[str, list[StudyRow]]
    outcomes: list[Outcome]
    population: Population
    ensembles: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)
    models: dict[str, str] = field(default_factory=dict)
    judge: str = ""
    power: float | None = None
    trial: Any = None
    templates: dict[str, Template] = field(default_factory=dict)

    @property
    def measured_on(self) -> str:
        """Which rows the heading figure is of, in words."""
        said, there, asked = (
            self.population.in_words(), self.population.questions, len(self.heading.places)
        )  # fmt: skip
        # rows without a known label, that a template skips, or that got no answer: the notes say which
        return f"{said}; {asked} of {there} could be measured" if asked < there else said

    @property
    def rows(self) -> list[StudyRow]:
        """Those that the study is measured on."""
        return self.parts["unseen"]

    @cached_property
    def answers(self) -> list[Any]:
        """Cells, each once."""
        # one cell has an outcome for each of its ways
        return list({id(one.answers): one.answers for one in self.outcomes}.values())

    @cached_property
    def chosen(self) -> Outcome | None:
        """The outcome that training rows were for."""
        return chosen_of(self.outcomes)

    @cached_property
    def heading(self) -> Outcome:
        """What heads the report: the chosen outcome, else the first."""
        # the first: nothing was chosen, so that none is better known
        return self.chosen or self.outcomes[0]

    @cached_property
    def drawn(self) -> np.ndarray:
        """Bootstrap samples that all outcomes on all rows share, which makes their intervals comparable."""
        return self._draws(len(self.rows))

    def draws_of(self, rows: int) -> np.ndarray:
        """Bootstrap samples of so many rows."""
        # on fewer rows samples of their own: a draw names rows by place
        return self.drawn if rows == len(self.rows) else self._draws(rows)

    @staticmethod
    def _draws(rows: int) -> np.ndarray:
        # of bounded memory
        return bootstrap.draws(rows, max(200, min(SAMPLES, 20_000_000 // max(rows, 1))), 0)

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """One line an outcome, and one an ensemble: figures with their intervals."""
        lines = [self._line(one) for one in self.outcomes]
        gold = np.array([row.label for row in self.rows], dtype=int)
        for model, made in self.ensembles.items():
            for name, scores in made.items():
                # names of ensembles are made of both (see `study.ensembles`)
                way, how = name.split(", ")
                cell = {"model": model, "template": "ensemble", "verbalizer": way, "shots": "", "seed": ""}
                figures = of_labels(scores.argmax(axis=1), gold, len(self.labels))
                lines.append(
                    # an ensemble is asked of nobody: no shots, no seed
                    {
                        **cell,
                        "calibration": how,
                        "rows": len(gold),
                        **self._figures(figures),
                        **_most(scores.argmax(1)),
                    }
                )
        return lines

    def _line(self, one: Outcome) -> dict[str, Any]:
        line = {
            **asdict(one.cell),
            "calibration": one.how,
            "rows": len(one.places),
            **self._figures(one.measures),
        }
        if one.training is not None:
            line["training"] = one.training
        if isinstance(one.answers, Written):
            repeats = one.answers.spread(one.how)
            line["repeats"] = len(repeats)
            # of a sample
            line["spread"] = float(np.std(repeats, ddof=1)) if len(repeats) > 1 else 0.0
            line["nothing_found"] = int(one.answers.unmatched(one.how).sum())
        else:
            line |= _most(one.said)
        return line

    def _figures(self, measures: dict[str, Any]) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, measure in measures.items():
            # bars of all lines come of the same draws
            low, high = measure.interval(self.draws_of(len(measure.counts)))
            found |= {name: measure.value, f"{name}_low": low, f"{name}_high": high}
        return found

    @cached_property
    def tests(self) -> list[tuple[Outcome, Comparison]]:
        """The heading outcome against each other one, on the rows of both; Holm's correction over all of
        them."""
        others = [one for one in self.outcomes if one is not self.heading][:TESTED]
        pairs = []
        for other in others:
            # a prompt may not have been asked of all rows
            first, second, rows = shared_rows(self.heading, other, self.metric)
            if len(rows):
                pairs.append((other, compare(first, second, self.draws_of(len(rows)))))
        # Holm's correction needs all tests together
        return list(zip([one for one, _ in pairs], holm([test for _, test in pairs]), strict=True))

    @property
    def baseline(self) -> dict[str, Any]:
        """What one gets without reading the rows."""
        return baseline(self.heading.answers, self.parts, self.labels, self.metric)

    def line_of(self, one: Outcome) -> dict[str, Any]:
        """The figures of an outcome."""
        return self.lines[self.outcomes.index(one)]

    @property
    def gain(self) -> str:
        """What a search for instructions gained on rows that no choice saw, in words; "" where none was
        made."""
        if self.trial is None:
            return ""
        start = (
            f"{self.trial.tried} instructions written by a model were tried on training rows beside "
            f"{self.trial.base}: "
        )
        if self.trial.found is None:
            return start + "**no gain found**, none was better there."
        how = self.outcomes[0].how
        # the raw way, by which the search ranked
        pair = [
            next((o for o in self.outcomes if o.cell.template == name and o.how == how), None)
            for name in (self.trial.found, self.trial.base)
        ]
        if None in pair:
            return start + "the winner could not be asked."
        first, second, rows = shared_rows(pair[0], pair[1], self.metric)  # type: ignore[arg-type]
        found = compare(first, second, self.draws_of(len(rows)))
        # better and significantly so: a search tries many, of which one is best by chance
        word = (
            f"**{self.trial.found}** gains"
            if found.is_significant and found.difference > 0
            else "**no gain found**"
        )
        return (
            f"{start}{word}. On {len(rows)} unseen rows {self.metric} {first.value:.3f} against "
            f"{second.value:.3f} of the "
            f"hand-written one; difference {found.difference:+.3f} ({found.low:+.3f} to "
            f"{found.high:+.3f}), {found.in_words()}."
        )

    @property
    def needed(self) -> dict[str, int]:
        """Other outcome → rows that a difference of `power` from the heading one needs."""
        if not self.power:
            return {}
        # alone it is compared with itself: rows for a difference of that size
        others = [one for one in self.outcomes if one is not self.heading][:TESTED] or [self.heading]
        return {
            other.name: rows_needed(*shared_rows(self.heading, other, self.metric)[:2], self.power)
            for other in others
        }


def _most(said: Sequence[Any]) -> dict[str, float]:
    """The share of the answer that is said most."""
    # as text: labels, choices and writings alike
    counts = np.unique(np.array(said, dtype=str), return_counts=True)[1]
    return {"most_said": float(counts.max() / max(len(said), 1)) if len(counts) else 0.0}


def summary(found: Findings) -> dict[str, Any]:
    """For programs: the chosen prompt, the spread, the data, the templates, what went wrong."""
    raw = [
        line
        for line in found.lines
        # ensembles are no prompts
        if line["template"] != "ensemble" and line["calibration"] == found.outcomes[0].how
    ]
    chosen = None
    if found.chosen:
        chosen = {**found.line_of(found.chosen), "training_value": found.chosen.training}
    return {
        "entry": found.entry.name,
        "kind": found.kind,
        "metric": found.metric,
        "labels": list(found.labels),
        "rows": len(found.rows),
        "population": asdict(found.population),
        "measured_on": found.measured_on,
        "baseline": found.baseline,
        "chosen": chosen,
        "heading": {"prompt": found.heading.name, **found.line_of(found.heading)},
        "spread_raw": spread_of(raw, found.metric),
        "templates": templates_of(found),
        "models": found.models,
        "judge": found.judge,
        "gain": found.gain,
        "trial": asdict(found.trial) if found.trial else None,
        "notes": found.notes.lines(),
        "rows_needed": found.needed,
    }


def spread_of(lines: Sequence[dict[str, Any]], metric: str) -> dict[str, float]:
    """Best, median and worst."""
    values = np.array([line[metric] for line in lines])
    return {"best": float(values.max()), "median": float(np.median(values)), "worst": float(values.min())}


def templates_of(found: Findings) -> list[dict[str, str]]:
    """Each template that was asked: its exact text, its hash, and one prompt as it was asked."""
    seen: dict[str, dict[str, str]] = {}
    for answers in found.answers:
        name = answers.cell.template
        # the first request stands for all: an example is enough
        if name in seen or not answers.requests:
            continue
        template = found.templates.get(name)
        request = answers.requests[0]
        example = {
            # the slot, as the report says beside it
            "example": request.context + "▁" + request.rest,
            "answers": " / ".join(request.answers)[:200],
        }
        seen[name] = {
            "name": name,
            "text": template.text if template else "",
            "hash": template.hash if template else "",
            **example,
        }
    return list(seen.values())
