"""A script of this project, killed at its KILL_AT-th training step on the second process as a machine would
kill it, or by another signal: KILL_BY=SIGSTOP hangs it.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import transformers


class Killed:
    """Stands in for the Trainer's step."""

    def __init__(self, at: int) -> None:
        self.left, self.step = at, transformers.Trainer.training_step

    def __get__(self, trainer: Any, owner: type) -> Any:
        self.left -= 1
        if self.left == 0 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), getattr(signal, os.environ.get("KILL_BY", "SIGKILL")))
        return self.step.__get__(trainer, owner)


if __name__ == "__main__":
    transformers.Trainer.training_step = Killed(int(os.environ["KILL_AT"]))
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
