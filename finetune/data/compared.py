"""Answers beside each other and which one is better → a column of better and one of worse answers.
Knows the names that published comparisons use; knows no layout of questions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from finetune.data.accounting import Used
from finetune.data.cells import with_cells
from finetune.data.places import columns_of, place_of, places_of
from finetune.data.sources import DataArguments
from finetune.errors import InputError

logger = logging.getLogger(__name__)

FIRST, SECOND, TIE = 0, 1, None
# names of two answers → names of the verdict on them, and what of it says that the first is the better one
SIDES: tuple[tuple[tuple[str, str], tuple[str, ...], Sequence[Any], Sequence[Any]], ...] = (
    (("response_0", "response_1"), ("better_response_id", "safer_response_id"), (0,), (1,)),
    # Stanford's preferences: `labels` is 1 where the first is preferred
    (("human_ref_A", "human_ref_B"), ("labels",), (1,), (0,)),
    (("output_1", "output_2"), ("preference",), (1,), (2,)),
    (("response_1", "response_2"), ("preference",), (1,), (2,)),
    (("response_a", "response_b"), ("winner",), ("a", "model_a"), ("b", "model_b")),
    (("conversation_a", "conversation_b"), ("winner",), ("a", "model_a"), ("b", "model_b")),
    (("answer_0", "answer_1"), ("better", "label"), (0,), (1,)),
)
TIED = ("tie", "tie (bothbad)", "both", "equal", "bothbad")
# names of two scores, of which the higher is the better
SCORED = ((("answer_0", "answer_1"), ("score_0", "score_1")),)
LISTS, CHOICE = ("summaries", "completions", "answers", "responses"), ("choice",)
SAID_IN, RANKS, GRADES = (
    ("text", "answer", "response", "output"),
    ("rank",),
    ("overall_score", "score", "rating"),
)


@dataclass(frozen=True)
class Compared:
    """Rows with `chosen` and `rejected`, the columns that these are made of, and the question's where it had
    another form."""

    rows: Dataset
    answers: list[str]
    verdict: list[str]
    asked: list[str]

    def used(self, used: Used) -> Used:
        """What the columns of the file are for."""
        asked = {"text": self.asked} if self.asked else {}
        return used | asked | {"chosen, rejected": self.answers, "verdict": self.verdict}


GRADED = {
    "scores": 1.0,
    "ratings": 1.0,
    "rewards": 1.0,
    "ranks": -1.0,
    "rankings": -1.0,
}  # lists beside answers


def is_compared(there: Sequence[str]) -> bool:
    """Whether columns hold answers beside each other, of which one is better."""
    return _form(there, None) is not None


def better_and_worse(rows: Dataset, data: DataArguments) -> Compared | None:
    """The rows with the better and the worse answer apart; None where they are of no such form. Ties are left
    out and counted.

    Raises:
        InputError: a verdict that says nothing, or rows that are all ties.
    """
    there = columns_of(rows)
    form = _form(there, data.label_column)
    if form is None:
        return None
    answers, verdict, choose = form
    chosen: list[Any] = []
    rejected: list[Any] = []
    kept = []
    for index, row in enumerate(rows):
        try:
            found = choose(row)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            said = " and ".join(f"'{name}' {row[name]!r:.60}" for name in verdict) or "what is said of them"
            raise InputError(
                f"In {place_of(rows, index)} {said} tells no better answer of {' and '.join(answers)}"
                f"{f' ({error})' if isinstance(error, ValueError) else ''}. Mend the row or leave it out"
            ) from error
        if found is None:
            continue
        kept.append(index)
        chosen.append(found[0])
        rejected.append(found[1])
    if not kept:
        raise InputError(f"All {len(rows)} rows of {data.name} are ties, of which nothing can be learnt")
    if len(kept) < len(rows):
        logger.warning("%d of %d rows are ties and are left out", len(rows) - len(kept), len(rows))
    bare = rows.select(kept).remove_columns([*answers, *verdict])
    bare, asked = _with_question(bare, data)
    for name, values in (("chosen", chosen), ("rejected", rejected)):
        bare = with_cells(bare, name, values)
    return Compared(bare, answers, verdict, asked)


def with_one_question(rows: Dataset) -> Dataset:
    """Pairs of conversations that have a prompt in common.

    Raises:
        InputError: two that begin with different messages.
    """
    unlike = [n for n, row in enumerate(rows) if row["prompt"] == [] and row["chosen"] and row["rejected"]]
    if unlike:
        raise InputError(
            f"{len(unlike)} pairs begin with two questions ({places_of(rows, unlike)}); wanted the same one "
            "for chosen and rejected. Mend the rows or leave them out"
        )
    return rows


Choose = Callable[[dict[str, Any]], tuple[Any, Any] | None]


def _form(there: Sequence[str], named: str | None) -> tuple[list[str], list[str], Choose] | None:
    """Columns of answers and of the verdict, and row → (better, worse) or None for a tie."""
    for sides, verdicts, first, second in SIDES:
        # named by the user, or the first that there is
        verdict = next((name for name in ([named] if named else verdicts) if name in there), None)
        if set(sides) <= set(there) and verdict is not None:
            return [*sides], [verdict], _by_verdict(sides, verdict, first, second)
    for sides, scores in SCORED:
        if {*sides, *scores} <= set(there):
            return [*sides], [*scores], _by_scores(sides, scores)
    answers = next((name for name in LISTS if name in there), None)
    if answers is None:
        return None
    choice = next((name for name in CHOICE if name in there), None)
    if choice is not None:
        return [answers], [choice], _by_choice(answers, choice)
    graded = next((name for name in GRADED if name in there), None)
    if graded is not None:
        return [answers], [graded], _by_list(answers, graded, GRADED[graded])
    # ranked among themselves: anything else under such a name is no comparison
    return ([answers], [], _by_rank(answers)) if {"prompt", "instruction"} & set(there) else None


def _by_verdict(sides: tuple[str, str], verdict: str, first: Sequence[Any], second: Sequence[Any]) -> Choose:
    def choose(row: dict[str, Any]) -> tuple[Any, Any] | None:
        said = row[verdict]
        if isinstance(said, str):
            said = said.strip().lower()
            if said in TIED:
                return None
            said = int(said) if said.isdigit() else said
        if said not in (*first, *second):
            raise ValueError(f"wanted {first[0]!r} or {second[0]!r}")
        one, other = row[sides[0]], row[sides[1]]
        return (one, other) if said in first else (other, one)

    return choose


def _by_scores(sides: tuple[str, str], scores: tuple[str, str]) -> Choose:
    def choose(row: dict[str, Any]) -> tuple[Any, Any] | None:
        a, b = (float(row[name]) for name in scores)
        if not math.isfinite(a - b):
            raise ValueError("wanted two numbers")
        one, other = row[sides[0]], row[sides[1]]
        return None if a == b else (one, other) if a > b else (other, one)

    return choose


def _by_choice(answers: str, choice: str) -> Choose:
    def choose(row: dict[str, Any]) -> tuple[Any, Any] | None:
        one, other = (_said(answer) for answer in row[answers])
        return ((one, other), (other, one))[[0, 1].index(row[choice])]

    return choose


def _by_rank(answers: str) -> Choose:
    def choose(row: dict[str, Any]) -> tuple[Any, Any] | None:
        # a lower rank is better, a higher score too
        ranked = sorted((_rank(answer), place) for place, answer in enumerate(row[answers]))
        (best, first), (worst, last) = ranked[0], ranked[-1]
        return None if best == worst else (_said(row[answers][first]), _said(row[answers][last]))

    return choose


def _by_list(answers: str, graded: str, sign: float) -> Choose:
    def choose(row: dict[str, Any]) -> tuple[Any, Any] | None:
        grades = [sign * float(grade) for grade in row[graded]]
        if len(grades) != len(row[answers]) or not all(map(math.isfinite, grades)):
            raise ValueError("wanted a number for each answer")
        best, worst = (grades.index(kind(grades)) for kind in (max, min))
        return (
            None if grades[best] == grades[worst] else (_said(row[answers][best]), _said(row[answers][worst]))
        )

    return choose


def _said(answer: Any) -> str:
    if isinstance(answer, str):
        return answer
    return next(answer[name] for name in SAID_IN if isinstance(answer.get(name), str))


def _rank(answer: Any) -> float:
    if not isinstance(answer, dict):
        raise ValueError(f"an answer without {', '.join((*RANKS, *GRADES))}")
    for names, sign in ((RANKS, 1.0), (GRADES, -1.0)):
        for name in names:
            if answer.get(name) is not None:
                return sign * float(answer[name])
    raise ValueError(f"an answer without {', '.join((*RANKS, *GRADES))}")


def _with_question(rows: Dataset, data: DataArguments) -> tuple[Dataset, list[str]]:
    """The question as a column `prompt` where it stands in a record, or under a name that means something
    else; and the column it was.
    """
    there = columns_of(rows)
    if data.text_column is not None or "prompt" in there:
        return rows, []
    for name, parts in (
        ("info", ("title", "post", "article")),
        ("question", ("full_text",)),
        ("history", ()),
    ):
        value = rows[0][name] if name in there else None
        # a list under `history` is earlier turns, and a text under `question` needs nothing
        if not (isinstance(value, dict) and any(value.get(part) for part in parts)) and not (
            name == "history" and isinstance(value, str)
        ):
            continue
        texts = [
            cell if isinstance(cell, str) else "\n\n".join(cell[part] for part in parts if cell.get(part))
            for cell in rows[name]
        ]
        return with_cells(rows.remove_columns(name), "prompt", texts), [name]
    return rows, []
