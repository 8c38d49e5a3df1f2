"""Runs that are told to stop: the step is finished, a checkpoint sealed, exit status 143. Knows signals and
clocks; no model.

Schedulers and spot machines give notice by SIGTERM or SIGUSR1; `--time_limit` gives it before they do.
Started again with the same command, the run goes on as if nothing had been.
"""

from __future__ import annotations

import logging
import re
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.artefacts.checkpoints import fault, shared_by
from finetune.errors import InputError
from finetune.models.compiled import check_compiler, compile_layers
from finetune.models.sharded import name_layers
from finetune.training.machine import in_shards, micro_batches

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
STOPPED = 128 + signal.SIGTERM  # what a shell says of a process that SIGTERM ended
UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


@dataclass
class ResumeOptions:
    """How a run stops and goes on, whoever's trainer makes its steps."""

    resume_from: str | None = field(
        default=None,
        metadata={
            "help": "A run's folder, to train longer (--num_train_epochs, --max_steps): all else is as in "
            "its arguments.yaml, and weights, optimizer and schedule go on from its last checkpoint."
        },
    )
    global_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Rows of an optimizer step over all processes, however many there are: settles "
            "--gradient_accumulation_steps (default: what the options for each process come to)."
        },
    )
    time_limit: str | None = field(
        default=None,
        metadata={
            "help": "Save and stop (exit 143) before so long has passed, as 3h55m; SIGTERM and SIGUSR1 do it "
            "at once."
        },
    )

    def settle_micro_batches(self) -> None:
        """Micro-batches that make the rows of a step, where these are what was asked for.

        Raises:
            InputError: they don't come out even.
        """
        if self.global_batch_size is not None:
            share: int = vars(self)["per_device_train_batch_size"]  # transformers' own
            vars(self)["gradient_accumulation_steps"] = micro_batches(self.global_batch_size, share)


def seconds_of(limit: str, flag: str = "--time_limit") -> float:
    """`3h55m`, `90m`, `20min`, `1d2h`, `45s` or a bare number of seconds → seconds.

    Raises:
        InputError: none of these.
    """
    # units must stand from the largest to the smallest, in UNITS' order, for the zip below
    parts = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?:in)?)?(?:(\d+)s?)?", str(limit).strip())
    # every part is optional, so that the empty text matches too
    if not parts or not any(parts.groups()):
        raise InputError(f"Got {flag} {limit}; wanted a time as 3h55m, 90m or 300s")
    return float(sum(int(n) * size for n, size in zip(parts.groups(), UNITS.values(), strict=True) if n))


def check_stops(options: Any) -> None:
    """Options of transformers that say when a run ends.

    Raises:
        InputError: a time that is none, or transformers' own way with SIGTERM, which takes a half-trained run
            for a finished one.
    """
    if options.time_limit is not None:
        seconds_of(options.time_limit)
    if options.enable_jit_checkpoint:
        raise InputError(
            "--enable_jit_checkpoint goes past the seals; SIGTERM and SIGUSR1 save and stop anyway: leave it "
            "out"
        )


class Notice:
    """Whether this run was told to stop: by a signal, or by its clock, in time for one more step.

    Args:
        limit: seconds from the making of this object; None for no end.
    """

    def __init__(self, limit: float | None = None) -> None:
        # monotonic: a clock that is set while a run goes on must not end it
        self.end = None if limit is None else time.monotonic() + limit
        self.given: str | None = None
        self._before: dict[int, Any] = {}
        self._last, self._longest = time.monotonic(), 0.0

    def listen(self) -> None:
        """Take over the signals; outside the main thread there are none to take."""
        # loading and encoding are no step, and would count as the longest one
        self._last = time.monotonic()
        try:
            # the ones before are kept, for a program that trains and then does something else
            self._before = {one: signal.signal(one, self._told) for one in SIGNALS}
        except ValueError:
            logger.debug("signals stay as they are outside the main thread")

    def leave(self) -> None:
        """Give the signals back."""
        for one, handler in self._before.items():
            signal.signal(one, handler)
        self._before = {}

    def _told(self, number: int, frame: Any) -> None:
        # marked and no more: a handler runs in the middle of a step, where nothing whole could be saved
        self.given = signal.Signals(number).name

    def due(self) -> str | None:
        """Why to stop after this step, on every process alike; None where the run goes on. Call once
        a step.
        """
        now = time.monotonic()
        # steps differ (evaluations, saving), so that the longest one is the measure
        self._longest, self._last = max(self._longest, now - self._last), now
        # twice the longest: the next step may take as long, and its checkpoint has to be written yet
        if self.end is not None and now + 2 * self._longest > self.end:
            self.given = self.given or "--time_limit"
        # a signal may reach one process alone, and the others would wait for it at the next step for ever
        if PartialState().num_processes > 1:
            told = torch.tensor(float(self.given is not None), device=PartialState().device)
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
            self.given = self.given or ("another process was told to" if told.item() else None)
        return self.given


