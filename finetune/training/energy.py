"""What a training took of the processor, and of energy where codecarbon is installed. Knows meters; knows no
model and no rows.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from typing import Any

from transformers import TrainerCallback

ENERGY = "energy_kwh"
PROCESSOR = "processor_seconds"


def has_meter() -> bool:
    """Whether codecarbon is installed."""
    return importlib.util.find_spec("codecarbon") is not None


class ProcessorMeter(TrainerCallback):
    """Appends the processor's seconds of this process, and of those that made batches for it, to the log
    history when training ends; other programs on the machine change seconds by the clock, and these little.
    """

    def __init__(self) -> None:
        self._begun: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begun = self._now()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._begun is not None:
            state.log_history.append({PROCESSOR: self._now() - self._begun, "step": state.global_step})
            self._begun = None

    @staticmethod
    def _now() -> float:
        # of children those that have ended, as workers of an epoch have
        return sum(os.times()[:4])


class EnergyMeter(TrainerCallback):
    """Appends `energy_kwh` of this process to the log history when training ends.

    codecarbon reads the processor's and the GPU's own counters, and estimates by their rated power where it
    may not. It runs offline and writes nothing; of the country, which it wants and which weighs emissions
    alone, nothing is used.
    """

    def __init__(self) -> None:
        self._meter: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        from codecarbon import OfflineEmissionsTracker

        # it announces itself before it reads the level that it is given
        logging.getLogger("codecarbon").addFilter(lambda record: record.levelno >= logging.ERROR)
        # "process" leaves out what other programs on this machine draw
        self._meter = OfflineEmissionsTracker(
            country_iso_code="USA", output_methods=[], log_level="error", tracking_mode="process"
        )
        self._meter.start()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._meter is None:
            return
        self._meter.stop()
        used = float(self._meter.final_emissions_data.energy_consumed)
        # into the history and not aside: a run that is continued adds up its parts (see `_logged`)
        state.log_history.append({ENERGY: used, "step": state.global_step})
        self._meter = None
