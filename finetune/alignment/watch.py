"""What one of TRL's trainers does to a policy, step by step → the files that record.py describes.
Knows TRL's names of figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.alignment import record
from finetune.alignment.measure import measure
from finetune.alignment.policy import Policy
from finetune.alignment.rewards import AskedRewards, Rewards
from finetune.alignment.rollout import SamplingArguments

# TRL's name → record.py's; what has no other name keeps TRL's
NAMES = {
    "completions/mean_length": "length", "clip_ratio/region_mean": "clip_share",
    "completions/clipped_ratio": "cut",
    "loss": "policy_loss", "grad_norm": "gradient", "objective/kl": "kl", "objective/entropy": "entropy",
    "objective/scores": "reward", "val/contain_eos_token": "ended",
}  # fmt: skip


class Watch(TrainerCallback):
    """Measures a policy on held-out prompts before training, every so many steps and at the end, and keeps
    TRL's figures.

    On the main process; the others go on to their next exchange and wait there.
    """

    def __init__(
        self, policy: Policy, processor: Any, held_out: Sequence[AskedRewards], rewards: Rewards, *,
        sampling: SamplingArguments, every: int
    ) -> None:  # fmt: skip
        self.policy, self.processor, self.held_out, self.rewards = policy, processor, held_out, rewards
        self.sampling, self.every = sampling, every
        self.folder, self.log, self.answers = Path(), list[record.RecordLine](), list[record.RecordLine]()
        self.noted: record.RecordLine = {}  # of the step that is being made

    def note(self, name: str, value: float) -> None:
        """A figure of the step that is being made, which TRL's own log has no place for."""
        self.noted[name] = value

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.folder = Path(str(args.output_dir))
        self.log, self.answers = (
            record.lines_before(self.folder / name, state.global_step)
            for name in (record.LOG, record.ANSWERS_FILE)
        )
        # A continued run has step 0 in its lines.
        if state.is_world_process_zero and state.global_step == 0:
            self.log.append({"step": 0, **self._measured(0)})

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        last = state.global_step == state.max_steps
        if state.is_world_process_zero and (state.global_step % self.every == 0 or last):
            self._line(state.global_step).update(self._measured(state.global_step))
            self._write()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str,
        Any] | None = None,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        told = {name: value for name, value in (logs or {}).items() if isinstance(value, (int, float))}
        # The last log sums up the run and belongs to no step.
        if state.is_world_process_zero and "train_runtime" not in told:
            self._line(state.global_step).update(step_figures(told) | self.noted)
            self.noted = {}
            self._write()

    def _line(self, step: int) -> record.RecordLine:
        # TRL logs and measures one step at different moments: one line holds both.
        if not self.log or self.log[-1]["step"] != step:
            self.log.append({"step": step})
        return self.log[-1]

    def _write(self) -> None:
        record.write_lines(self.folder / record.LOG, self.log)
        record.write_lines(self.folder / record.ANSWERS_FILE, self.answers)

    def _measured(self, step: int) -> record.RecordLine:
        network = self.policy.network
        policy, was_training = (
            self.policy.to(network.device),
            network.training,
        )  # TRL has moved the network alone
        # Without dropout; the mode comes back afterwards.
        network.eval()
        figures, samples = measure(
            policy, self.processor, self.held_out, self.rewards, sampling=self.sampling
        )
        network.train(was_training)
        self.answers.append(record.answers_line(step, figures, samples))
        print(
            f"held-out | reward {figures['reward']:.3f} ± {figures['error']:.3f} | KL {figures['kl']:.2f} "
            "nats a sequence",
            flush=True,
        )
        return record.measured(figures)

    def finish(self, algorithm: str) -> dict[str, Any]:
        """Write the summary; gives the figures before and after, and the last ones by their short names."""
        found = record.write_summary(self.folder, algorithm, self.log, self.answers)
        after = found["after"]
        short = {"reward": after["true_reward"], "error": after["true_reward_error"],
        "kl": after["held_out_kl"],
                 "length": after["held_out_length"]}  # fmt: skip
        return short | {name: found[name] for name in ("before", "after", "difference")}


def step_figures(told: dict[str, Any]) -> record.RecordLine:
    """TRL's figures by record.py's names; KL a token becomes KL a sequence."""
    line = {NAMES.get(name, name): value for name, value in told.items()}
    if "cut" in line:
        line["ended"] = 1 - line.pop("cut")
    if "kl" in line and "length" in line and "objective/kl" not in told:
        # GRPO logs KL as a mean over tokens; online DPO's is of sequences already.
        line["kl"] *= line["length"]
    return line
