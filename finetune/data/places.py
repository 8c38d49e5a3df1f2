"""Where a row stands in its file: what messages call it, whatever was shuffled, sampled or left out since. Knows nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset

PLACE = "__place__"  # holds `row 3 (line 5)` for each row; no column of the user's
SET = "__set__"  # names the data set of an evaluation row where there are several


def place_of(rows: Dataset, index: int) -> str:
    """Where a row stands in its file, for messages; its number where nobody knows."""
    return str(rows[index][PLACE]) if PLACE in rows.column_names else f"row {index}"


def places_of(rows: Dataset, indices: Sequence[int], most: int = 5) -> str:
    """The first few of some rows: `rows 3, 17 (line 19), ...`."""
    named = ", ".join(place_of(rows, index).removeprefix("row ") for index in indices[:most])
    return f"rows {named}" + (", ..." if len(indices) > most else "")


def columns_of(rows: Dataset) -> list[str]:
    """The user's columns."""
    return [name for name in rows.column_names if name not in (PLACE, SET)]
