"""Which column is which, and which classes there are. Knows column names and features; knows no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasets import ClassLabel, Dataset, Value

from finetune.data.places import columns_of, place_of
from finetune.data.sources import DataArguments
from finetune.errors import InputError

TEXTS = (
    "text",
    "sentence",
    "review",
    "content",
    "document",
    "question",
    "premise",
    "sentence1",
    "sentence_A",
    "tokens",
    "sequence",
)
PAIRS = (("sentence1", "sentence2"), ("sentence_A", "sentence_B"), ("premise", "hypothesis"),
("question1", "question2"),
         ("text", "aspect"), ("question", "context"), ("question", "sentence"), ("text1", "text2"), ("query",
         "document"))  # fmt: skip
LABELS = (
    "label", "labels", "gold_label", "intent", "sentiment", "category", "class", "target",
    "relatedness_score", "klasse", "kategorie", "classe", "categoria",
)  # fmt: skip


FINDS = " (`finetune check FILE` finds them)"


@dataclass(frozen=True)
class Columns:
    """Names of the columns that a task reads; `pair` is None for tasks on one text, and `further` are those
    that stand in several (the channels of a series).
    """

    text: str
    pair: str | None
    label: str
    further: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that an answer follows from, the label's aside."""
        return tuple(dict.fromkeys(one for one in (self.text, self.pair, *self.further) if one))


def find_columns(rows: Dataset, data: DataArguments, pair: bool = False) -> Columns:
    """The columns that were named, and those with a usual name where none was.

    Raises:
        InputError: a named column that is not there, or none with a usual name.
    """
    there, (text, second, label) = columns_of(rows), named_columns(data)
    if not pair:
        found = settle_columns((text.of(TEXTS), label.of(LABELS)), there, data.name, FINDS)
        return Columns(found[0], None, found[1])
    # both must stand there, and a named one in its own place of the pair
    names = next(
        (
            one
            for one in PAIRS
            if set(one) <= set(there) and text.named in (None, one[0]) and second.named in (None, one[1])
        ),
        None,
    )
    usual = ((names[0],), (names[1],)) if names else (TEXTS, ("text_pair",))
    wanted = (text.of(usual[0]), second.of(usual[1]), label.of(LABELS))
    return Columns(*settle_columns(wanted, there, data.name))


@dataclass(frozen=True)
class Wanted:
    """A column that is needed: the user's name for it, else its usual names; and the flag that names it."""

    flag: str
    named: str | None
    usual: tuple[str, ...] = ()

    def of(self, usual: tuple[str, ...]) -> Wanted:
        """The same with usual names."""
        return replace(self, usual=usual)

    def found(self, there: Sequence[str]) -> str | None:
        """The column that is meant, capitals aside; None where there is none."""
        if self.named is not None:
            return self.named if self.named in there else None
        # reversed, so that of `Text` and `text` the first in the file wins; the same letters go first
        known = {column.lower(): column for column in reversed(there)}
        return next(
            (name if name in there else known[name.lower()] for name in self.usual if name.lower() in known),
            None,
        )


def named_columns(data: DataArguments) -> tuple[Wanted, Wanted, Wanted]:
    """Text, second text and label, as far as the user named them."""
    return (
        Wanted("--text_column", data.text_column), Wanted("--text_pair_column", data.text_pair_column),
        Wanted("--label_column", data.label_column),
    )  # fmt: skip


def settle_columns(wanted: Sequence[Wanted], there: Sequence[str], name: str, hint: str = "") -> list[str]:
    """The column that is meant by each.

    Raises:
        InputError: some are missing; all of them are named at once.
    """
    found = [(one, one.found(there)) for one in wanted]
    missing = [one for one, column in found if column is None]
    if missing:
        names = listed([repr(one.named or one.usual[0]) for one in missing])
        several = len(missing) > 1
        raise InputError(
            f"No column{'s' if several else ''} {names} in {name}; it has {', '.join(there)}. Set "
            f"{listed([one.flag for one in missing])}{hint if several else ''}"
            f"{', and --ignore_columns to what is not wanted' if several else ''}"
        )
    return [column for _, column in found if column is not None]


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def first_there(usual: tuple[str, ...], there: list[str], name: str, flag: str) -> str:
    """The first of the usual names that a column has, capitals aside.

    Raises:
        InputError: none has any.
    """
    return settle_columns([Wanted(flag, None, usual)], there, name)[0]


