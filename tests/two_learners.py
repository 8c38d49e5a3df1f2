"""What test_learner.py starts on two processes: three steps of the bandit, stopped after the first and
continued, and answers that are shared out; weights, reward and answers written by the main one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from finetune.cli.parser import leave_processes

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "alignment")]
from test_ppo_trainer import learner, sampled, steps  # noqa: E402


def main() -> None:
    folder, stopped = Path(sys.argv[1]), learner()
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


if __name__ == "__main__":
    main()
    leave_processes()
