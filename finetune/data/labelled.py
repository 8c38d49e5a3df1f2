"""Texts with a class, a number or a set of labels, in the ways that they are published → columns.
Knows columns and labels alone.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel, Dataset, List, Value

from finetune.data.accounting import say
from finetune.data.columns import PAIRS, Columns, find_columns, pick_columns
from finetune.data.layouts import first_of
from finetune.data.places import columns_of, places_of
from finetune.data.questions import Laid
from finetune.data.sources import DataArguments, TextArguments
from finetune.errors import InputError

logger = logging.getLogger(__name__)

SETS = ("labels", "label", "categories", "tags", "topics")
PARTS = ("|", ";", ",")  # between the labels of a text, the first that stands in any
SHOWN = 30  # classes in the table
DASH = "-"  # the label of a row that nobody agreed on, in SNLI's own files


def lay_out_classes(rows: Dataset, data: DataArguments, pair: bool) -> Laid:
    """One text, or two, and a class a row; the columns stay as they are.

    Raises:
        InputError: a column that is missing.
    """
    columns = find_columns(rows, data, pair)
    # before anything looks at classes: names decide what -1 may mean
    rows = without_blank_labels(named_classes(rows, columns.label, data.class_names), columns.label)
    # the second text would be reported as unread: the hint says which task reads it
    two = next((p for p in PAIRS if set(p) <= set(columns_of(rows))), None)
    hint = ", or set --task pairs to read both" if two and not pair else ""
    return as_read(rows, columns, hint)


def as_read(rows: Dataset, columns: Columns, hint: str = "") -> Laid:
    """Rows whose columns are read as they are."""
    texts = [name for name in (columns.text, columns.pair) if name]

    def read(row: dict[str, Any]) -> str:
        return "\x00".join(
            " ".join(cell) if isinstance(cell, list) else str(cell) for cell in (row[name] for name in texts)
        )

    return Laid(rows, columns, {"text": texts, "label": [columns.label]}, read, hint=hint)


def named_classes(rows: Dataset, column: str, names: Sequence[str] | None) -> Dataset:
    """Rows whose classes 0, 1, ... have the names that were given.

    Raises:
        InputError: classes that are no numbers, or more of them than names.
    """
    if names is None:
        return rows
    feature = rows.features[column]
    inner = feature.feature if isinstance(feature, List) else feature
    values = {
        one
        for value in rows[column]
        for one in (value if isinstance(value, list) else [value])
        if one is not None
    }
    # a negative id passes: it is no class and is dealt with as unlabelled
    if not all(isinstance(one, int) for one in values) or (values and max(values) >= len(names)):
        raise InputError(
            f"--class_names names {len(names)} classes, and '{column}' holds "
            f"{', '.join(map(str, sorted(values, key=str)[-3:]))}; "
            f"wanted numbers from 0 to {len(names) - 1}. Set --class_names or --label_column"
        )
    if isinstance(inner, ClassLabel) and list(inner.names) == list(names):
        return rows
    named = ClassLabel(names=list(names))
    bare = Value("int64")
    plain = rows.cast_column(column, List(bare) if isinstance(feature, List) else bare)
    return plain.cast_column(column, List(named) if isinstance(feature, List) else named)


def labelled(
    parts: Sequence[tuple[Dataset, str]], column: str, data: TextArguments, drop: bool = False
) -> list[Dataset]:
    """Splits, each with its name, of rows that have a class: where -1 says that nobody gave one (see
    `is_unlabelled`), such rows are left out and counted.

    The same holds for `-` among names (SNLI's own files). Rows without any are left out where `drop`. Rows
    of which none would be left stay, for whoever looks at classes to say.

    Raises:
        InputError: -1 could be a class or none, and --minus_one doesn't say.
    """
    # told from all splits: one alone may have no -1 by chance
    unlabelled = is_unlabelled([rows for rows, _ in parts], column, data.minus_one)
    marked: set[Any] = {-1, DASH} if unlabelled else set()
    return [_with_label(rows, column, where, marked, drop) for rows, where in parts]


def is_unlabelled(parts: Sequence[Dataset], column: str, minus_one: str | None) -> bool:
    """Whether -1, or `-` among names, stands for no label: always among classes with names, and beside three
    or more (SNLI). Beside fewer it could be a scale (negative, neutral, positive); other numbers are classes.

    Raises:
        InputError: it could be either, and `minus_one` doesn't say.
    """
    given = {value for rows in parts for value in rows[column][:] if value is not None}
    if DASH in given:
        return _is_no_name(given - {DASH}, column, minus_one)
    if -1 not in given or not all(isinstance(one, int) for one in given):
        return False
    # a declared class has no name for -1, so that it can't be one
    if isinstance(parts[0].features[column], ClassLabel) or minus_one is not None:
        return minus_one != "keep"
    others = sorted(given - {-1})
    if others in ([0], [0, 1]):
        raise InputError(
            f"The labels in '{column}' are -1, {', '.join(map(str, others))}: -1 may be a class, as in a "
            "scale, or "
            "say that nobody gave one. Set --minus_one keep, or --minus_one drop to leave its rows out"
        )
    # 0, 1, 2, ... without gaps are ids; other numbers (ratings) may well hold -1
    return others == list(range(len(others))) and len(others) > 2


def _is_no_name(names: set[Any], column: str, minus_one: str | None) -> bool:
    """Whether `-` beside these names stands for no label; beside other signs (`+`) it is a class."""
    if minus_one is not None:
        return minus_one != "keep"
    if not all(isinstance(name, str) and any(map(str.isalpha, name)) for name in names):
        return False
    if len(names) < 3:
        raise InputError(
            f"The labels in '{column}' are '{DASH}', {', '.join(sorted(names))}: '{DASH}' may be a class, or "
            f"say that nobody gave one. Set --minus_one keep, or --minus_one drop to leave its rows out"
        )
    return True


def _with_label(rows: Dataset, column: str, where: str, marked: set[Any], drop: bool) -> Dataset:
    values = rows[column][:]
    gone = [place for place, value in enumerate(values) if value in marked or (drop and value is None)]
    # an all-unlabelled split is a wrong column rather than rows to leave out
    if not gone or len(gone) == len(rows):
        return rows
    logger.warning(
        "%d of %d %s rows have no label (%s in '%s') and are left out (%s)", len(gone), len(rows), where,
        " or ".join(sorted({"nothing" if values[n] is None else str(values[n]) for n in gone})), column,
        places_of(rows, gone),
    )  # fmt: skip
    away = set(gone)
    return rows.select([place for place in range(len(rows)) if place not in away])


def twins(counts: Counter[str]) -> dict[str, list[str]]:
    """Labels that differ by blanks or case alone: the most usual one, without blanks around it → all
    of them.
    """
    groups: dict[str, list[str]] = {}
    # the most usual spelling comes first in its group and names it
    for name, _ in counts.most_common():
        groups.setdefault(" ".join(name.split()).casefold(), []).append(name)
    return {" ".join(names[0].split()): names for names in groups.values() if len(names) > 1}


def settled_labels(parts: Sequence[Dataset], column: str, data: TextArguments) -> list[Dataset]:
    """Splits whose labels differ by more than blanks and case.

    Raises:
        InputError: labels that don't, where --near_labels does not say what to do with them.
    """
    named = [_named(rows, column) for rows in parts]
    # numbers have no blanks or case to differ by
    if data.near_labels == "keep" or None in named:
        return list(parts)
    # over all splits together: a spelling may stand in one alone
    counts = Counter(name for some in named for cell in some or () for name in cell)
    found = twins(counts)
    if not found:
        return list(parts)
    said = "; ".join(", ".join(f"{name!r} ({counts[name]})" for name in names) for names in found.values())
    if data.near_labels is None:
        raise InputError(
            f"Labels in '{column}' differ by blanks or case alone: {said}. "
            f"Set --near_labels merge to make them {', '.join(map(repr, found))}, or --near_labels keep if "
            "they are classes apart"
        )
    logger.warning("Labels of '%s' made one: %s", column, said)
    one = {name: usual for usual, names in found.items() for name in names}
    return [_renamed(rows, column, one) for rows in parts]


def _named(rows: Dataset, column: str) -> list[list[str]] | None:
    """Each row's class or classes by name; None where the column has no names."""
    feature = rows.features[column]
    inner = feature.feature if isinstance(feature, List) else feature
    cells = [cell if isinstance(feature, List) else [cell] for cell in rows[column][:]]
    if isinstance(inner, ClassLabel):
        # without a class: None and -1
        return [[inner.names[v] for v in cell or () if v is not None and v >= 0] for cell in cells]
    if not str(getattr(inner, "dtype", "")).endswith("string"):
        return None
    return [[v for v in cell or () if v is not None] for cell in cells]


def _renamed(rows: Dataset, column: str, one: dict[str, str]) -> Dataset:
    lists = isinstance(rows.features[column], List)
    cells = [list(dict.fromkeys(one.get(n, n) for n in cell)) for cell in _named(rows, column) or ()]
    values = cells if lists else [cell[0] if cell else None for cell in cells]
    kind = List(Value("string")) if lists else Value("string")
    return _with_column(rows, column, values, kind)


def _with_column(rows: Dataset, column: str, values: list[Any], kind: Any) -> Dataset:
    """The rows with other values in a column, which stays where it is."""
    return (
        rows.remove_columns(column).add_column(column, values, feature=kind).select_columns(rows.column_names)
    )


def without_blank_labels(rows: Dataset, column: str) -> Dataset:
    """The rows with no label where theirs is an empty text."""
    feature = rows.features[column]
    if not isinstance(feature, Value) or not str(feature.dtype).endswith("string"):
        return rows
    values = rows[column][:]
    if not any(value is not None and not value.strip() for value in values):
        return rows
    return _with_column(rows, column, [v if v is not None and v.strip() else None for v in values], feature)


def say_classes(names: Sequence[str], counted: Sequence[tuple[str, Counter[str]]]) -> None:
    """Print the classes with their counts, split by split."""
    wide = max(len(name) for name in names)
    # of many classes the largest; of few all, in the order of their ids
    shown = (
        sorted(names, key=lambda name: -counted[0][1][name])[:SHOWN] if len(names) > SHOWN else list(names)
    )
    lines = [f"{len(names)} classes ({', '.join(where for where, _ in counted)}):"]
    lines += [
        f"  {name:<{min(wide, 40)}} {', '.join(str(counts[name]) for _, counts in counted)}" for name in shown
    ]
    lines += [f"  ... and {len(names) - len(shown)} with fewer rows"] if len(shown) < len(names) else []
    say("\n".join(lines))


def lay_out_label_sets(rows: Dataset, data: DataArguments) -> Laid:
    """A text and several labels a row, or none: lists of names, 0/1 vectors, `a|b`, or a column of 0 and 1
    for each label.

    Raises:
        InputError: a column that is missing, or a label column that holds none of these.
    """
    there = columns_of(rows)
    column = data.label_column or first_of(SETS, there)
    # only without a column of sets: flags of 0 and 1 beside one say something else
    if column is None and (apart := _columns_of_labels(rows)):
        return _from_columns(rows, data, apart)
    columns = pick_columns(rows, data, label=SETS)
    feature, values = rows.features[columns.label], rows[columns.label][:]
    if isinstance(feature, dict) and values and all(_is_told(value) for value in values):
        # a struct has the keys of all rows; one that nobody fills is no label
        names = [name for name in feature if any(value[name] is not None for value in values)]
        told = [[place for place, name in enumerate(names) if value[name]] for value in values]
        return as_read(_with_lists(rows, columns.label, told, names), columns)
    if isinstance(feature, Value) and str(feature.dtype).endswith(("string", "null")):
        return as_read(_with_lists(rows, columns.label, _parted(values)), columns)
    # before lists of ids: [0, 1] could be either, and equal lengths of 0 and 1 alone speak for vectors
    if isinstance(feature, List) and is_multi_hot(values):
        names = data.class_names or [str(place) for place in range(len(next(v for v in values if v)))]
        if len(names) != len(next(v for v in values if v)):
            raise InputError(
                f"--class_names names {len(names)} classes and '{columns.label}' holds vectors of "
                f"{len(next(v for v in values if v))}; wanted as many"
            )
        sets = [[place for place, one in enumerate(value or ()) if one] for value in values]
        return as_read(_with_lists(rows, columns.label, sets, names), columns)
    entries = (one for value in values if isinstance(value, list) for one in value)
    shares = next((one for one in entries if _is_share(one)), None)
    if shares is not None:
        raise InputError(
            f"The lists of '{columns.label}' hold numbers such as {shares}, which are no labels; wanted "
            "names, or 0 and 1 for each class. Mend the rows, or set --label_column"
        )
    return as_read(named_classes(rows, columns.label, data.class_names), columns)


def _is_share(value: Any) -> bool:
    return isinstance(value, float) and not value.is_integer()


def _is_told(value: Any) -> bool:
    """Whether a record says of each label whether it is one: 0 and 1, true and false."""
    return isinstance(value, dict) and all(
        one in (0, 1, None) and not isinstance(one, str) for one in value.values()
    )


def is_multi_hot(values: Sequence[Any]) -> bool:
    """Whether lists are vectors with a place for each class: as many numbers in all, 0 and 1 alone."""
    filled = [value for value in values if value is not None]
    sizes = {len(value) for value in filled}
    return (
        len(sizes) == 1
        and sizes != {0}
        and max(sizes) > 1
        and all(one in (0, 1) and not isinstance(one, str) for v in filled for one in v)
    )


def _parted(values: Sequence[str | None]) -> list[list[str]]:
    """Texts as lists of labels: JSON, or names with a sign between them."""
    filled = [value.strip() for value in values if value and value.strip()]
    # lists that a CSV file holds as texts
    if filled and all(value.startswith("[") and value.endswith("]") for value in filled):
        try:
            return [
                [str(name) for name in json.loads(value)] if value and value.strip() else []
                for value in values
            ]
        except json.JSONDecodeError:  # a list as Python writes it
            return [
                [name.strip(" '\"") for name in (value or "").strip(" []").split(",") if name.strip(" '\"")]
                for value in values
            ]
    # in the order of PARTS: a comma may stand within a label, a bar hardly does
    sign = next((sign for sign in PARTS if any(sign in value for value in filled)), None)
    return [
        [name.strip() for name in (value.split(sign) if sign else [value]) if name.strip()] if value else []
        for value in values
    ]


def _with_lists(
    rows: Dataset, column: str, lists: list[list[Any]], names: list[str] | None = None
) -> Dataset:
    """The column with lists of labels, or of places of `names`, which then are classes even where no
    row has them.
    """
    # declared names give a class its place even if no training row has it
    inner = Value("string") if names is None else ClassLabel(names=names)
    return _with_column(rows, column, lists, List(inner))


def _columns_of_labels(rows: Dataset) -> list[str]:
    """Columns that hold nothing but 0 and 1, where there are two or more."""
    found = [
        name for name in columns_of(rows)
        if isinstance(rows.features[name],
        Value) and str(rows.features[name].dtype).startswith(("int", "uint", "bool", "float"))
        and {value for value in rows[name] if value is not None} <= {0, 1}
    ]  # fmt: skip
    return found if len(found) > 1 else []


def _from_columns(rows: Dataset, data: DataArguments, apart: list[str]) -> Laid:
    text = data.text_column or first_of(
        ("text", "sentence", "review", "content", "document", "comment_text", "comment", "tweet"),
        columns_of(rows),
    )
    if text is None:
        raise InputError(
            f"No column 'text' in {data.name}; it has {', '.join(columns_of(rows))}. Set --text_column"
        )
    # whole columns once, not row by row
    stored = {name: rows[name][:] for name in apart}
    sets = [
        [number for number, name in enumerate(apart) if stored[name][place]] for place in range(len(rows))
    ]
    made = rows.add_column("labels", sets, feature=List(ClassLabel(names=apart)))
    return Laid(
        made, Columns(text, None, "labels"), {"text": [text], "label": apart}, lambda row: str(row[text])
    )