def class_names(rows: Dataset, column: str) -> list[str]:
    """Names of the classes in a label column, in the order of their ids.

    Raises:
        InputError: a column of free floats or of something that is no class.
    """
    feature = rows.features[column]
    # declared names keep their ids, also those that no row has
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    if not isinstance(feature, Value):
        raise InputError(
            f"The label column '{column}' holds {feature}; wanted one class a row. Set --task multilabel for "
            "several or none, or --label_column"
        )
    values = {
        value for value in rows[column][:] if value is not None and value == value
    }  # NaN is no class either
    if feature.dtype.startswith(("float", "double")):
        # pandas writes whole classes as 1.0 where one is missing
        free = next((value for value in sorted(values) if not value.is_integer()), None)
        if free is not None:
            raise InputError(
                f"The label column '{column}' holds free numbers such as {free}; wanted classes. Set --task "
                "regression, or --label_column to a column of classes"
            )
        values = {int(value) for value in values}
    # a column of identifiers or texts, on which a head of as many outputs would be built
    if len(values) > 1000 and len(values) > len(rows) // 2:
        raise InputError(
            f"The label column '{column}' holds {len(values)} different values in {len(rows)} rows; set "
            "--label_column"
        )
    # sorted, so that ids don't depend on the order of rows
    return [str(value) for value in sorted(values)]


def class_ids(rows: Dataset, column: str, labels: list[str]) -> list[int]:
    """Each row's class as its place in `labels`; -1 where the row has none of them (unlabelled, or
    never seen).
    """
    feature = rows.features[column]
    place = {name: index for index, name in enumerate(labels)}
    if isinstance(feature, ClassLabel):
        # by name: this split's ids may be in another order than the training's
        of_id = [place.get(name, -1) for name in feature.names]
        return [
            of_id[value] if value is not None and 0 <= value < len(of_id) else -1 for value in rows[column][:]
        ]
    # the classes of floats are named as whole numbers, in `class_names`
    whole = isinstance(feature, Value) and feature.dtype.startswith(("float", "double"))
    return [
        place.get(str(int(value)) if whole and value is not None and value == value else str(value), -1)
        for value in rows[column][:]
    ]


def row_classes(rows: Dataset, column: str) -> list[str] | None:
    """Each row's class by name; None where the column holds no declared classes."""
    feature = rows.features[column]
    if not isinstance(feature, ClassLabel):
        return None
    return [feature.names[place] for place in rows[column]]


def with_classes(rows: Dataset, column: str) -> Dataset:
    """The rows with their label column as a ClassLabel, so that samples can be balanced."""
    if isinstance(rows.features[column], ClassLabel):
        return rows
    names = class_names(rows, column)
    # by hand rather than by `class_encode_column`, which knows no row without a class
    ids = class_ids(rows, column, names)
    features = rows.features.copy()
    features[column] = ClassLabel(names=names)
    # added as whole numbers first: rows of -1 stay unlabelled
    return rows.remove_columns(column).add_column(column, ids).cast_column(column, features[column])


def pick_columns(
    rows: Dataset,
    data: DataArguments,
    *,
    text: tuple[str, ...] = ("text", "sentence", "review", "content", "document"),
    pair: tuple[str, ...] | None = None,
    label: tuple[str, ...],
) -> Columns:
    """The columns that were named, else those with one of the given names.

    Raises:
        InputError: a named column that is not there, or none with one of the names.
    """
    first, second, mark = named_columns(data)
    wanted = [first.of(text), *([second.of(pair)] if pair else []), mark.of(label)]
    found = settle_columns(wanted, columns_of(rows), data.name)
    return Columns(found[0], found[1] if pair else None, found[-1])


def label_lists(
    feature: Any, values: Sequence[Sequence[Any] | None], rows: Dataset | None = None
) -> list[list[str]]:
    """Lists of a column of lists → lists of names, whether it holds classes or strings.

    Args:
        rows: that the values are a column of, for messages.

    Raises:
        InputError: a class that has no name, such as -1, or none at all.
    """
    # indices of declared classes, or the names themselves
    names = feature.feature.names if isinstance(feature.feature, ClassLabel) else None
    for place, row in enumerate(values):
        for one in row or ():
            # a negative place would silently take a name from the end of the list
            if one is None or (names is not None and not 0 <= one < len(names)):
                said = place_of(rows, place)
                raise InputError(
                    f"{said[:1].upper()}{said[1:]} has the label {one}, which is no class; wanted one or "
                    "none. Mend the row"
                )
    if names is not None:
        return [[names[index] for index in row or []] for row in values]
    return [[str(name) for name in row or []] for row in values]
