"""Time that is left, and the most memory that a piece of work takes. Knows clocks; knows no work."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

PACED = 10  # steps that tell a training's pace


class BudgetSpent(Exception):
    """There is no time left for what goes on; what is done stays done."""


class TimeBudget:
    """A budget of seconds, from the making of this object.

    Args:
        seconds: in all.
    """

    def __init__(self, seconds: float) -> None:
        # a clock that can't be set back
        self.start, self.seconds = time.monotonic(), seconds

    @property
    def left(self) -> float:
        """Seconds that are left, 0 at least."""
        return max(0.0, self.seconds - (time.monotonic() - self.start))

    def check(self, needed: float = 0.0) -> None:
        """
        Raises:
            BudgetSpent: nothing is left, or less than the seconds that are `needed`.
        """
        if not self.left or needed > self.left:
            raise BudgetSpent


class StopInTime(TrainerCallback):
    """Ends a training that the budget doesn't last for, as soon as its own pace tells."""

    def __init__(self, clock: TimeBudget) -> None:
        self.clock, self.start = clock, time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # over the steps so far: the first has warmed up
        pace = (time.monotonic() - self.start) / state.global_step
        # the first steps are slower than the others, and tell nothing
        self.clock.check(pace * (state.max_steps - state.global_step) if state.global_step >= PACED else 0.0)


class Peak:
    """The most memory that this process holds from here on, in MB (Linux counts it anew; elsewhere None)."""

    def __init__(self) -> None:
        self.works = False
        with suppress(OSError):
            # 5 sets the process's peak back to what it holds now (proc(5))
            Path("/proc/self/clear_refs").write_text("5")
            self.works = True

    def mb(self) -> float | None:
        """Since this object was made."""
        if not self.works:
            return None
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        # the peak since then, in kB
        told = next((line for line in lines if line.startswith("VmHWM:")), None)
        return None if told is None else int(told.split()[1]) / 1024
