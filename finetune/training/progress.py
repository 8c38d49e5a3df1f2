"""What a person sees while a run goes on: a bar on a terminal, plain lines in a file, `history.jsonl` for its
page.

Knows the Trainer's logs and counts of weights; knows no rows.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.methods import trainable_share
from finetune.training.machine import describe

logger = logging.getLogger(__name__)
HISTORY = "history.jsonl"


def announce(network: Any, training: TrainingArguments) -> None:
    """What is about to be trained, where and in which precision; on the main process."""
    trained, every = trainable_share(network)
    # casts inside autocast are no matter; it is the masters that lose small updates
    if any(p.requires_grad and p.dtype in (torch.bfloat16, torch.float16) for p in network.parameters()):
        logger.warning(
            "Weights are trained in 16 bits, where small updates are rounded away. Set --dtype float32 "
            "(bf16 casts by itself)"
        )
    logger.warning("%s", describe(training.world_size, bool(training.bf16)))
    logger.warning(
        "%s trainable of %s parameters (%.2f %%)", f"{trained:,}", f"{every:,}", 100 * trained / every
    )


def keep_history(file: Path, step: int) -> None:
    """Leave out what was logged after the step that a run continues from: those steps are made again."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    whole = [line for line in lines if line.endswith("}")]  # a killed run may have left half a line
    file.parent.mkdir(parents=True, exist_ok=True)
    # at step 0 nothing is continued, and what lies there is of another run
    kept = [line for line in whole if json.loads(line)["step"] <= step] if step else []
    file.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


class Progress(TrainerCallback):
    """Loss, rows a second and time left; on the main process."""

    def __init__(self, rows_a_step: int) -> None:
        # None on every process but the main one, and in files
        self.rows_a_step, self.bar = rows_a_step, None
        self.started, self.first, self.loss = 0.0, 0, ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started, self.first = time.monotonic(), state.global_step
        if state.is_world_process_zero:
            # before the bar: a history that is read while the run goes on must not hold lines twice
            keep_history(Path(args.output_dir) / HISTORY, state.global_step)
        if state.is_world_process_zero and sys.stderr.isatty():
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar:
            # the difference, since a resumed bar begins at its step
            self.bar.update(state.global_step - self.bar.n)
            self.bar.set_postfix_str(f"{self.loss}{self._speed(state):.0f} rows/s")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        with (Path(args.output_dir) / HISTORY).open("a", encoding="utf-8") as history:
            # opened anew for each line, so that a killed run loses one line at most
            history.write(json.dumps({"step": state.global_step, "epoch": state.epoch, **logs}) + "\n")
        line = self._line(state, logs)
        if (
            self.bar and "loss" in logs
        ):  # a person at a terminal sees one line that changes, not a wall of them
            self.loss = f"loss {logs['loss']:.3f}, "
        elif line:
            # past the bar, which a plain print would tear
            tqdm.write(line, file=sys.stderr)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar:
            self.bar.close()
            self.bar = None

    def _speed(self, state: TrainerState) -> float:
        return (
            (state.global_step - self.first) * self.rows_a_step / max(time.monotonic() - self.started, 1e-9)
        )

    def _line(self, state: TrainerState, logs: dict[str, Any]) -> str:
        place = f"step {state.global_step}/{state.max_steps}, epoch {state.epoch or 0:.2f}"
        if "loss" in logs:
            # steps of this process alone: those before a resume took time that isn't counted
            done = max(state.global_step - self.first, 1)
            left = (time.monotonic() - self.started) / done * (state.max_steps - state.global_step)
            return (
                f"{place} | loss {logs['loss']:.4f} | gradient {logs.get('grad_norm', 0.0):.2f} | learning "
                "rate "
                f"{logs['learning_rate']:.1e} | {self._speed(state):.1f} rows/s | "
                f"{int(left // 60)}:{int(left % 60):02d} left"
            )
        figures = {
            k.removeprefix("eval_"): v
            for k, v in logs.items()
            if k.startswith("eval_") and isinstance(v, float)
        }
        shown = [
            f"{k} {v:.4f}" for k, v in figures.items() if not k.endswith(("runtime", "per_second", "time"))
        ]
        return f"{place} | evaluation | " + " | ".join(shown) if shown else ""
