"""A part of two_processes.py: three steps of the bandit, stopped after the first and
continued, and answers that are shared out; weights, reward and answers written by the main one."""

from __future__ import annotations

import json
from pathlib import Path

from test_ppo_trainer import learner, sampled, steps


def main(folder: Path) -> None:
    stopped = learner()
    assert stopped.accelerator.num_processes == 2
    steps(stopped, 1)
    if stopped.accelerator.is_main_process:
        stopped.save(folder)
    stopped.accelerator.wait_for_everyone()
    subject = learner()
    subject.restore(folder / "checkpoint-1")
    figures = steps(subject, 2)[-1]
    answers = sampled(learner())
    if subject.accelerator.is_main_process:
        (folder / "answers").write_text(json.dumps(answers))
        subject.save(folder)
        (folder / "reward").write_text(str(figures["reward"]))
