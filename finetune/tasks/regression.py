"""A number for a text, or for two: from raw rows to figures. Knows columns, tokenizers and arrays; knows no
model and no trainer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset
from transformers import PreTrainedTokenizerBase

from finetune.data.checks import checked_splits
from finetune.data.columns import PAIRS, Columns, pick_columns
from finetune.data.encode import sequence
from finetune.data.labelled import as_read
from finetune.data.laying import laid_out
from finetune.data.places import check_each, columns_of
from finetune.data.questions import Laid
from finetune.data.sources import DataArguments, Rows
from finetune.errors import InputError
from finetune.metrics.bootstrap import correlation
from finetune.models.heads import start_at_mean
from finetune.tasks.task import Answer, Asked, Examined

SCORES = ("score", "rating", "relatedness_score", "similarity", "target", "label")


def examine(rows: Rows, data: DataArguments) -> Examined:
    """Rows for a regression on one text, or on two where two are named or stand under usual names.

    Raises:
        InputError: a target that is no finite number, or the same in all training rows.
    """
    rows, columns = laid_out(rows, data, lay_out_numbers)
    return Examined(*checked_splits(rows, data, columns, check_numbers), None)


def lay_out_numbers(rows: Dataset, data: DataArguments) -> Laid:
    """One text or two, and a number; the columns stay as they are."""
    # two texts under usual names are a pair, unless one text is named
    usual = next((pair for pair in PAIRS if set(pair) <= set(columns_of(rows))), None)
    if data.text_pair_column is not None or (data.text_column is None and usual is not None):
        first, second = usual or ("text", "text_pair")
        return as_read(rows, pick_columns(rows, data, text=(first,), pair=(second,), label=SCORES))
    return as_read(rows, pick_columns(rows, data, label=SCORES))


def check_numbers(rows: Dataset, columns: Columns, where: str) -> None:
    """Every target is a finite number."""
    values = rows[columns.label][:]
    if any(isinstance(value, bool) for value in values):
        raise InputError(
            f"The column '{columns.label}' of the {where} rows holds true and false; wanted numbers. Set "
            "--task classification (or pairs, for two texts) to tell them apart, or --label_column"
        )
    # ids of classes are numbers without an order
    classes = isinstance(rows.features[columns.label], ClassLabel)

    def fault(value: Any) -> str | None:
        if not classes and isinstance(value, (int, float)) and math.isfinite(value):
            return None
        return f"has {value!r} in '{columns.label}'; wanted a number, without quotes"

    check_each(rows, where, [columns.label], fault, "Mend what stands there, or set --label_column")
    # evaluation rows may well be all alike
    if where == "training" and len(set(values)) < 2:
        raise InputError(
            f"All training rows have {values[0]!r} in '{columns.label}'; nothing could be learnt. Set "
            "--label_column"
        )


def start(network: Any, processor: Any, found: Examined) -> None:
    """A new head begins at the mean of the training targets."""
    assert found.rows.train is not None
    # else the first steps would only move the bias there
    start_at_mean(network, found.rows.train[found.columns.label][:])


def encode(
    rows: Dataset,
    columns: Columns,
    processor: PreTrainedTokenizerBase,
    max_length: int,
    labels: list[str] | None,
) -> Dataset:
    """One text, or two, and a number a row → features of `encode.sequence`, labels float."""
    features = sequence(rows, columns, processor, max_length, None)
    return features.add_column("labels", [float(value) for value in rows[columns.label]])


def read(kept: np.ndarray, asked: Asked) -> list[Answer]:
    """Logits [rows, 1] → numbers; there is no probability, so that the score is the number itself."""
    values = kept.reshape(-1)[asked.in_order()].tolist()
    return [
        {"gold": gold, "prediction": said, "score": said}
        for gold, said in zip(asked.rows[asked.columns.label], values, strict=True)
    ]


def moments(answers: Sequence[Answer]) -> np.ndarray:
    """Each row's part in the sums of a correlation, around the means, which keeps large numbers apart from
    small differences.
    """
    x, y = (np.array([float(answer[side]) for answer in answers]) for side in ("prediction", "gold"))
    # a correlation is the same whatever is taken away, and the sums stay small
    x, y = x - x.mean(), y - y.mean()
    return np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=1)


INTERVALS = {"pearson": (moments, correlation)}
