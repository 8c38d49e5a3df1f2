"""Columns of pictures or sounds: which one it is, their cells as files, and rows that can't be read. Knows
files and columns; knows no format.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features

from finetune.data.columns import LABELS, Columns, first_there
from finetune.data.labelled import named_classes
from finetune.data.layouts import first_of
from finetune.data.places import columns_of, place_of
from finetune.data.questions import Laid
from finetune.data.sources import DataArguments
from finetune.errors import InputError

logger = logging.getLogger(__name__)

FILE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
SHOWN = 5  # broken rows that a message names


def lay_out_files(rows: Dataset, data: DataArguments, usual: tuple[str, ...], feature: Any) -> Laid:
    """A picture or a sound, and a class a row; files come as they are, to be opened when they are read.

    Args:
        usual: names that such a column usually has.
        feature: what `datasets` calls such a column, undecoded.

    Raises:
        InputError: a column that is missing, or that holds no files.
    """
    there = columns_of(rows)
    column = data.text_column or _typed(rows, type(feature)) or first_of(usual, there)
    for name, flag in ((column, "text_column"), (data.label_column, "label_column")):
        if name is not None and name not in there:
            raise InputError(f"No column '{name}' in {data.name}; it has {', '.join(there)}. Set --{flag}")
    if column is None:
        raise InputError(
            f"No column '{usual[0]}' in {data.name}; it has {', '.join(there)}. Set --text_column to the one "
            "that holds it"
        )
    label = data.label_column or first_there(LABELS, there, data.name, "--label_column")
    rows = named_classes(as_files(rows, column, feature, data), label, data.class_names)
    return Laid(rows, Columns(column, None, label), {usual[0]: [column], "label": [label]}, lambda row: "")


def _typed(rows: Dataset, kind: type) -> str | None:
    return next((name for name in columns_of(rows) if isinstance(rows.features[name], kind)), None)


def as_files(rows: Dataset, column: str, feature: Any, data: DataArguments) -> Dataset:
    """The column as records of bytes and path, whether it holds such, bytes alone, or paths (from the folder
    of the rows' file).

    Raises:
        InputError: it holds something else.
    """
    held = rows.features[column]
    if isinstance(held, type(feature)):
        return rows.cast_column(column, feature)
    kind = rows.data.schema.field(column).type
    if pa.types.is_struct(kind) and {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}:
        values = [None if cell is None else {k: cell[k] for k in ("bytes", "path")} for cell in rows[column]]
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        values = [None if cell is None else {"bytes": cell, "path": None} for cell in rows[column]]
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        base = Path(data.name).expanduser()
        base = base if base.is_dir() else base.parent
        values = [None if not cell else {"bytes": None, "path": str(base / cell)} for cell in rows[column]]
    else:
        raise InputError(
            f"The column '{column}' of {data.name} holds {held!s:.120}; wanted files: bytes, paths, or both. "
            "Set --text_column"
        )
    order = rows.column_names
    made = Dataset.from_dict({column: values}, features=Features({column: feature}))
    return (
        rows.remove_columns(column).add_column(column, made[column][:], feature=feature).select_columns(order)
    )


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
        found = list(pool.map(fault, rows[columns.text]))
    broken = [place for place, reason in enumerate(found) if reason]
    if not broken:
        return rows
    named = "; ".join(f"{place_of(rows, place)}: {found[place]}" for place in broken[:SHOWN])
    said = f"{len(broken)} of {len(rows)} {where} rows have no {what} that can be read ({named}"
    said += "; ...)" if len(broken) > SHOWN else ")"
    if not drop:
        raise InputError(f"{said}. Mend them, or set --drop_empty_rows to leave them out")
    logger.warning("%s and are left out", said)
    gone = set(broken)
    kept = rows.select([place for place in range(len(rows)) if place not in gone])
    if len(kept) == 0:
        raise InputError(f"No {where} row has a {what} that can be read; set --text_column")
    return kept
