"""A data set's rows → what templates read: columns by name, a label's number, an identity. Knows data sets;
knows no models."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset

from finetune.data.accounting import Used
from finetune.data.answered import lay_out_choices
from finetune.data.columns import class_ids, class_names
from finetune.data.places import PLACE, columns_of
from finetune.data.questions import Laid
from finetune.data.sources import DataArguments
from finetune.errors import InputError
from prompts.templates.entries import Entry, Source

ANY = "any"  # what an entry says of data sets that it doesn't name
IDS = ("id", "idx", "guid", "_id")
STRANGE = -2  # of a row whose label the entry doesn't know; -1 has none


@dataclass(frozen=True)
class StudyRow:
    """One example.

    Attributes:
        label: its number, -1 where it has none.
        identity: a text that tells it from others.
        place: its number in its file; id: what the data calls it.
    """

    columns: dict[str, Any]
    label: int
    identity: str
    place: int = -1
    id: str = ""


@dataclass(frozen=True)
class StudyTable:
    """Rows with the names of their labels, what stands in the data for each, and rows of no known label."""

    rows: list[StudyRow]
    labels: tuple[str, ...]
    values: tuple[Any, ...] = ()
    # name → places of the rows that have a label which the entry doesn't know, and are left out
    strange: dict[str, list[int]] = field(default_factory=dict)


def source_of(entry: Entry, dataset_name: str) -> Source:
    """How this data set's rows are read: what the entry says of it, else every column under its own name."""
    # by the last part, or whole: a folder of the same name is read alike
    name = Path(dataset_name).name
    if name in entry.data or dataset_name in entry.data:
        return entry.data.get(name) or entry.data[dataset_name]
    # an entry for data of any name
    return entry.data.get(ANY, Source())


def renamed(source: Source, columns: Mapping[str, str], data: Dataset) -> Source:
    """The same with columns of other names, as --columns has them; all others stay readable by their own."""
    if not columns:
        return source
    # where the source names none, all columns are there by their own names
    own = source.columns or {name: name for name in columns_of(data)}
    return replace(source, columns={**own, **columns})


def read_rows(
    data: Dataset,
    entry: Entry,
    source: Source,
    label_column: str | None = None,
    splits: Sequence[Dataset] = (),
) -> StudyTable:
    """Rows of one split as the entry's templates name them.

    Args:
        splits: the splits whose labels are numbered together, where the data names them (default: this one's
            alone).

    Raises:
        InputError: a column or label that isn't there, 0 rows.
    """
    if source.rows not in READERS:
        raise InputError(
            f"{entry.name}: rows '{source.rows}' can't be read; wanted one of: {', '.join(READERS)}"
        )
    table = READERS[source.rows](data, entry, source, label_column, splits)
    if not table.rows:
        raise InputError(f"{entry.name}: 0 rows. Set --dataset_name, --eval_split or --max_eval_rows")
    return table


def columns_read(
    data: Dataset, entry: Entry, source: Source, label_column: str | None, read: Set[str]
) -> Used:
    """The data's columns by what `read_rows` has of them: texts, those that templates name, and the label.

    Args:
        read: names that the templates have.
    """
    if source.rows == "choices":
        return _laid_choices(data, entry, label_column).used
    if source.rows == "entities":
        return {
            "text": [source.columns.get("tokens", "tokens")],
            "label": [label_column or source.columns.get("tags", "ner_tags")],
        }
    own = {name: path for name, path in source.columns.items() if name != "label"}
    paths = {name: own.get(name, name) for name in sorted(read) if name in own or not own}
    found = [path for path in paths.values() if path.partition(".")[0] in columns_of(data)]
    label = label_column or source.columns.get("label", "label")
    return {"templates": list(dict.fromkeys(found)), "label": [label] if entry.words else []}


