"""Columns of pictures or sounds: which one it is, their cells as files, and rows that can't be read. Knows
files and columns; knows no format.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from finetune.data.cells import FILE_CELL
from finetune.data.columns import LABELS, Columns, Wanted, class_ids, named_columns, settle_columns
from finetune.data.files import without_bars
from finetune.data.labelled import named_classes
from finetune.data.places import FOLDER, columns_of, place_of
from finetune.data.questions import Laid
from finetune.data.sources import DataArguments, TextArguments
from finetune.errors import InputError

logger = logging.getLogger(__name__)

SHOWN = 5  # broken rows that a message names
ADDRESS = re.compile(r"\w+://|data:")


def lay_out_files(rows: Dataset, data: DataArguments, usual: tuple[str, ...], typed: Any) -> Laid:
    """A picture or a sound, and a class a row; files come as they are, to be opened when they are read.

    Args:
        usual, typed: see `file_column`.

    Raises:
        InputError: a column that is missing, or that holds no files.
    """
    # `--text_column` names it too: the input is the text's place
    there, mark = columns_of(rows), named_columns(data)[2].of(LABELS)
    # a folder of files alone has no column to name
    bare = data.label_column is None and len(there) == 1 and Path(data.name).expanduser().is_dir()
    column = file_column(rows, data, usual, typed, () if bare or mark.found(there) else (mark,))
    if bare:
        raise InputError(
            f"{data.name} holds files without a class; wanted them in a folder of their class each "
            "(train/cat/7.png), or a table with paths and labels"
        )
    label = settle_columns((mark,), there, data.name)[0]
    rows = named_classes(as_files(rows, column, typed, data), label, data.class_names)
    return Laid(rows, Columns(column, None, label), {usual[0]: [column], "label": [label]}, lambda row: "")


def file_column(
    rows: Dataset, data: TextArguments, usual: tuple[str, ...], typed: Any, others: Sequence[Wanted] = ()
) -> str:
    """The column that was named, else the first of a type, else the first with a usual name.

    Args:
        usual: names that such a column usually has.
        typed: what `datasets` calls such a column, undecoded.
        others: what is missing beside it, to be said at once.

    Raises:
        InputError: there is none.
    """
    there = columns_of(rows)
    # a typed column is surer than a name such as `file`
    of_type = next((name for name in there if isinstance(rows.features[name], type(typed))), None)
    files = Wanted("--text_column", data.text_column or of_type, usual)
    return settle_columns((files, *others), there, data.name)[0]


def as_files(rows: Dataset, column: str, typed: Any, data: TextArguments) -> Dataset:
    """The column as records of bytes and path, whether it holds such, bytes alone, or paths (from the folder
    of the rows' file).

    Raises:
        InputError: it holds something else.
    """
    # undecoded: the files are opened when a batch is made
    if isinstance(rows.features[column], type(typed)):
        return rows.cast_column(column, typed)
    # Arrow's type, as features name structs and binaries in several ways
    kind = rows.data.schema.field(column).type
    fields = {kind.field(place).name for place in range(kind.num_fields)} if pa.types.is_struct(kind) else {}
    if {"bytes", "path"} <= set(fields):
        cells = [cell and {"bytes": cell["bytes"], "path": cell["path"]} for cell in rows[column]]
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        cells = [None if cell is None else {"bytes": cell, "path": None} for cell in rows[column]]
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        base = Path(data.name).expanduser()
        # paths in a table are meant from where the table lies
        usual = str(base if base.is_dir() else base.parent)
        bases = rows[FOLDER] if FOLDER in rows.column_names else [usual] * len(rows)
        cells = [
            {"bytes": None, "path": cell if ADDRESS.match(cell) else str(Path(folder) / cell)}
            if cell
            else None
            for cell, folder in zip(rows[column], bases, strict=True)
        ]
    else:
        raise InputError(
            f"The column '{column}' of {data.name} holds {rows.features[column]!s:.100}; wanted files: "
            "bytes, paths, or both. Set --text_column"
        )
    # a column that is made anew would stand last
    order = rows.column_names
    with without_bars():
        return rows.remove_columns(column).add_column(column, cells, feature=FILE_CELL).select_columns(order)


def without_broken(
    rows: Dataset,
    columns: Columns,
    drop: bool,
    where: str,
    *,
    fault: Callable[[dict[str, Any] | None], str | None],
    what: str,
) -> Dataset:
    """Rows whose files can be read whole, by several threads.

    Args:
        fault: a cell → what is wrong with it, None where nothing is.
        what: a file is called in messages.

    Raises:
        InputError: some can't, each named with its row, where `drop` does not allow to leave them out.
    """
    with ThreadPoolExecutor() as pool:
        # threads: reading and Pillow's decoders let go of the interpreter
        found = list(pool.map(fault, rows[columns.text]))
    broken = [place for place, reason in enumerate(found) if reason]
    if not broken:
        return rows
    named = "; ".join(f"{place_of(rows, place)}: {found[place]}" for place in broken[:SHOWN])
    said = f"{len(broken)} of {len(rows)} {where} rows have no {what} that can be read ({named}"
    said += "; ...)" if len(broken) > SHOWN else ")"
    if not drop:
        # where none can be read, another column or folder was meant
        mend = "set --drop_empty_rows to leave them out" if len(broken) < len(rows) else "set --text_column"
        raise InputError(f"{said}. Mend them, or {mend}")
    logger.warning("%s and are left out", said)
    gone = set(broken)
    kept = rows.select([place for place in range(len(rows)) if place not in gone])
    if len(kept) == 0:
        raise InputError(f"No {where} row has a {what} that can be read; set --text_column")
    return kept


def file_features(
    rows: Dataset, columns: Columns, name: str, lengths: list[int], labels: list[str] | None
) -> Dataset:
    """Rows as features that hold their files: `name`, row, length, and labels where there are any."""
    further: dict[str, list[int]] = {"row": list(range(len(rows))), "length": lengths}
    if labels is not None:
        further["labels"] = class_ids(rows, columns.label, labels)
    # the files' cells are shared with the rows, not copied
    made = rows.select_columns([columns.text])
    made = made if columns.text == name else made.rename_column(columns.text, name)
    with without_bars():
        for column, values in further.items():
            made = made.add_column(column, values)
    return made
