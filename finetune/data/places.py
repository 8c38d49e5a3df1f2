"""Where a row stands in its file: what messages call it, whatever was shuffled, sampled or left out
since. Knows nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from finetune.errors import InputError

PLACE = "__place__"  # holds `row 3 (line 5)` for each row; no column of the user's
FOLDER = "__folder__"  # where the files lie that a row names, beside its own table
LICENCE = "__licence__"  # the licence of each row, where its set or a column says it
SOURCE = "__source__"  # where each row is from, where a column says it
SET = "__set__"  # names the data set of an evaluation row where there are several


def place_of(rows: Dataset | None, index: int) -> str:
    """Where a row stands in its file, for messages; its number where nobody knows, or where it is of no
    file.
    """
    known = rows is not None and PLACE in rows.column_names
    return str(rows[index][PLACE]) if rows is not None and known else f"row {index}"


def places_of(rows: Dataset, indices: Sequence[int], most: int = 5) -> str:
    """The first few of some rows, with their lines where the file has lines: `lines 5, 19, ...; rows
    3, 17, ...`.
    """
    places = [place_of(rows, index) for index in indices[:most]]
    more = ", ..." if len(indices) > most else ""
    found = [re.fullmatch(r"row (\d+)(?: \(line (\d+)\))?", place) for place in places]
    if not all(found):  # of several files
        return ", ".join(places) + more
    numbers, lines = zip(*(match.groups() for match in found if match), strict=True)
    said = f"lines {', '.join(lines)}{more}; " if all(lines) else ""
    return f"{said}rows {', '.join(numbers)}{more}"


def unreadable(
    rows: Dataset,
    index: int,
    said: str,
    read: Callable[[dict[str, Any]], Any],
    kinds: type[Exception] | tuple[type[Exception], ...],
) -> str:
    """The first row that can't be read, what is `said` of it, and the rows behind it that can't be read
    either: all are named at once.

    Args:
        read: what raises one of `kinds` for a row that can't be read.
    """
    others = []
    for place in range(index + 1, len(rows)):
        try:
            read(rows[place])
        except kinds:
            others.append(place)
    more = f"; {len(others)} more can't be read either ({places_of(rows, others)})" if others else ""
    return f"In {place_of(rows, index)}{said}{more}"


def check_each(
    rows: Dataset, where: str, names: Sequence[str], fault: Callable[..., str | None], remedy: str
) -> None:
    """Refuse rows with a fault, all of them in one message.

    Args:
        where: what the rows are for, as `training`.
        names: columns whose cells `fault` is given; it says what a row has that it shouldn't, or None.

    Raises:
        InputError: what the first row has, and where the others stand.
    """
    cells = zip(*(rows[name] for name in names), strict=True)
    bad = {index: said for index, row in enumerate(cells) if (said := fault(*row))}
    if bad:
        first, *others = bad
        more = f"; {len(others)} more have such a fault ({places_of(rows, others)})" if others else ""
        raise InputError(f"The {where} {place_of(rows, first)} {bad[first]}{more}. {remedy}")


def columns_of(rows: Dataset) -> list[str]:
    """The user's columns."""
    return [name for name in rows.column_names if name not in (PLACE, SET, LICENCE, SOURCE, FOLDER)]


def short_names(names: Sequence[str]) -> list[str]:
    """Each data set's name without the folders that tell it from no other: ["a/x/rows.csv", "b/x/rows.csv"]
    → ["a/x/rows.csv", "b/x/rows.csv"], ["a/one.csv", "b/two.csv"] → ["one.csv", "two.csv"].
    """
    parts = {name: Path(name).parts or (name,) for name in names}
    for depth in range(1, max(map(len, parts.values()), default=1) + 1):
        short = {name: "/".join(part[-depth:]) for name, part in parts.items()}
        # the same file named twice stays one set; two files of one name must not share a line of figures
        if len(set(short.values())) == len(parts):
            break
    return [short[name] for name in names]
