"""A table with a row for each time → one series of numbers. Knows columns and times; knows no task and no
model.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset, Value

from finetune.data.places import columns_of, place_of
from finetune.errors import InputError

logger = logging.getLogger(__name__)

TIMES = ("date", "time", "timestamp", "datetime", "ds")
DOTTED = r"\d{1,2}\.\d{1,2}\.\d{4}\b"
NUMBERS = ("int", "uint", "float", "double", "halffloat")


@dataclass(frozen=True)
class Spacing:
    """The time from a row to the next: so many months, or so many seconds."""

    months: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        if self.months:
            return f"{self.months} month{'s' * (self.months > 1)}"
        for name, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
            # the largest unit that it is a whole number of
            if self.seconds % size == 0:
                count = int(self.seconds // size)
                return f"{count} {name}{'s' * (count > 1)}"
        return f"{self.seconds:g} seconds"

    @property
    def season(self) -> int:
        """Steps until the same point of the next usual cycle: a year of months, a week of days, a day of
        anything shorter; 1 where there is none.
        """
        if self.months:
            return 12 // self.months if 12 % self.months == 0 else 1
        # days have weeks, shorter steps have days
        cycle = 7 * 86400 if self.seconds >= 86400 else 86400
        return int(cycle // self.seconds) if 0 < self.seconds < cycle and cycle % self.seconds == 0 else 1


@dataclass(frozen=True)
class Series:
    """Values that follow each other at even times.

    Attributes:
        values: [time, channels], float32.
        channels: their names.
        start: the first row's time; None where the rows have none.
        step: between two rows; None where the rows have no times.
    """

    values: np.ndarray
    channels: list[str]
    start: np.datetime64 | None
    step: Spacing | None

    def times(self, first: int, count: int) -> np.ndarray:
        """Times of `count` rows from `first` on, datetime64[ms]; they are computed, not kept."""
        assert self.start is not None and self.step is not None
        return times_from(self.start, self.step, np.arange(first, first + count))


def times_from(start: np.datetime64, step: Spacing, places: np.ndarray) -> np.ndarray:
    """Time of each of the rows `places` (any shape), as datetime64[ms]."""
    if not step.months:
        # milliseconds, in which `start` is
        return start + (places * step.seconds * 1000).astype("timedelta64[ms]")
    # months have no fixed length: counted on the calendar, and the place within the month put back
    month = start.astype("datetime64[M]")
    within = start - month.astype("datetime64[ms]")
    moved = (month + (places * step.months).astype("timedelta64[M]")).astype("datetime64[ms]")
    return moved + within


def find_time(rows: Dataset, named: str | None, name: str) -> str | None:
    """The column with the times: the one that was named, else one with a usual name, else none.

    Raises:
        InputError: the named column is not there.
    """
    there = columns_of(rows)
    if named is not None and named not in there:
        raise InputError(f"No column '{named}' in {name}; it has {', '.join(there)}. Set --time_column")
    # reversed, so that of `Date` and `date` the first in the file wins
    known = {column.lower(): column for column in reversed(there)}
    return named or next((known[usual] for usual in TIMES if usual in known), None)


def find_channels(
    rows: Dataset, time: str | None, wanted: Sequence[str] | None, ignored: Sequence[str] | None, name: str
) -> list[str]:
    """The columns that hold the channels: those that were named, else all but the time's and those ignored.

    Raises:
        InputError: a named column that is not there, one that holds no numbers, or none at all.
    """
    there = [column for column in columns_of(rows) if column != time]
    for flag, names in (("series_columns", wanted), ("ignore_columns", ignored)):
        strange = [column for column in names or () if column not in columns_of(rows)]
        if strange:
            raise InputError(f"No column '{strange[0]}' in {name}; it has {', '.join(there)}. Set --{flag}")
    channels = list(wanted) if wanted else [column for column in there if column not in set(ignored or ())]
    # all checked before any is read: the first fault names a column, not a cast
    for column in channels:
        feature = rows.features[column]
        if not isinstance(feature, Value) or not feature.dtype.startswith(NUMBERS):
            kind = feature.dtype if isinstance(feature, Value) else str(feature)
            raise InputError(
                f"The column '{column}' of {name} holds {_sample(rows, column)} (type {kind}); a channel "
                "wants numbers (decimals with a point). Mend the column, leave it out by "
                f"--ignore_columns {column}, or name the channels by --series_columns"
                f"{'' if time else ' and the times by --time_column'}"
            )
    if not channels:
        held = ", ".join(columns_of(rows))
        raise InputError(f"{name} has no column of numbers; it has {held}. Set --series_columns")
    return channels


def _sample(rows: Dataset, column: str) -> str:
    """The first cell that is there and is no finite number, for a message."""
    for index, value in enumerate(rows[column][:]):
        if value is None:
            continue
        try:
            # `nan` and `inf` make a column of texts too, and are not what a channel wants
            finite = math.isfinite(float(value))
        except (TypeError, ValueError):
            finite = False
        if not finite:
            return f"{value!r:.60} in {place_of(rows, index)}"
    return f"{rows[column][0]!r:.60} in {place_of(rows, 0)}"


def to_series(rows: Dataset, time: str | None, channels: Sequence[str], name: str) -> Series:
    """The rows as one series, checked: every time follows the one before by the same step, every value is a
    number.

    Raises:
        InputError: names the row of a time that can't be read, is unsorted, stands twice or follows a gap,
        and
            of a value that is missing or no finite number.
    """
    start = step = None
    if time is not None:
        moments = read_times(rows, time, name)
        step = even_step(moments, rows, time)
        start = moments[0]
    else:
        logger.warning("%s has no column of times: its rows are taken as evenly spaced", name)
    # filled column by column: Arrow holds columns, and a stack would hold all twice
    values = np.empty((len(rows), len(channels)), np.float32)
    for place, column in enumerate(channels):
        values[:, place] = _numbers(rows, column)
    return Series(values, list(channels), start, step)


def _numbers(rows: Dataset, column: str) -> np.ndarray:
    """A column as float32, [rows]."""
    # float64 first, so that a number too large for float32 is told from one that is missing
    found = rows.with_format("pandas")[column][:].to_numpy(dtype=np.float64, na_value=np.nan)
    with np.errstate(over="ignore"):
        # overflow becomes infinite, which is reported below with its row
        narrow = found.astype(np.float32)
    strange = np.flatnonzero(~np.isfinite(narrow))
    if len(strange):
        first, value = int(strange[0]), found[strange[0]]
        said = "no value" if np.isnan(value) else f"the value {value:g}"
        raise InputError(
            f"{len(strange)} rows have no finite number in '{column}'; the first, {place_of(rows, first)}, "
            f"has {said}. Fill them (pandas: frame.interpolate()), leave the column out by --ignore_columns "
            f"{column}, or name an unbroken part as --train_split train[{first + 1}:]"
        )
    return narrow


def read_times(rows: Dataset, column: str, name: str) -> np.ndarray:
    """A column of times as datetime64[ms], [rows]; whole numbers are years.

    Raises:
        InputError: a cell that is no time, with its row.
    """
    feature, cells = rows.features[column], rows.with_format("pandas")[column][:]
    if isinstance(feature, Value) and feature.dtype.startswith(NUMBERS):
        years = cells.to_numpy(dtype=np.float64, na_value=np.nan)
        # other numbers (seconds since 1970) could mean anything and are refused
        whole = (years == np.floor(years)) & (years >= 1) & (years < 10000)
        _every(whole, cells, rows, column)
        return (years - 1970).astype("datetime64[Y]").astype("datetime64[ms]")
    if isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
        cells = cells.astype(object)
        # dots stand behind days, 31.12.2026
        dotted = bool(cells.astype(str).str.match(DOTTED).all())
        # one format: guessing would read 01/02 as it falls
        form = "mixed" if dotted else "ISO8601"
        found = pd.to_datetime(cells, format=form, dayfirst=dotted, errors="coerce", utc=True)
    else:
        found = pd.to_datetime(cells, errors="coerce", utc=True)
    _every(found.notna().to_numpy(), cells, rows, column)
    # all in UTC, where hours don't go back in autumn
    return found.dt.tz_localize(None).to_numpy().astype("datetime64[ms]")


def _every(fine: np.ndarray, cells: Any, rows: Dataset, column: str) -> None:
    if fine.all():
        return
    first = int(np.flatnonzero(~fine)[0])
    cell = cells.iloc[first]
    numbers = (
        "" if isinstance(cell, str) or pd.isna(cell) else " (seconds: pandas.to_datetime(..., unit='s'))"
    )
    held = "missing" if pd.isna(cell) else f"{cell if numbers else repr(cell)!s:.60}, which can't be read"
    raise InputError(
        f"The time in '{column}' of {place_of(rows, first)} is {held} "
        f"({int((~fine).sum())} of {len(rows)} rows); wanted a year or a date as 2016-07-01 13:00:00 or "
        f"1.7.2016{numbers}. Mend the rows, or set --time_column"
    )


def even_step(times: np.ndarray, rows: Dataset | None, column: str) -> Spacing | None:
    """The time from each row to the next, which is the same everywhere; None of one row alone.

    Raises:
        InputError: times that go back, stand twice, or leave a gap, with the row and what mends it.
    """
    if len(times) < 2:
        return None
    gone = np.diff(times).astype(np.int64)
    # order before repetition before gaps: an unsorted file may have all three
    back = np.flatnonzero(gone < 0)
    if len(back):
        raise InputError(
            f"The times in '{column}' are unsorted: {_pair(times, rows, int(back[0]))}. Sort the file by "
            f"them (pandas: frame.sort_values('{column}'))"
        )
    twice = np.flatnonzero(gone == 0)
    if len(twice):
        raise InputError(
            f"A time in '{column}' stands twice: {_pair(times, rows, int(twice[0]))}. A file holds one "
            "series, with a row for each time: keep one of the rows, or give each series a column of its "
            "own (pandas: frame.pivot)"
        )
    # months are 28 to 31 days: their steps are uneven in seconds
    months = np.diff(times.astype("datetime64[M]").astype(np.int64))
    calendar = months[0] > 0 and (months == months[0]).all() and gone[0] >= 28 * 86400_000
    if calendar and _same_day(times):
        return Spacing(months=int(months[0]))
    usual, counts = np.unique(gone, return_counts=True)
    # the commonest step is the series' own, the others are gaps
    step = usual[counts.argmax()]
    uneven = np.flatnonzero(gone != step)
    if len(uneven):
        first = int(uneven[0])
        raise InputError(
            f"The times in '{column}' have a gap or an uneven step ({len(uneven)} of them): "
            f"{_pair(times, rows, first)}, where other rows are {Spacing(seconds=step / 1000)} apart. Give "
            "the missing times rows (pandas: frame.asfreq, then interpolate), or name an unbroken part as "
            f"--train_split train[:{first + 1}]"
        )
    return Spacing(seconds=step / 1000)


def _same_day(times: np.ndarray) -> bool:
    """Whether all stand on the same day of their month, or all on its last."""
    days = times.astype("datetime64[D]")
    first = days.astype("datetime64[M]").astype("datetime64[D]")
    # the first of the next month, less a day
    following = days.astype("datetime64[M]") + np.timedelta64(1, "M")
    last = following.astype("datetime64[D]") - np.timedelta64(1, "D")
    return len(np.unique(days - first)) == 1 or bool((days == last).all())


def _pair(times: np.ndarray, rows: Dataset | None, before: int) -> str:
    def said(index: int) -> str:
        return f"{place_of(rows, index)} has {str(times[index].astype('datetime64[s]')).replace('T', ' ')}"

    return f"{said(before)} and {said(before + 1)}"