def _plain(
    data: Dataset, entry: Entry, source: Source, label_column: str | None, splits: Sequence[Dataset]
) -> StudyTable:
    # the label has a number of its own, and must not be shown
    columns = {name: column for name, column in source.columns.items() if name != "label"} or {
        name: name for name in columns_of(data)
    }
    for column in columns.values():
        # a path into a nested column: its first part is the column
        if column.split(".")[0] not in columns_of(data):
            raise InputError(
                f"{entry.name}: no column '{column}' in the data; it has {', '.join(columns_of(data))}. "
                "Set --columns, or mend the entry's `data`"
            )
    labels: tuple[str, ...] = ()
    values: tuple[Any, ...] = ()
    ids = [-1] * len(data)
    names_of: list[str] = []
    if entry.words:
        labels, values, ids, names_of = _labels(data, entry, source, label_column, splits)
    strange: dict[str, list[int]] = {}
    # each stored column is read once, however many paths go into it
    roots = {column.split(".")[0] for column in columns.values()}
    stored = {root: data[root][:] for root in roots}
    # the place in the file, also after sampling
    places = _places(data)
    named = next((name for name in IDS if name in data.column_names), None)
    names = [str(value) for value in data[named][:]] if named else [""] * len(data)
    classes = {name: data.features[column] for name, column in columns.items() if _is_class(data, column)}
    rows = []
    for index in range(len(data)):
        if ids[index] == STRANGE:
            strange.setdefault(names_of[index], []).append(places[index])
            continue
        fields = {
            name: _reach({root: stored[root][index] for root in roots}, path)
            for name, path in columns.items()
        }
        rows.append(
            StudyRow(fields, ids[index], _identity(_named(fields, classes)), places[index], names[index])
        )
    return StudyTable(rows, labels, values, strange)


def _is_class(data: Dataset, column: str) -> bool:
    return column in data.column_names and isinstance(data.features[column], ClassLabel)


def _named(fields: dict[str, Any], classes: Mapping[str, ClassLabel]) -> dict[str, Any]:
    """The columns with classes by name: a row is the same one, and draws the same examples, from a file
    that holds its class as a number."""
    # -1 and nothing are no class's number
    known = {name: made for name, made in classes.items() if fields[name] is not None and fields[name] >= 0}
    return {**fields, **{name: made.int2str(fields[name]) for name, made in known.items()}}


def _places(data: Dataset) -> list[int]:
    """Each row's number in its file."""
    # rows of other sources have their own order
    if PLACE not in data.column_names:
        return list(range(len(data)))
    found = [re.search(r"\d+", place) for place in data[PLACE][:]]
    return [int(match[0]) if match else -1 for match in found]


def _labels(
    data: Dataset, entry: Entry, source: Source, label_column: str | None, splits: Sequence[Dataset]
) -> tuple[tuple[str, ...], tuple[Any, ...], list[int], list[str]]:
    """Names of the labels, what stands in the data for each, each row's number, and its label by name.

    Raises:
        InputError: no such column, or fewer than two of its labels are the entry's.
    """
    column = label_column or source.columns.get("label", "label")
    if column not in columns_of(data):
        raise InputError(
            f"{entry.name}: no column '{column}' in the data; it has {', '.join(columns_of(data))}. Set "
            "--label_column"
        )
    # of all splits: training rows may have labels that the measured ones lack
    names, values = _classes([split for split in splits if column in columns_of(split)] or [data], column)
    renamed = [source.labels.get(name, name) for name in names]
    # an entry without labels takes the data's own, as far as it has words for them
    worded = entry.labels or entry.worded
    known = [name for name in renamed if worded is None or name in worded]
    # one label among many may be a slip of the data; with fewer than two nothing fits
    if len(set(known)) < min(2, len(set(renamed))):
        strange = next(name for name in renamed if name not in known)
        raise InputError(
            f"{entry.name}: no label '{strange}'; it has {', '.join(worded or ())}. "
            f"{'Set --class_names, or rename' if strange.isdigit() else 'Rename'} it under `data` in the "
            "entry's file"
        )
    # the entry's order is what verbalizers go by
    order = entry.labels or tuple(known)
    place = [order.index(name) if name in known else STRANGE for name in renamed]
    ids = class_ids(data, column, names)
    kept = tuple(value for name, value in zip(renamed, values, strict=True) if name in known)
    # rows without a label stay without
    return (
        order,
        () if entry.labels else kept,
        [place[i] if i >= 0 else -1 for i in ids],
        [renamed[i] if i >= 0 else "" for i in ids],
    )


