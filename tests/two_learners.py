"""What test_learner.py starts on two processes: three steps of the bandit, weights and reward written by the first."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from test_learner import learner, steps

if __name__ == "__main__":
    subject = learner()
    assert subject.accelerator.num_processes == 2
    figures = steps(subject, 3)[-1]
    if subject.accelerator.is_main_process:
        subject.save(Path(sys.argv[1]))
        (Path(sys.argv[1]) / "reward").write_text(str(figures["reward"]))
    torch.distributed.destroy_process_group()
