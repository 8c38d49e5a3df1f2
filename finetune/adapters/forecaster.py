"""A finished run of the task forecast → what comes next, in the channels' own units. Knows windows and
artefacts; knows no training and no server.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from finetune.data.series import even_step
from finetune.data.windows import calendar
from finetune.errors import InputError
from finetune.models.series_processor import SeriesProcessor
from finetune.tasks.task import Task


class PastReader:
    """What was, by channel → what a model reads of it, and its forecast back in the channels' own units.

    Args:
        processor: holds names and scales of the channels.
        context: steps that a forecast is made from; earlier ones are not looked at.
        horizon: steps that are forecast.
        told: whether the model reads when each step was.
    """

    def __init__(self, processor: SeriesProcessor, context: int, horizon: int, told: bool) -> None:
        self.processor, self.context, self.horizon, self.told = processor, context, horizon, told
        self.channels = list(processor.channels or ())

    def check(self, place: int, past: Any) -> None:
        """What was can be read.

        Raises:
            InputError: it can't, with its place.
        """
        # by its keys, which a data frame has too
        if not hasattr(past, "keys"):
            raise InputError(f"Input {place} is no series by channel; wanted {{channel: [numbers]}}")
        try:
            self._values(past)
        except InputError as error:
            raise InputError(f"Input {place}: {error}") from error

    def length(self, past: Any) -> int:
        """Steps that are read."""
        return self.context

    def note(self, past: Any) -> None:
        """Earlier steps are always left out, which is nothing to be said."""

    def tensors(
        self, past: Mapping[str, Sequence[float]], times: Sequence[Any] | None = None
    ) -> dict[str, torch.Tensor]:
        """What a model reads: past_values [1, context, channels] on the standard scale, and the calendar
        where it reads times.

        Raises:
            InputError: see `Forecaster`.
        """
        # Standardised as in training; one row.
        batch = {"past_values": self.processor.standard(torch.from_numpy(self._values(past)))[None]}
        return batch | self._calendar(times, len(past[self.channels[0]]))

    def own(self, said: torch.Tensor) -> dict[str, list[float]]:
        """A forecast [horizon, channels] on the standard scale → the numbers of each channel."""
        # Float32 from whatever the model computes in.
        values = self.processor.own(said.float().cpu())
        return {name: values[:, place].tolist() for place, name in enumerate(self.channels)}

    def _values(self, past: Mapping[str, Sequence[float]]) -> np.ndarray:
        missing = [name for name in self.channels if name not in past]
        if missing:
            raise InputError(f"No channel '{missing[0]}'; wanted {', '.join(self.channels)}")
        counts = {name: len(past[name]) for name in self.channels}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise InputError(f"The channels have unlike numbers of steps ({told}); wanted one for each time")
        found = []
        # In the order of training: the columns of a data frame may come in any.
        for name in self.channels:
            try:
                # Float64 first: values of large offset lose their changes in float32.
                column = np.asarray(past[name], dtype=np.float64)[-self.context :]
            except (TypeError, ValueError) as error:
                raise InputError(f"The channel '{name}' holds what is no number: {error}") from error
            if len(column) < self.context:
                raise InputError(
                    f"The channel '{name}' has {len(column)} steps; a forecast is made from {self.context}"
                )
            if not np.isfinite(column).all():
                # Counted from the end, where the window was cut.
                step = int(np.flatnonzero(~np.isfinite(column))[0]) - len(column)
                raise InputError(f"The channel '{name}' has no finite number {-step} steps before its end")
            found.append(column)
        return np.stack(found, axis=1)

    def _calendar(self, times: Sequence[Any] | None, count: int) -> dict[str, torch.Tensor]:
        if not self.told:
            return {}
        if times is None or len(times) != count:
            raise InputError(f"The model reads times; wanted one for each of the {count} steps as `times`")
        # Of the last steps alone: an uneven step before the window does no harm.
        try:
            moments = np.asarray(times, dtype="datetime64[ms]")[-self.context :]
        except (TypeError, ValueError) as error:
            raise InputError(
                f"`times` holds what is no time ({error}); wanted such as 2026-11-30T14:00"
            ) from error
        step = even_step(moments, None, "times")
        # The calendar goes on past the last value: the future's times are known.
        places = np.arange(self.context + self.horizon)
        told = torch.from_numpy(calendar(moments[0], step, places))[None]
        past, future = told.split([self.context, self.horizon], dim=1)
        return {"past_time_features": past, "future_time_features": future}


class Forecaster:
    """What was → what comes. Calls from several threads take turns on the model.

    Attributes:
        channels: names of the channels, as they were trained.
        context_length: steps that a forecast is made from; earlier ones are not looked at.
        prediction_length: steps that are forecast.
    """

    def __init__(self, network: Any, processor: SeriesProcessor, row: Task, prediction_length: int) -> None:
        self.network, self.processor, self.row = network.eval(), processor, row
        told = bool(network.config.to_dict().get("num_time_features"))
        self.reader = PastReader(processor, row.lead, prediction_length, told)
        self.channels = self.reader.channels
        self.context_length, self.prediction_length = row.lead, prediction_length
        self._turn = threading.Lock()

    def __call__(
        self, past: Mapping[str, Sequence[float]], times: Sequence[Any] | None = None
    ) -> dict[str, list[float]]:
        """The next steps of each channel, `{"load": [horizon numbers], ...}`, in its own unit.

        Args:
            past: channel → its values up to now, oldest first (a data frame's columns will do).
            times: when each of them was, for models that read times; at even steps.

        Raises:
            InputError: a channel is missing, too short, or holds what is no number; times that are missing or
                uneven.
        """
        batch = self.reader.tensors(past, times)
        # The model wants something to compare with, which nobody looks at.
        wanted = torch.zeros(1, self.prediction_length, len(self.channels))
        device = self.network.device
        # One at a time; only the model is shared.
        with self._turn, torch.inference_mode():
            said = self.row.forward(
                self.network, {k: v.to(device) for k, v in batch.items()}, wanted.to(device)
            )
        return self.reader.own(said[0])
