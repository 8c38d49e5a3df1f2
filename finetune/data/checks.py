"""What is wrong with the rows, said before any training. Knows raw columns; knows no tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from datasets import Dataset, List, Value

from finetune.data.columns import Columns
from finetune.data.places import columns_of, places_of
from finetune.data.sources import DataArguments, FewShotArguments, Rows, sample
from finetune.errors import InputError

logger = logging.getLogger(__name__)

Check = Callable[[Dataset, Columns, str], None]


def without_empty(rows: Dataset, columns: Columns, drop: bool, where: str, lists: bool = False) -> Dataset:
    """Rows whose texts hold something; with `lists`, a text may be a list (words, messages, choices).

    Raises:
        InputError: columns that hold no texts, or rows without text, where `drop` does not allow to leave
            them out.
    """
    texts = [column for column in (columns.text, columns.pair) if column]
    for column, flag in zip(texts, ("text", "text_pair"), strict=False):
        feature = rows.features[column]
        # `null` is a column without any value: its rows are reported as empty below, with their places
        kind = feature.dtype if isinstance(feature, Value) else "list"
        if kind not in ("string", "large_string", "null", *(["list"] if lists else [])):
            raise InputError(
                f"The column '{column}' of the {where} rows holds {feature!s:.120}; wanted texts. Set "
                f"--{'label' if column == columns.label else flag}_column"
            )
    # whole columns: row by row every access would decode all other columns
    values = list(zip(*(rows[column][:] for column in texts), strict=True))
    empty = [index for index, parts in enumerate(values) if not all(map(_has_text, parts))]
    if not empty:
        return rows
    named = places_of(rows, empty)
    if not drop:
        raise InputError(
            f"{len(empty)} of {len(rows)} {where} rows have no text in {' or '.join(texts)} ({named}). Mend "
            "them, or set --drop_empty_rows to leave them out"
        )
    kept = _left_out(rows, empty, where, "text")
    if len(kept) == 0:
        raise InputError(f"No {where} row has any text in {' or '.join(texts)}; set --text_column")
    return kept


def without_unlabelled(rows: Dataset, columns: Columns, drop: bool, where: str) -> Dataset:
    """Rows with a label; none at all in any row, and labels that are texts, are for other checks to say.

    Raises:
        InputError: rows without one, where `drop` does not allow to leave them out; lists may be missing,
            which can say that nothing is named.
    """
    if columns.label in (columns.text, columns.pair):
        return rows
    # NaN is what a table has in an empty cell
    bare = [place for place, one in enumerate(rows[columns.label][:]) if one is None or one != one]
    if not bare or len(bare) == len(rows):
        return rows
    if drop:
        return _left_out(rows, bare, where, "label")
    if isinstance(rows.features[columns.label], Value):
        raise InputError(
            f"{len(bare)} of {len(rows)} {where} rows have no label in '{columns.label}' "
            f"({places_of(rows, bare)}). Mend them, or set --drop_empty_rows to leave them out"
        )
    return rows


def _left_out(rows: Dataset, gone: list[int], where: str, what: str) -> Dataset:
    logger.warning(
        "%d of %d %s rows have no %s and are left out (%s)", len(gone), len(rows), where, what,
        places_of(rows, gone),
    )  # fmt: skip
    away = set(gone)
    return rows.select([place for place in range(len(rows)) if place not in away])


def _has_text(value: object) -> bool:
    # a text of blanks holds nothing; a list counts by its length
    return bool(value.strip()) if isinstance(value, str) else bool(value)


def not_trained(trained: np.ndarray) -> np.ndarray:
    """Places of the rows that were not trained on."""
    return np.flatnonzero(~trained)


def few_shots(data: DataArguments) -> tuple[int | None, int]:
    """Rows of each class to train on, None for no such bound, and the seed of the training sample."""
    if not isinstance(data, FewShotArguments):
        return None, data.sample_seed
    return (
        data.shots_per_class,
        data.sample_seed if data.train_sample_seed is None else data.train_sample_seed,
    )


def overlap(train: Dataset, evaluation: Dataset, key: Callable[[dict], str]) -> int:
    """Number of evaluation rows whose text, lower-cased, also stands in the training rows; more than
    none is said in the log.
    """
    # by text alone: a repeated text with another label leaks too
    known = {key(row) for row in train}
    count = sum(key(row) in known for row in evaluation)
    if count:
        logger.warning("%d of %d evaluation rows also stand in the training rows", count, len(evaluation))
    return count


def checked_splits(
    rows: Rows, data: DataArguments, columns: Columns, check: Check, lists: bool = False
) -> tuple[Rows, Columns]:
    """What all tasks share: columns in both splits, rows without text, the task's own check, samples,
    rows in both splits.
    """
    assert rows.train is not None and rows.eval is not None
    shots, train_seed = few_shots(data)
    # shots are counted by class, which only classification's own check knows how to do
    if shots is not None:
        raise InputError("--shots_per_class wants a task with one class a row; set --max_train_rows")
    parts = []
    splits = [
        (rows.train, "training", data.max_train_rows, train_seed),
        (rows.eval, "evaluation", data.max_eval_rows, data.sample_seed),
    ]
    alone = rows.train is rows.eval  # to be assessed: nothing is trained on
    # `alone` is 0 or 1: of one split the training entry is skipped
    for part, where, limit, seed in splits[alone:]:
        flags = {
            columns.text: "text_column",
            columns.pair: "text_pair_column",
            columns.label: "label_column",
        }
        missing = [name for name in flags if name and name not in part.column_names]
        if missing:
            # in the rows of the training a name is wrong; in others the split may be
            flag = flags[missing[0]] if where == "training" else "eval_split"
            raise InputError(
                f"No column '{missing[0]}' in the {where} rows; they have {', '.join(columns_of(part))}. "
                f"Set --{flag}"
            )
        # checked before sampling: a fault outside the sample is a fault of the file
        part = without_empty(part, columns, data.drop_empty_rows, where, lists)
        part = without_unlabelled(part, columns, data.drop_empty_rows, where)
        check(part, columns, where)
        parts.append(sample(part, limit, seed))
    if not alone:
        overlap(
            parts[0],
            parts[1],
            lambda row: " ".join(str(row[name]) for name in (columns.text, columns.pair) if name).lower(),
        )
    # of one split both are the same object, which says that nothing is trained
    return Rows(parts[0], parts[-1], rows.name), columns


def want_lists(rows: Dataset, column: str) -> None:
    """The column holds a list a row.

    Raises:
        InputError: it holds something else.
    """
    if not isinstance(rows.features[column], List):
        raise InputError(
            f"The column '{column}' holds {rows.features[column]}; wanted a list a row. Set --label_column "
            "or --text_column"
        )
