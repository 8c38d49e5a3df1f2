"""Several labels for a text, or none: from raw rows to figures. Knows columns, tokenizers and arrays; knows
no model and no trainer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from datasets import ClassLabel, Dataset, List
from transformers import PreTrainedTokenizerBase

from finetune.data.checks import checked_splits, want_lists
from finetune.data.columns import Columns, label_lists
from finetune.data.encode import sequence
from finetune.data.labelled import lay_out_label_sets, say_classes, settled_labels
from finetune.data.laying import laid_out
from finetune.data.places import place_of
from finetune.data.sources import DataArguments, Rows
from finetune.errors import InputError
from finetune.metrics.bootstrap import f1_figure
from finetune.tasks.classification import ACCURACY
from finetune.tasks.task import Answer, Asked, Examined


def examine(rows: Rows, data: DataArguments) -> Examined:
    """Rows with a list of labels each, or a list of records with one (aspects.aspect); their names are those
    of training rows.

    Raises:
        InputError: a label column without lists, or evaluation labels that no training row has.
    """
    # before the layout, which looks for the column by its dotted name
    rows = rows.changed(lambda part: with_inner(part, data.label_column))
    rows, columns = laid_out(rows, data, lay_out_label_sets)
    assert rows.train is not None and rows.eval is not None
    # each split, since files may differ
    for part in (rows.train, rows.eval):
        want_lists(part, columns.label)
    whole, held_out = settled_labels((rows.train, rows.eval), columns.label, data)
    # one split stays one: then nothing is trained
    rows = replace(rows, train=whole, eval=whole if rows.train is rows.eval else held_out)
    assert rows.train is not None and rows.eval is not None
    present = [
        names
        for names in label_lists(rows.train.features[columns.label], rows.train[columns.label][:], rows.train)
        if names
    ]
    inner = rows.train.features[columns.label].feature
    seen = {name for names in present for name in names}
    # sorted, so that ids don't depend on the order of rows
    labels = list(inner.names) if isinstance(inner, ClassLabel) else sorted(seen)
    if not seen:
        raise InputError(f"No training row has a label in '{columns.label}'; set --label_column")

    def check(part: Dataset, columns: Columns, where: str) -> None:
        for index, names in enumerate(
            label_lists(part.features[columns.label], part[columns.label][:], part)
        ):
            if not set(names) <= set(labels):
                strange = sorted(set(names) - set(labels))
                raise InputError(
                    f"The {where} {place_of(part, index)} has labels that no training row has: "
                    f"{', '.join(strange)}. Mend the rows"
                )

    examined, columns = checked_splits(rows, data, columns, check)
    counted = [
        (
            where,
            Counter(
                n
                for names in label_lists(part.features[columns.label], part[columns.label][:])
                for n in set(names)  # a label that a row says twice is one
            ),
        )
        for where, part in examined.splits()
    ]
    say_classes(labels, counted)
    return Examined(examined, columns, labels)


def with_inner(rows: Dataset, column: str | None) -> Dataset:
    """The rows with a column `records.entry` where they have a column of lists of records: each row's entries
    of that name.
    """
    # `aspects.aspect`: the column, then the key of its records
    outer, _, inner = (column or "").partition(".")
    records = rows.features[outer].feature if isinstance(rows.features.get(outer), List) else None
    if not isinstance(records, dict) or inner not in records:
        return rows
    values = [[record[inner] for record in row or []] for row in rows[outer]]
    return rows.add_column(f"{outer}.{inner}", values, feature=List(records[inner]))


def encode(
    rows: Dataset,
    columns: Columns,
    processor: PreTrainedTokenizerBase,
    max_length: int,
    labels: list[str] | None,
) -> Dataset:
    """One text and several labels a row, or none → features of `encode.sequence`, labels 0.0 or 1.0 for each
    class.
    """
    assert labels is not None
    # without labels: those of `sequence` are one class a row
    features = sequence(rows, columns, processor, max_length, None)
    present = label_lists(rows.features[columns.label], rows[columns.label][:])
    return features.add_column("labels", [[float(name in names) for name in labels] for names in present])


def read(kept: np.ndarray, asked: Asked) -> list[Answer]:
    """Logits [rows, classes] → the labels above one half; the score is the probability of just this set."""
    assert asked.labels is not None
    # each label by itself: a sigmoid, in float64
    chances = (1 / (1 + np.exp(-kept.astype(np.float64))))[asked.in_order()]
    gold = np.asarray(asked.features["labels"][:])[asked.in_order()] > 0.5
    return [
        {
            "gold": [name for name, there in zip(asked.labels, wanted, strict=True) if there],
            "prediction": [name for name, chance in zip(asked.labels, row, strict=True) if chance > 0.5],
            "score": float(np.maximum(row, 1 - row).prod()),
        }
        for wanted, row in zip(gold, chances, strict=True)
    ]


def shared_labels(answers: Sequence[Answer]) -> np.ndarray:
    """Labels said and right, said, and there, of each row."""
    pairs = [(set(answer["prediction"]), set(answer["gold"])) for answer in answers]
    # counts, not shares: micro-F1 is of their sums over all rows
    return np.array([[len(said & gold), len(said), len(gold)] for said, gold in pairs], dtype=float)


INTERVALS = ACCURACY | {"micro_f1": (shared_labels, f1_figure)}
