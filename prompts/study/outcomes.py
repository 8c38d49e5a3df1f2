"""A cell's answers, of whatever kind, after one calibration or filter → figures that reports and tests read
alike.

Knows answers and measures; asks no model and writes no files.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from finetune.errors import InputError
from prompts.study.asking import Cell
from prompts.study.measures import Measure, mean_of, of_labels
from prompts.study.rows import StudyRow
from prompts.study.weighed import Answers, ChoiceAnswers, said
from prompts.study.written import Written

logger = logging.getLogger(__name__)
AnyAnswers = Answers | ChoiceAnswers | Written


@dataclass(frozen=True)
class Outcome:
    """One cell, one way.

    Attributes:
        places: numbers of the unseen rows that were asked.
        measures: figures on those rows, by name.
        training: the heading figure on the training rows, None where there are none.
        said: what was said of each row, in words.
        right: the score of each row where the heading figure is a mean.
    """

    cell: Cell
    how: str
    places: np.ndarray
    measures: dict[str, Measure]
    training: float | None
    said: list[str]
    answers: AnyAnswers = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.cell.model} {self.cell.name}, {self.how}"

    @cached_property
    def at(self) -> dict[int, int]:
        """Number of a row → its place among those asked."""
        return {int(row): place for place, row in enumerate(self.places)}


def outcomes(
    answers: Sequence[AnyAnswers],
    parts: dict[str, list[StudyRow]],
    labels: Sequence[str],
    metric: str,
    hows: Sequence[str] | None = None,
) -> list[Outcome]:
    """Every cell, every way.

    Args:
        parts: training and unseen rows.
        hows: ways to keep (default: all of each cell).
    """
    return [
        _outcome(one, how, parts, labels, metric)
        for one in answers
        for how in one.hows
        if hows is None or how in hows
    ]


def _outcome(
    answers: AnyAnswers, how: str, parts: dict[str, list[StudyRow]], labels: Sequence[str], metric: str
) -> Outcome:
    measures = measures_of(answers, how, "unseen", parts, labels)
    # after computing: which figures there are depends on the answers
    if metric not in measures:
        raise InputError(
            f"No metric '{metric}' of these answers; there are: {', '.join(measures)}. Set --metric"
        )
    training = None
    # the heading one alone: the others would be read by nobody
    if len(answers.rows("training")):
        training = measures_of(answers, how, "training", parts, labels, only=metric)[metric].value
    return Outcome(
        answers.cell, how, answers.rows("unseen"), measures, training, in_words(answers, how, labels), answers
    )


def measures_of(
    answers: AnyAnswers,
    how: str,
    part: str,
    parts: dict[str, list[StudyRow]],
    labels: Sequence[str],
    *,
    only: str | None = None,
) -> dict[str, Measure]:
    """Figures on one part, by name; `only` one where the others would cost."""
    if isinstance(answers, Written):
        return answers.measures(how, part, only is None)
    if isinstance(answers, ChoiceAnswers):
        # choices have no classes over rows
        return {"accuracy": mean_of(answers.right(how, part))}
    gold = np.array([parts[part][i].label for i in answers.rows(part)], dtype=int)
    return of_labels(said(answers.scores(how, part)), gold, len(labels))


def in_words(answers: AnyAnswers, how: str, labels: Sequence[str]) -> list[str]:
    """What was said of each unseen row, "" where nothing was."""
    if isinstance(answers, Written):
        # several drawn answers stand side by side
        return [" | ".join(row) for row in answers.answers(how)]
    chosen = said(answers.scores(how))
    if isinstance(answers, ChoiceAnswers):
        return [
            "" if one < 0 else texts[one] for one, texts in zip(chosen, answers.texts["unseen"], strict=True)
        ]
    return ["" if one < 0 else labels[one] for one in chosen]


def chosen_of(found: Sequence[Outcome]) -> Outcome | None:
    """The outcome with the best figure on the training rows, the first of equal ones; None where nothing was
    chosen on."""
    tried = [one for one in found if one.training is not None]
    # of one outcome alone nothing was chosen
    return max(tried, key=lambda one: one.training or 0.0) if len(tried) > 1 else None


def shared_rows(first: Outcome, second: Outcome, metric: str) -> tuple[Measure, Measure, np.ndarray]:
    # prompts may have left out different rows
    """One figure of two outcomes on the rows that both were asked, and the numbers of those rows."""
    rows = np.intersect1d(first.places, second.places)
    both = [
        one.measures[metric].of(np.array([one.at[int(row)] for row in rows], dtype=int))
        for one in (first, second)
    ]
    return both[0], both[1], rows


def baseline(
    answers: AnyAnswers, parts: dict[str, list[StudyRow]], labels: Sequence[str], metric: str
) -> dict[str, Any]:
    """What one gets without reading: always the most frequent label, or a choice drawn by chance; nothing for
    texts."""
    if not isinstance(answers, (ChoiceAnswers, Written)):
        gold = np.array([row.label for row in parts["unseen"]], dtype=int)
        # the most frequent label of the unseen rows: what a constant answer would get at best
        most = int(np.bincount(gold, minlength=len(labels)).argmax())
        figures = of_labels(np.full(len(gold), most), gold, len(labels))
        return {"majority": labels[most], metric: figures[metric].value, "chance": 1 / len(labels)}
    if isinstance(answers, ChoiceAnswers):
        places = answers.gold["unseen"]
        counts = [len(texts) for texts in answers.texts["unseen"]]
        # choices by place: always saying the first, or another
        most = int(np.bincount(places).argmax())
        return {
            "majority": f"the {most + 1}. choice",
            metric: float((places == most).mean()),
            "chance": float(np.mean(1 / np.array(counts))),
        }
    return {}
