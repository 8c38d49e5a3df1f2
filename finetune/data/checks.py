"""What is wrong with the rows, said before any training. Knows raw columns; knows no tokenizer."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from datasets import ClassLabel, Dataset, Value

from finetune.data.columns import Columns, class_ids, class_names, find_columns, with_classes
from finetune.data.sources import DataArguments, FewShotArguments, Rows, sample
from finetune.errors import InputError

logger = logging.getLogger(__name__)


def without_empty(rows: Dataset, columns: Columns, drop: bool, where: str, lists: bool = False) -> Dataset:
    """Rows whose texts hold something; with `lists`, a text may be a list (words, messages, choices).

    Raises:
        InputError: columns that hold no texts, or rows without text, where `drop` does not allow to leave them out.
    """
    texts = [column for column in (columns.text, columns.pair) if column]
    for column, flag in zip(texts, ("text", "text_pair"), strict=False):
        feature = rows.features[column]
        kind = feature.dtype if isinstance(feature, Value) else "list"
        if kind not in ("string", "large_string", "null", *(["list"] if lists else [])):
            raise InputError(
                f"The column '{column}' of the {where} rows holds {feature!s:.120}; wanted texts. Set --{flag}_column"
            )
    values = list(zip(*(rows[column][:] for column in texts), strict=True))
    empty = [index for index, parts in enumerate(values) if not all(map(_has_text, parts))]
    if not empty:
        return rows
    named = ", ".join(map(str, empty[:5])) + (", ..." if len(empty) > 5 else "")
    if not drop:
        raise InputError(
            f"{len(empty)} of {len(rows)} {where} rows have no text in {' or '.join(texts)} (rows {named}). "
            "Mend them, or set --drop_empty_rows to leave them out"
        )
    logger.warning(
        "%d of %d %s rows have no text and are left out (rows %s)", len(empty), len(rows), where, named
    )
    gone = set(empty)
    kept = rows.select([index for index in range(len(rows)) if index not in gone])
    if len(kept) == 0:
        raise InputError(f"No {where} row has any text in {' or '.join(texts)}; set --text_column")
    return kept


def _has_text(value: object) -> bool:
    return bool(value.strip()) if isinstance(value, str) else bool(value)


def check_classes(rows: Dataset, column: str, labels: list[str], where: str) -> None:
    """Every row has one of the classes in `labels`.

    Raises:
        InputError: rows with a class that is not among them (an evaluation label never seen in training), or with none.
    """
    ids = class_ids(rows, column, labels)
    strange = [index for index, value in enumerate(ids) if value < 0]
    if strange:
        feature = rows.features[column]
        values = Counter(_name(feature, rows[column][index]) for index in strange)
        named = ", ".join(f"{value!r} ({count} rows)" for value, count in values.most_common(5))
        raise InputError(
            f"{len(strange)} {where} rows have a label in '{column}' that no training row has, or none: {named}; "
            f"wanted one of: {', '.join(labels[:20])}. Mend the rows, or set --label_column, --train_split or --eval_split"
        )


def _name(feature: object, value: object) -> object:
    if isinstance(feature, ClassLabel) and isinstance(value, int) and 0 <= value < feature.num_classes:
        return feature.int2str(value)
    return "no label" if value in (None, -1) else value


def seen_classes(rows: Dataset, column: str, labels: list[str]) -> list[str]:
    """The classes that training rows really have, in order.

    Raises:
        InputError: only one class, so that there is nothing to learn.
    """
    counts = Counter(class_ids(rows, column, labels))
    seen = [name for index, name in enumerate(labels) if counts[index]]
    if len(seen) < 2:
        only = f"one class only ({seen[0]!r})" if seen else "no class at all"
        raise InputError(
            f"The training rows have {only} in '{column}'; wanted two or more. Set --train_split, --label_column or --max_train_rows "
            "(a file sorted by label may hold one class in its first rows)"
        )
    return seen


def check_shots(rows: Dataset, column: str, labels: list[str], shots: int) -> int:
    """Number of rows that make `shots` of each class.

    Raises:
        InputError: no shot at all, or a class with fewer rows.
    """
    counts = Counter(class_ids(rows, column, labels))
    fewest = min(range(len(labels)), key=lambda index: counts[index])
    if not 0 < shots <= counts[fewest]:
        raise InputError(
            f"--shots_per_class {shots}: the class '{labels[fewest]}' has {counts[fewest]} rows; wanted from 1 to as many"
        )
    return shots * len(labels)


def few_shots(data: DataArguments) -> tuple[int | None, int]:
    """Rows of each class to train on, None for no such bound, and the seed of the training sample."""
    if not isinstance(data, FewShotArguments):
        return None, data.sample_seed
    return (
        data.shots_per_class,
        data.sample_seed if data.train_sample_seed is None else data.train_sample_seed,
    )


def overlap(train: Dataset, evaluation: Dataset, key: Callable[[dict], str]) -> int:
    """Number of evaluation rows whose text, lower-cased, also stands in the training rows; more than none is said in the log."""
    known = {key(row) for row in train}
    count = sum(key(row) in known for row in evaluation)
    if count:
        logger.warning("%d of %d evaluation rows also stand in the training rows", count, len(evaluation))
    return count


def examine_classes(rows: Rows, data: DataArguments, pair: bool) -> tuple[Rows, Columns, list[str]]:
    """Rows for a task on classes, sampled and checked: (rows, columns, names of the classes that training rows have).

    Raises:
        InputError: whatever would make the training fail or its figures mean nothing; each names its flag.
    """
    assert rows.train is not None and rows.eval is not None
    columns = find_columns(rows.train, data, pair)
    evaluation_columns = find_columns(rows.eval, data, pair)
    if columns != evaluation_columns:
        raise InputError(
            f"Training rows have the columns {columns}, evaluation rows {evaluation_columns}; set --eval_split"
        )
    declared = class_names(rows.train, columns.label)
    train = without_empty(with_classes(rows.train, columns.label), columns, data.drop_empty_rows, "training")
    evaluation = without_empty(rows.eval, columns, data.drop_empty_rows, "evaluation")
    check_classes(train, columns.label, declared, "training")
    labels = seen_classes(train, columns.label, declared)
    check_classes(evaluation, columns.label, labels, "evaluation")
    limit, (shots, seed) = data.max_train_rows, few_shots(data)
    if shots is not None:
        if limit is not None:
            raise InputError(
                "--shots_per_class and --max_train_rows both say how many rows to train on; leave one out"
            )
        limit = check_shots(train, columns.label, labels, shots)
    train = sample(train, limit, seed, columns.label)
    evaluation = sample(
        with_classes(evaluation, columns.label), data.max_eval_rows, data.sample_seed, columns.label
    )
    seen_classes(train, columns.label, labels)
    overlap(
        train,
        evaluation,
        lambda row: " ".join(str(row[c]) for c in (columns.text, columns.pair) if c).lower(),
    )
    return Rows(train, evaluation, rows.name), columns, labels
