"""Rows of one data set or of several → one layout, mixed by weight, every column accounted for. Knows
layouts; knows no tokenizer.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from datasets import ClassLabel, Dataset, Features, Json, List, Value, concatenate_datasets

from finetune.data.accounting import account, check_ignored, unread, without
from finetune.data.cells import with_cells, with_json
from finetune.data.columns import Columns
from finetune.data.conversations import as_chat, unpacked
from finetune.data.corpora import CORPORA
from finetune.data.mixing import Part, mixed
from finetune.data.places import SET, columns_of
from finetune.data.questions import Laid
from finetune.data.sources import DataArguments, Rows
from finetune.errors import InputError

logger = logging.getLogger(__name__)

LayOut = Callable[[Dataset, DataArguments], Laid]


def laid_out(rows: Rows, data: DataArguments, lay_out: LayOut) -> tuple[Rows, Columns]:
    """All splits of all data sets through `lay_out`, and the names of the columns that they then have.

    Prints what each column is for.

    Raises:
        InputError: a column with text that nothing reads, rows that can't be read, data sets that don't go
            together.
    """
    train = rows.train_parts or tuple(Part(rows.name, part) for part in (rows.train,) if part is not None)
    evaluation = rows.eval_parts or tuple(Part(rows.name, part) for part in (rows.eval,) if part is not None)
    # records of a stream need not have every column
    check_ignored(
        [] if rows.silent else [one.partition(".")[0] for one in data.ignore_columns or ()],
        (name for part in (*train, *evaluation) for name in columns_of(part.rows)), rows.name,
    )  # fmt: skip
    if not rows.silent:
        _check_keys(data.ignore_columns or (), [part.rows for part in (*train, *evaluation)], rows.name)
    said: list[str] | None = None if rows.silent else []
    # an assessment gives one object for both splits: laying it out twice would say and cost everything twice
    same = rows.train is rows.eval
    # of an assessment on several data sets only the evaluation parts count
    train = () if same and rows.eval_parts else train
    where = rows.where or ("evaluation" if same else "training")
    laid = [_laid(part, data, lay_out, where, said) for part in train]
    tested = (
        laid if same and train else [_laid(part, data, lay_out, "evaluation", said) for part in evaluation]
    )
    # one data set keeps its own column names; only a mixture needs common ones
    if len(laid) < 2 and len(tested) < 2 and not rows.train_parts:
        columns = {one.columns for one in (*laid, *tested)}
        if len(columns) > 1:
            raise InputError(
                f"Training rows have the columns {laid[0].columns}, evaluation rows {tested[0].columns}; set "
                "--eval_split"
            )
        first = laid[0].rows if laid else None
        return Rows(first, first if same else tested[0].rows, rows.name), columns.pop()
    # training and evaluation parts together: a model trained on chats is evaluated on chats
    alike = _alike([*laid, *tested])
    parts = [
        Part(part.name, one, part.weight) for part, one in zip((*train, *evaluation), alike, strict=True)
    ]
    # figures are given for each data set, which rows can't tell once they stand in one
    many = len(evaluation) > 1
    held = [
        part.rows.add_column(SET, [part.name] * len(part.rows)) if many else part.rows
        for part in parts[len(train) :]
    ]
    whole = concatenate_datasets(held)
    # evaluation rows are never weighted: figures are of the rows as they are
    first = whole if same and not train else mixed(parts[: len(train)], data.sample_seed) if train else None
    return Rows(first, whole, rows.name), _names(laid or tested)


def _laid(part: Part, data: DataArguments, lay_out: LayOut, where: str, said: list[str] | None) -> Laid:
    # dropped before the layout is told, so that an ignored `context` is no part of the question
    ignored = data.ignore_columns or ()
    own = without_keys(without(with_inner(part.rows, data), ignored), ignored)
    laid = lay_out(own, replace(data, dataset_name=[part.name]))
    unused = unread(own.remove_columns(list(laid.aside)), laid.used, laid.texts, laid.strange)
    # known companions are listed as not used, but never stop the run
    unused |= dict.fromkeys(laid.aside, "")
    layout = f" ({laid.layout})" if laid.layout else ""
    key = repr((laid.used, unused, part.name))
    # a second split of the same columns has nothing new to say, but for a text that only it holds
    account(
        laid.used, unused, f"{part.name}, {where} rows{layout}", lenient=part.name in CORPORA,
        quiet=said is None or key in said, hint=laid.hint
    )  # fmt: skip
    if said is not None:
        said.append(key)
    return laid


def with_inner(rows: Dataset, data: DataArguments) -> Dataset:
    """The rows with a column `record.key` for each that is named so and stands in a column of records."""
    for named in (data.text_column, data.text_pair_column, data.label_column):
        outer, *keys = (named or "").split(".")
        if named is None or not keys or named in rows.column_names or outer not in rows.column_names:
            continue
        cells = rows[outer][:]
        for key in keys:
            cells = [cell.get(key) if isinstance(cell, dict) else None for cell in cells]
        # a key that no row has is no column: what is there is said where it is looked for
        first = next((cell for cell in cells if cell is not None), None)
        if first is not None:
            records = isinstance(first, (list, dict))
            rows = with_json(rows, named, cells) if records else rows.add_column(named, cells)
    return rows


def without_keys(rows: Dataset, ignored: Sequence[str]) -> Dataset:
    """The rows without what their messages, or records, hold under keys named `column.key`."""
    order = rows.column_names
    for named in ignored:
        column, _, key = named.partition(".")
        if key and named not in order and column in order:
            cells = [_without_key(cell, key) for cell in rows[column][:]]
            rows = with_cells(rows.remove_columns(column), column, cells).select_columns(order)
    return rows


def _without_key(cell: Any, key: str) -> Any:
    if isinstance(cell, dict):
        return {name: value for name, value in cell.items() if name != key}
    if isinstance(cell, list):
        return [_without_key(one, key) for one in cell]
    found = unpacked(cell)
    # a chat that comes as JSON stays a text, as other rows of its column may be
    return cell if isinstance(found, str) or found is None else json.dumps(_without_key(found, key))


def _check_keys(ignored: Sequence[str], parts: Sequence[Dataset], name: str) -> None:
    """Every key of records that isn't wanted is one that some row has.

    Raises:
        InputError: one is not.
    """
    for named in ignored:
        column, _, key = named.partition(".")
        held = [part for part in parts if column in part.column_names and named not in part.column_names]
        if not key or not held:
            continue
        # no further than to the first row that has it
        if any(key in _keys(cell) for part in held for cell in part[column]):
            continue
        known = sorted({one for part in held for cell in part[column] for one in _keys(cell)})
        near = difflib.get_close_matches(key, known, n=1)
        raise InputError(
            f"Nothing in the column '{column}' of {name} has the key '{key}', named by --ignore_columns; the "
            f"keys are {', '.join(known) or 'none'}." + (f" Did you mean {column}.{near[0]}?" if near else "")
        )


def _keys(cell: Any) -> set[str]:
    if isinstance(cell, list):
        return set().union(*map(_keys, cell))
    found = cell if isinstance(cell, dict) else unpacked(cell)
    if isinstance(found, dict):
        return {*found}
    return _keys(found) if isinstance(found, list) else set()


def _names(laid: Sequence[Laid]) -> Columns:
    # a question with an answer can be written as a chat, a chat not as a question with an answer
    chats = any(one.columns.text == one.columns.label == "messages" for one in laid)
    if chats:
        return Columns("messages", None, "messages")
    if len({one.columns for one in laid}) == 1:
        return laid[0].columns
    return Columns("text", "text_pair" if laid[0].columns.pair else None, "label")


def _alike(laid: Sequence[Laid]) -> list[Dataset]:
    """Data sets with the same columns of the same kinds: chats where any is one, else texts and
    labels by one name.
    """
    names = _names(laid)
    # preferences, verdicts and prompts hold several turns a row; their verbs lay out all data sets alike
    if laid[0].turns:
        return _same_turns(laid)
    if names.text == names.label == "messages":
        return [_as_chats(one) for one in laid]
    made = []
    for one in laid:
        columns = dict(
            zip(
                (one.columns.text, one.columns.pair, one.columns.label),
                (names.text, names.pair, names.label),
                strict=True,
            )
        )
        # places and names of data sets (`__...`) go along, for messages and figures
        kept = {old: new for old, new in columns.items() if old}
        if (one.columns.pair is None) != (names.pair is None):
            raise InputError(
                "Data sets with one text a row and with two don't go together; name those of one kind by "
                "--dataset_name"
            )
        rows = one.rows.select_columns(
            [*kept, *(name for name in one.rows.column_names if name.startswith("__"))]
        )
        made.append(
            _without_ids(
                rows.rename_columns({old: new for old, new in kept.items() if old != new}), names.label
            )
        )
    # said here in words: `concatenate_datasets` would fail on its own terms
    kinds = {str(rows.features) for rows in made}
    if len(kinds) > 1:
        raise InputError(
            f"The data sets don't go together: their columns hold {' and '.join(sorted(kinds))}. Set "
            "--dataset_name"
        )
    return made


def _same_turns(laid: Sequence[Laid]) -> list[Dataset]:
    """Pairs, answers with a verdict, or prompts: what is said is a text in all data sets, or messages in
    all; what
    one alone has beside is missing in the others.

    Raises:
        InputError: columns of different kinds, or answers missing in one.
    """
    turns = {name: role for one in laid for name, role in one.turns.items()}
    names = dict.fromkeys([*turns, *(name for one in laid for name in one.further)])
    # in the order of the first data set that has them, so that all get one order
    there = [name for name in names if any(name in one.rows.column_names for one in laid)]
    made = [
        one.rows.select_columns([n for n in one.rows.column_names if n in there or n.startswith("__")])
        for one in laid
    ]
    for name in there:
        lacking = [one for one in made if name not in one.column_names]
        # a prompt may be missing, since answers can hold it; an answer can't
        if lacking and name in turns and name != "prompt":
            raise InputError(
                f"Not all data sets have a column '{name}'; name those of one kind by --dataset_name"
            )
        kinds = {str(rows.features[name]) for rows in made if name in rows.column_names}
        # a text in one and messages in another: messages can say both
        if len(kinds) > 1 and name in turns:
            made = [_in_messages(rows, name, turns[name]) for rows in made]
        elif lacking:
            made = [_with_nothing(rows, name, made) for rows in made]
    if len({str({n: rows.features[n] for n in there}) for rows in made}) > 1:
        raise InputError(
            "The data sets don't go together: their columns hold "
            f"{' and '.join(sorted({str(rows.features) for rows in made}))}. Set --dataset_name"
        )
    places = [name for name in made[0].column_names if name.startswith("__")]
    return [rows.select_columns([*there, *places]) for rows in made]


def _in_messages(rows: Dataset, name: str, role: str) -> Dataset:
    values = [as_chat(value, role=role) for value in rows[name]] if name in rows.column_names else []
    bare = rows.remove_columns([name] if name in rows.column_names else [])
    return with_json(bare, name, values or [[] for _ in range(len(rows))])


def _with_nothing(rows: Dataset, name: str, others: Sequence[Dataset]) -> Dataset:
    """The rows with a column of nothing, of the kind that it has elsewhere."""
    if name in rows.column_names:
        return rows
    kind = next(one.features[name] for one in others if name in one.column_names)
    # typed nulls: a column of bare None would be of the type `null` and not go together with the others'
    return concatenate_datasets(
        [rows, Dataset.from_dict({name: [None] * len(rows)}, features=Features({name: kind}))], axis=1
    )


def _as_chats(one: Laid) -> Dataset:
    rows = one.rows
    kept = [name for name in rows.column_names if name.startswith("__")]
    if one.columns.text != "messages":
        asked, answer = one.columns.text, one.columns.label
        rows = rows.map(
            lambda row: {
                "messages": [
                    {"role": "user", "content": row[asked]},
                    {"role": "assistant", "content": row[answer]},
                ]
            },
            features=rows.features.__class__({**rows.features, "messages": List(Json())}),
        )
    # one data set with tools gives all of them the column, empty where there are none
    if "tools" not in rows.column_names:
        rows = with_json(rows, "tools", [None] * len(rows))
    return rows.select_columns(["messages", "tools", *kept])


def _without_ids(rows: Dataset, label: str) -> Dataset:
    """Classes as their names: two data sets may number them otherwise."""
    if label not in rows.column_names:
        return rows
    feature = rows.features[label]
    if not isinstance(feature, ClassLabel):
        return rows
    # -1 is an unlabelled row, which has no name
    names = [None if value is None or value < 0 else feature.names[value] for value in rows[label][:]]
    order = rows.column_names
    return rows.remove_columns(label).add_column(label, names, feature=Value("string")).select_columns(order)
