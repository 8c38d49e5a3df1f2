"""A series → windows to learn from: what was, and what came. Knows arrays; knows no model and no file.

A window is a view of the series. 336 steps of context and 96 to forecast, copied for each place where a
forecast may begin, would be 432 times the series.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch

from finetune.data.series import Spacing, times_from

# Of what a moment of time tells a model, each from -0.5 to 0.5: the hour of the day, the day of the week, of
# the month and of the year (as Zhou et al. 2021, appendix B, take for hourly data).
CALENDAR = 4


class Windows(torch.utils.data.Dataset):
    """Every place of a series where a forecast may begin, in order of time; with the columns of features that
    a trainer asks of any data set: `row` (the series' row that a forecast begins at), `length` (steps of a
    window) and `labels`.

    Args:
        values: [time, channels], float32; kept as they are.
        context: steps that a forecast is made from.
        horizon: steps of a forecast; 0 for windows that nothing follows.
        origins: rows that forecasts begin at (default: all that have the context before and the horizon after
            them).
        start: time of the first row, with `step`; None where nothing tells the times.
    """

    column_names = ("past_values", "labels", "row", "length")

    def __init__(
        self,
        values: np.ndarray,
        context: int,
        horizon: int,
        *,
        origins: Sequence[int] | np.ndarray | None = None,
        start: np.datetime64 | None = None,
        step: Spacing | None = None,
    ) -> None:
        self.values, self.context, self.horizon = values, context, horizon
        self.start, self.step = start, step
        # the last origin still has a whole horizon behind it
        every = range(context, len(values) - horizon + 1)
        self.origins: Sequence[int] | np.ndarray = every if origins is None else origins

    def __len__(self) -> int:
        return len(self.origins)

    @overload
    def __getitem__(self, wanted: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, wanted: str) -> np.ndarray: ...
    def __getitem__(self, wanted: int | str) -> Any:
        """A window as views {past_values [context, channels], labels [horizon, channels], row, length}, or
        one of the columns `row` and `length` of all.
        """
        if isinstance(wanted, str):
            return self._column(wanted)
        origin = int(self.origins[wanted])
        window = {
            "past_values": self.values[origin - self.context : origin],
            "labels": self.values[origin : origin + self.horizon],
            "row": origin,
            "length": self.context + self.horizon,
        }
        if self.start is not None and self.step is not None:
            # times are computed for a whole batch at once, in `stacked`
            window["calendar"] = (self.start, self.step)
        return window

    def __getitems__(self, wanted: Sequence[int]) -> list[dict[str, Any]]:
        return [self[index] for index in wanted]

    def _column(self, name: str) -> np.ndarray:
        if name == "row":
            return np.asarray(self.origins)
        # one number, seen from all rows
        return np.broadcast_to(np.int64(self.context + self.horizon), len(self))

    def select(self, wanted: Sequence[int] | np.ndarray) -> Windows:
        """Some of the windows, in this order; all in their own order are these."""
        places = np.asarray(wanted)
        if len(places) == len(self) and (places == np.arange(len(self))).all():
            return self
        origins = np.asarray(self.origins)[places]
        return Windows(
            self.values, self.context, self.horizon, origins=origins, start=self.start, step=self.step
        )


def calendar(start: np.datetime64, step: Spacing, places: np.ndarray) -> np.ndarray:
    """What the times of rows `places` (any shape) tell: [..., CALENDAR], float32, each from -0.5 to 0.5."""
    times = times_from(start, step, places)
    days = times.astype("datetime64[D]")
    months, years = days.astype("datetime64[M]"), days.astype("datetime64[Y]")
    day = np.timedelta64(1, "D")
    parts = (
        (times - days.astype(times.dtype)).astype(np.int64) // 3_600_000 / 23,
        ((days.astype(np.int64) + 3) % 7) / 6,  # 1970 began on a Thursday
        (days - months.astype("datetime64[D]")) / day / 30,
        (days - years.astype("datetime64[D]")) / day / 365,
    )
    return (np.stack(parts, axis=-1) - 0.5).astype(np.float32)


def stacked(windows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Windows → past_values [batch, context, channels], labels [batch, horizon, channels], row [batch], and
    where times are known past_time_features [batch, context, CALENDAR] and future_time_features.
    """
    batch = {
        name: torch.from_numpy(np.stack([one[name] for one in windows])) for name in ("past_values", "labels")
    }
    batch["row"] = torch.tensor([one["row"] for one in windows])
    if "calendar" in windows[0]:
        context, horizon = (batch[name].shape[1] for name in ("past_values", "labels"))
        # [batch, context + horizon], the series' rows
        places = batch["row"].numpy()[:, None] + np.arange(-context, horizon)
        told = torch.from_numpy(calendar(*windows[0]["calendar"], places))
        batch["past_time_features"], batch["future_time_features"] = told[:, :context], told[:, context:]
    return batch