def _classes(splits: Sequence[Dataset], column: str) -> tuple[list[str], tuple[Any, ...]]:
    """Names of the classes of all splits in their order, and the values that stand for them."""
    names = list(dict.fromkeys(name for split in splits for name in class_names(split, column)))
    # names of classes are numbers in their order
    if isinstance(splits[0].features[column], ClassLabel):
        return names, tuple(range(len(names)))
    values: dict[str, Any] = {}
    for split in splits:
        for value in split.unique(column):
            # nan is not itself
            if value is not None and value == value:
                # 1.0 and 1 are one label, as CSV files have it
                values[str(int(value)) if isinstance(value, float) else str(value)] = value
    # in the values' own order: 10 comes after 9
    names = sorted(names, key=values.__getitem__)
    return names, tuple(values[name] for name in names)


def _entities(
    data: Dataset, entry: Entry, source: Source, label_column: str | None, splits: Sequence[Dataset]
) -> StudyTable:
    """One row for each named entity: the sentence, the entity's words, its kind."""
    tokens, tags = (
        source.columns.get("tokens", "tokens"),
        label_column or source.columns.get("tags", "ner_tags"),
    )
    for column in (tokens, tags):
        if column not in columns_of(data):
            raise InputError(
                f"{entry.name}: no column '{column}' in the data; it has {', '.join(columns_of(data))}. "
                "Set --columns, or mend the entry's `data`"
            )
    names = data.features[tags].feature.names
    # B- and I- are of one kind
    labels = entry.labels or tuple(sorted({name[2:] for name in names if name != "O"}))
    rows = []
    for words, ids, place in zip(data[tokens][:], data[tags][:], _places(data), strict=True):
        for start, end, kind in _spans([names[i] for i in ids]):
            columns = {"text": _joined(words), "span": _joined(words[start:end])}
            # the same words may stand twice in a sentence
            rows.append(StudyRow(columns, labels.index(kind), _identity({**columns, "start": start}), place))
    return StudyTable(rows, labels)


def _choices(
    data: Dataset, entry: Entry, source: Source, label_column: str | None, splits: Sequence[Dataset]
) -> StudyTable:
    """A text, choices and the place of the right one, as TASKS' `choice` reads rows: ARC's, PIQA's, SWAG's
    and the like."""
    laid = _laid_choices(data, entry, label_column)
    text, choices, answer = (
        laid.rows[name][:] for name in (laid.columns.text, laid.columns.pair, laid.columns.label)
    )
    rows = []
    for values, place in zip(zip(text, choices, answer, strict=True), _places(data), strict=True):
        columns = dict(zip(("text", "choices", "answer"), values, strict=True))
        rows.append(StudyRow(columns, -1, _identity(columns), place))
    return StudyTable(rows, ())


def _laid_choices(data: Dataset, entry: Entry, label_column: str | None) -> Laid:
    return lay_out_choices(data, DataArguments(dataset_name=[entry.name], label_column=label_column))


def _spans(tags: list[str]) -> Iterator[tuple[int, int, str]]:
    start = None
    # an O at the end closes what is open
    for index, tag in enumerate([*tags, "O"]):
        # an I- of another kind, or a B-, begins anew
        if start is not None and not (tag.startswith("I-") and tag[2:] == tags[start][2:]):
            yield start, index, tags[start][2:]
            start = None
        if start is None and tag != "O":
            start = index


def _joined(words: list[str]) -> str:
    # tokens were parted by spaces
    """Words as a sentence, without the space that tokenising put before punctuation."""
    return re.sub(r" ([.,;:!?%)])", r"\1", " ".join(words)).replace("( ", "(")


def _reach(row: dict[str, Any], path: str) -> Any:
    value: Any = row
    for part in path.split("."):
        if not isinstance(value, dict) or part not in value:
            raise InputError(
                f"No column '{path}' in the data: '{part}' isn't there. Set --columns, or mend the "
                "entry's `data`"
            )
        value = value[part]
    return value


def _identity(columns: dict[str, Any]) -> str:
    # sorted: the order of columns says nothing
    return json.dumps(columns, sort_keys=True, ensure_ascii=False, default=str)


READERS: dict[str, Callable[[Dataset, Entry, Source, str | None, Sequence[Dataset]], StudyTable]] = {
    "plain": _plain,
    "entities": _entities,
    "choices": _choices,
}
