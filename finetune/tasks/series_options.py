"""What the tasks on series may be told. Knows options; knows no task."""

from __future__ import annotations

from dataclasses import dataclass, field

from finetune.errors import InputError


@dataclass
class SeriesArguments:
    """How a series is read, cut and forecast."""

    context_length: int | None = field(
        default=None,
        metadata={
            "help": "Steps that are read (forecast: 336 where nothing is set; series: as many as the longest "
            "training row has)."
        },
    )
    prediction_length: int = field(default=96, metadata={"help": "Steps that are forecast (forecast)."})
    split_rows: str | None = field(
        default=None,
        metadata={
            "help": "Rows of training, validation and test in order of time, as 8640,2880,2880, or shares "
            "(forecast; default: the files' splits, or 0.7,0.1 of one file and the rest)."
        },
    )
    time_column: str | None = field(
        default=None, metadata={"help": "Column with the times (forecast; default: by its usual names)."}
    )
    series_columns: list[str] | None = field(
        default=None,
        metadata={"help": "Columns with the channels (forecast; default: all others; --ignore_columns)."},
    )
    season: int | None = field(
        default=None,
        metadata={
            "help": "Steps of a season, which the naive forecast repeats (forecast; default: by the times, a "
            "day of hours, a week of days, a year of months)."
        },
    )


def check_series(options: SeriesArguments) -> None:
    """No option holds what can't be.

    Raises:
        InputError: one does.
    """
    for name, least in (("context_length", 2), ("prediction_length", 1), ("season", 1)):
        value = vars(options)[name]
        if value is not None and value < least:
            raise InputError(f"Got --{name} {value}; wanted {least} or more")