def leave_stopped(reason: str, place: str) -> None:
    """End this process as one that was told to stop.

    Raises:
        SystemExit: always, with status 143.
    """
    if PartialState().is_main_process:
        logger.warning("Stopped at %s (%s): start the same command again to go on from there", place, reason)
    raise SystemExit(STOPPED)


class Interrupts(TrainerCallback):
    """A signal or the end of the time: the step is finished, a checkpoint written and sealed, and the process
    ends with 143.

    Stands behind the Sealer, whose part is done when this one ends the process.
    """

    def __init__(self, time_limit: str | None = None) -> None:
        self.notice = Notice(None if time_limit is None else seconds_of(time_limit))
        self.reason: str | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.notice.listen()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.reason = self.notice.due()
        # after the last step the run ends by itself, and is saved as a finished one
        if self.reason and state.global_step < state.max_steps:
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.reason and state.global_step < state.max_steps:
            # the checkpoint is sealed by now: the Sealer stands before this callback
            leave_stopped(self.reason, f"checkpoint-{state.global_step}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.notice.leave()


class Resuming(Trainer):
    """A Trainer to which "all steps are done" and "stopped early" are states that a checkpoint restores.

    transformers' own takes one step more from either, at a learning rate of its own choice.
    """

    _asked_for = 0  # steps that the run which a checkpoint is of was to make

    def __init__(self, *, model: Any, args: Any = None, **kwargs: Any) -> None:
        if in_shards():
            name_layers(model)
        if args is not None and args.torch_compile:
            # before transformers makes its own of them, which knows no flags
            asked, compiler = "--torch_compile true: ", (args.torch_compile_backend, args.torch_compile_mode)
            check_compiler(asked, "leave it out", args.device, *compiler)
        super().__init__(model=model, args=args, **kwargs)
        if self.args.torch_compile:
            compile_layers(model, self.args.torch_compile_backend, self.args.torch_compile_mode)

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        """transformers' own, without its way to compile: the whole model anew for each length of line."""
        return super()._build_accelerator_args(**kwargs) | {"dynamo_plugin": None}

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """transformers' own."""
        if isinstance(resume_from_checkpoint, (str, Path)):
            self._check_way(Path(resume_from_checkpoint))
            state = Path(resume_from_checkpoint) / "trainer_state.json"
            # read here: transformers overwrites it by the new run's before the first step
            self._asked_for = TrainerState.load_from_json(str(state)).max_steps
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _check_way(self, checkpoint: Path) -> None:
        """A checkpoint's optimizer states are read by the way of sharing that wrote them, and by no other."""
        ways = {"shards (FSDP2)": self.is_fsdp_enabled, "DeepSpeed": self.is_deepspeed_enabled}
        here = next((way for way, used in ways.items() if used), "copies of the model")
        there, processes = shared_by(checkpoint), PartialState().num_processes
        parts = len(list(checkpoint.glob("global_step*/*_optim_states.pt")))
        if here == there == "DeepSpeed" and parts != processes:
            raise InputError(
                f"{checkpoint} was written by {parts} processes of DeepSpeed, whose states don't fit "
                f"{processes}. Start {parts}, or set --output_dir to a new folder"
            )
        if here != there:
            raise InputError(
                f"{checkpoint} was written by {there}, and this run has {here}. Start it as it was begun "
                "(any number of processes), or set --output_dir to a new folder"
            )

    def _run_epoch(self, **kwargs: Any) -> None:  # type: ignore[override]
        if self.state.global_step >= self.state.max_steps > 0 or self._stopped_early():
            self.control.should_training_stop = True
            return
        # Before transformers skips what a run that goes on has done: behind that, and behind the share of one
        # of several processes, accelerate finds its own samplers alone, and others would begin with the
        # first epoch's order again.
        set_epoch(kwargs["train_dataloader"], kwargs["epoch"])
        super()._run_epoch(**kwargs)

    def _stopped_early(self) -> bool:
        """Whether the state that this run goes on from is one whose training had been ended by a callback."""
        # transformers keeps callbacks' states in the checkpoint, the control flow among them
        told = self.state.stateful_callbacks.get("TrainerControl", {})
        # only at the point of resuming: afterwards the flag is this run's own
        fresh = self.state.global_step == self._initial_global_step
        # at its last step a run is told to stop too, and a longer one goes on from there
        early = 0 < self.state.global_step < self._asked_for
        return fresh and early and bool(told.get("args", {}).get("should_training_stop"))

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        # a torn checkpoint (a kill, a full disk) would be loaded and pass for the best model
        reason = fault(Path(best)) if best and Path(best).is_dir() else None
        if reason:
            raise InputError(
                f"The best checkpoint {best} can't be used: {reason}. Start the command again: it goes on "
                "before it"
            )
        super()._load_best_model()


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell all samplers of a loader, however deep they stand in each other, which epoch's order is asked."""
    # None where rows are a stream
    sampler = loader.batch_sampler
    while sampler is not None:
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        inside = vars(sampler)
        sampler = inside.get("batch_sampler", inside.get("sampler"))
