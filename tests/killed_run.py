"""A script of this project, killed at its KILL_AT-th gradient (of ppo, step) on the second process, or
that of KILL_RANK, as a machine would kill it, or by another signal: KILL_BY=SIGSTOP hangs it.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import accelerate

from finetune.alignment import ppo_trainer


class Killed:
    """Stands in for a gradient, which every trainer asks accelerate for, or a step of PPO's loop."""

    def __init__(self, at: int, step: Any) -> None:
        self.left, self.step = at, step

    def __get__(self, trainer: Any, owner: type) -> Any:
        self.left -= 1
        # alone, a process has no rank
        if self.left == 0 and os.environ.get("RANK", "0") == os.environ.get("KILL_RANK", "1"):
            os.kill(os.getpid(), getattr(signal, os.environ.get("KILL_BY", "SIGKILL")))
        return self.step.__get__(trainer, owner)


if __name__ == "__main__":
    at = int(os.environ["KILL_AT"])
    accelerate.Accelerator.backward = Killed(at, accelerate.Accelerator.backward)
    ppo_trainer.Learner.learn = Killed(at, ppo_trainer.Learner.learn)
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
