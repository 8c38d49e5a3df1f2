"""Answers with grades, whole or step by step → a question, what was answered, and the grades. Knows columns
alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from datasets import Dataset, concatenate_datasets

from finetune.data.columns import Columns, listed
from finetune.data.conversations import MessageError
from finetune.data.layouts import Fields, first_of
from finetune.data.places import columns_of
from finetune.data.preferred import (
    SAID,
    answered,
    as_made,
    as_verdict,
    named_answer,
    of_questions,
    question_of,
    with_columns,
)
from finetune.data.questions import Laid, as_tools, asked_text, strange_keys
from finetune.data.sources import DataArguments
from finetune.errors import InputError

STEPS, STEP_VERDICTS = ("completions", "steps"), ("labels", "step_labels", "ratings")


def lay_out_graded(rows: Dataset, data: DataArguments, names: Sequence[str]) -> Laid:
    """A question, an answer and numbers under `names` → prompt, completion and those columns, None where a
    number is missing; and tools where there are any.

    Raises:
        InputError: columns that are missing, or a grade that is no number, with its place.
    """
    there = columns_of(rows)
    said = named_answer(data, there) or first_of(SAID, there)
    lacking = [name for name in names if name not in there]
    if said is None or lacking:
        missing = [repr(name) for name in (*lacking, *(["completion"] if said is None else []))]
        raise InputError(
            f"No column {listed(missing)} in {data.name}; it has {', '.join(there)}; wanted prompt, "
            "completion and numbers. Set --attributes, --completion_column or --dataset_name"
        )
    fields = _asked(rows, data, (said, *names))
    plain = fields.plain and isinstance(rows[0][said], str) and isinstance(rows[0][fields.asked or ""], str)

    def graded(row: dict[str, Any]) -> dict[str, Any]:
        one = answered(row, fields, said, plain) | {name: as_grade(name, row[name]) for name in names}
        return one | ({"tools": as_tools(row[fields.tools])} if fields.tools else {})

    made = as_made(rows, ("prompt", "completion", *names), graded)
    # apart: numbers are columns as they are, whatever form messages take
    grades = {name: made.pop(name) for name in names}
    used = {**fields.used(), "completion": [said], "label": list(names)}
    return Laid(
        _beside(with_columns(_kept(rows), made), grades), Columns("prompt", None, "completion"), used,
        lambda row: f"{row.get(fields.asked or '')}\x00{row[said]}", fields.layout,
        strange=strange_keys(rows, fields, (said,)),
        turns={"prompt": "user", "completion": "assistant"}, further=(*names, "tools"),
    )  # fmt: skip


def lay_out_steps(rows: Dataset, data: DataArguments) -> Laid:
    """A question, the steps of an answer and whether each is right → prompt, completions, labels: TRL's
    stepwise layout.

    Raises:
        InputError: columns that are missing, steps without a verdict each, with their place.
    """
    there = columns_of(rows)
    steps = named_answer(data, there) or first_of(STEPS, there)
    verdicts = data.label_column or first_of(STEP_VERDICTS, there)
    if steps is None or verdicts is None:
        raise InputError(
            f"No columns with steps and a verdict for each in {data.name}; it has {', '.join(there)}; "
            "wanted prompt, completions (a list of steps) and labels (true or false for "
            "each). Set --completion_column, --label_column or --dataset_name"
        )
    fields = _asked(rows, data, (steps, verdicts))

    def judged(row: dict[str, Any]) -> dict[str, Any]:
        told = {"prompt": asked_text(row, fields), "completions": _steps(row[steps], row[verdicts])}
        return told | {"labels": [as_verdict(value) for value in row[verdicts]]}

    made = as_made(rows, ("prompt", "completions", "labels"), judged)
    used = {**fields.used(), "completion": [steps], "label": [verdicts]}
    return Laid(
        _beside(_kept(rows), made), Columns("prompt", None, "completions"), used,
        lambda row: "\x00".join([str(row.get(fields.asked or "")), *(row[steps] or [])]), fields.layout,
        turns={"prompt": "user"}, further=("completions", "labels"),
    )  # fmt: skip


def _asked(rows: Dataset, data: DataArguments, others: Sequence[str]) -> Fields:
    # --label_column names verdicts here, not an answer
    fields = question_of(rows, replace(of_questions(data), label_column=None), others)
    if fields is None:
        raise InputError(
            f"No column with a question in {data.name}; it has {', '.join(columns_of(rows))}. Set "
            f"{of_questions(data).text_option}"
        )
    return fields


def _kept(rows: Dataset) -> Dataset:
    return rows.select_columns([name for name in rows.column_names if name == "id" or name.startswith("__")])


def _beside(rows: Dataset, made: dict[str, list[Any]]) -> Dataset:
    added = Dataset.from_dict(made)
    return concatenate_datasets([rows, added], axis=1) if rows.column_names else added


def _steps(steps: Any, verdicts: Any) -> list[str]:
    texts = isinstance(steps, list) and all(isinstance(step, str) for step in steps)
    if not texts or not isinstance(verdicts, list) or len(steps) != len(verdicts):
        raise MessageError("not a list of steps with as many verdicts")
    return steps


def as_grade(name: str, value: Any) -> float | None:
    """A grade as a number; None where there is none.

    Raises:
        MessageError: something that is no number.
    """
    # NaN is how tables say that a cell is empty
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise MessageError(f"{value!r} in '{name}'; wanted a number")
    return float(value)
