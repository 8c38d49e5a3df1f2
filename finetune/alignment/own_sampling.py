"""TRL's trainers that sample as they learn, with this toolkit's sampling, and what such a run needs to go on.
Knows TRL's trainers; knows no reward's kind.

An answer follows from (seed, step, its place in the step), dropout from (seed, step, the micro-batch's
place), whichever process has them: a run goes on, on as many processes as there are, as if it had never
stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trl
from safetensors import safe_open
from safetensors.torch import load_model, save_file, save_model
from torch import Tensor
from trl.trainer.utils import (
    RepeatSampler,
    split_pixel_values_by_grid,
    split_tensor_dict,
    unsplit_pixel_values_by_grid,
)

from finetune.alignment.rewards import Rewards
from finetune.alignment.rollout import SamplingArguments, draw_uniforms, sample_answers
from finetune.artefacts.checkpoints import step_of
from finetune.artefacts.files import write_atomically
from finetune.errors import InputError

STATE, REFERENCE = "sampling.json", "reference.safetensors"  # in a checkpoint, beside transformers' own files
# numbers between two turns of sampling, and between training's and evaluation's: no two share a stream
FAR, EVALUATED = 10**9, 10**15


class EpochRepeats(RepeatSampler):
    """TRL's, with an order that follows from the epoch: its own goes on from the last order that it drew,
    which a run that goes on never drew.
    """

    epoch = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # transformers would end such a run at once, as a finished one
        if len(self) == 0:
            raise InputError(
                f"There are {self.num_samples} training prompts, and a step takes {self.batch_size}. Lower "
                "--per_device_train_batch_size or --gradient_accumulation_steps, or bring more prompts"
            )

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed)
            # the epochs before draw theirs, so that a run that never stops has TRL's own orders
            for _ in range(self.epoch):
                torch.randperm(self.num_samples, generator=self.generator)
        return super().__iter__()


class OwnSampling:
    """Stands before one of TRL's trainers: answers to its prompts, and what a checkpoint holds of them."""

    # TRL's and transformers' own
    args: Any
    state: Any
    accelerator: Any
    model: Any
    ref_model: Any
    eos_token_ids: Any
    _buffered_inputs: Any

    _step = 0  # micro-batches so far, which TRL counts where several of them are sampled together
    _turn = (-1, -1)  # the step, and which of its samplings was the last one
    rewards: Rewards | None = None  # what scores the answers, whose state is a part of the run's

    def _next_turn(self) -> int:
        """Which sampling of the step this is: its first is 0."""
        # TRL samples several turns in a step; with the same uniforms their beginnings would repeat.
        step = self.state.global_step
        self._turn = (step, self._turn[1] + 1 if self._turn[0] == step else 0)
        return self._turn[1]

    def _sampled(
        self,
        prompts: Sequence[Sequence[int]],
        numbers: Sequence[int],
        sampling: SamplingArguments,
        step: int,
    ) -> list[list[int]]:
        """An answer to each prompt, as token ids, drawn by (seed, step, its number)."""
        network: Any = self.accelerator.unwrap_model(self.model)
        uniforms = draw_uniforms(self.args.seed, step, numbers, sampling.max_new_tokens)
        was_training = network.training
        # Without dropout: what is sampled is the policy itself.
        network.eval()
        with self.accelerator.autocast():
            found = sample_answers(network, prompts, uniforms, sampling, self.eos_token_ids)
        network.train(was_training)
        # TRL pads by itself; it wants the real tokens only.
        return [row[: int(real.sum())].tolist() for row, real in zip(found.ids, found.mask, strict=True)]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        state, accelerator, args = self.state, self.accelerator, self.args
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        # In the middle of a sampling, whose answers further steps learn from.
        if self._step % micro_batches_taught(args):
            _keep(self._buffered_inputs, folder / _answers(accelerator.process_index))
        if not accelerator.is_main_process:
            return
        spread = None if self.rewards is None else self.rewards.spread
        told = {"processes": accelerator.num_processes, "rows": args.per_device_train_batch_size}
        write_atomically(folder / STATE, json.dumps(told | {"spread": spread}))
        if moves_reference(args):
            save_model(self.ref_model, str(folder / REFERENCE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        # Without the file it is a checkpoint of before there was one.
        if checkpoint is None or not (Path(checkpoint) / STATE).is_file():
            return
        folder, args, process = Path(checkpoint), self.args, self.accelerator.process_index
        self._step = step_of(folder) * args.gradient_accumulation_steps
        told = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if self.rewards is not None:
            self.rewards.spread = told["spread"]
        if (folder / _answers(process)).is_file():
            self._buffered_inputs = _kept(folder / _answers(process), self.model.device)
        if moves_reference(args):
            load_model(self.ref_model, folder / REFERENCE, device=str(self.ref_model.device))

    def _check_way(self, checkpoint: Path) -> None:
        super()._check_way(checkpoint)  # type: ignore[misc]
        if not (checkpoint / STATE).is_file():
            return
        told = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        if reason := self._other_run(checkpoint, told):
            here, rows = self.accelerator.num_processes, self.args.per_device_train_batch_size
            raise InputError(
                f"{checkpoint} was written by {told['processes']} processes with "
                f"--per_device_train_batch_size {told['rows']}, and this run has {here} with {rows}: {reason}"
                ". Start it as it was begun, or set --output_dir to a new folder"
            )

    def _other_run(self, checkpoint: Path, told: dict[str, Any]) -> str | None:
        """Why these processes and their rows make another run than a checkpoint's; None where they don't.

        Args:
            told: what the checkpoint says of both.
        """
        args, elsewhere = self.args, told["processes"] != self.accelerator.num_processes
        others = elsewhere or told["rows"] != args.per_device_train_batch_size
        if others and micro_batches_sampled(args) != args.gradient_accumulation_steps:
            return "by --steps_per_generation a step learns from a part of each process's answers"
        if others and (checkpoint / _answers(0)).is_file():
            return "it stands between two steps that learn from the same answers"
        if elsewhere and not plain_sampling(args):
            return "by these options answers are drawn by TRL, in each process by itself"
        if elsewhere and has_turns(args):
            return "with --tools, answers of later turns are drawn in each process by itself"
        return None


class SampledSteps(OwnSampling):
    """The same before those that sample for all micro-batches of a step at once, or of several steps."""

    _generate_and_score_completions: Any  # TRL's own
    _evaluated = 0  # batches of the evaluation that is being made

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        self._evaluated = 0
        spread = 0.0 if self.rewards is None else self.rewards.spread
        found = super().evaluate(*args, **kwargs)  # type: ignore[misc]
        # What was looked at is no part of what the run has seen.
        if self.rewards is not None:
            self.rewards.spread = spread
        return found

    def _numbers(self, count: int) -> tuple[int, list[int]]:
        """A step, and numbers of this process's next answers, which chance is drawn by."""
        process = self.accelerator.process_index
        if not self.model.training:
            # The same for every evaluation, so that two compare; and no turn of the step's, which would
            # sample otherwise for having been looked at.
            self._evaluated += 1
            first = self._evaluated * FAR + process * 10**6
            return 0, [EVALUATED + first + i for i in range(count)]
        turn = self._next_turn()
        # In a step's first turn all processes have as many rows, which are numbered through: an answer is the
        # same on any number of them.
        first = turn * FAR + process * (10**6 if turn else count)
        return self.state.global_step, [first + i for i in range(count)]

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, *more: Any, **named: Any
    ) -> Any:
        if images or multimodal_fields or not plain_sampling(self.args):
            return super()._generate_single_turn(  # type: ignore[misc]
                prompt_ids, images, multimodal_fields, *more, **named
            )
        step, numbers = self._numbers(len(prompt_ids))
        ids = self._sampled(prompt_ids, numbers, sampling_of(self.args), step)
        # GRPO's wants what an engine says of the samples too, which is nothing here
        return (ids, None) if isinstance(self, trl.GRPOTrainer) else ids

    def _get_train_sampler(self, dataset: Any = None) -> EpochRepeats:
        own = super()._get_train_sampler(dataset)  # type: ignore[misc]
        return EpochRepeats(
            own.data_source, own.mini_repeat_count, own.batch_size, own.repeat_count, own.shuffle, own.seed
        )

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        parts = self.args.gradient_accumulation_steps
        if not self.model.training or micro_batches_sampled(self.args) != parts:
            return super()._prepare_inputs(generation_batch)  # type: ignore[misc]
        # TRL shuffles a process's answers before it cuts them into micro-batches. A step learns from all of
        # them anyway, and as they stand the micro-batches of two processes are those of one.
        if self._step % micro_batches_taught(self.args) == 0 or self._buffered_inputs is None:
            found = split_pixel_values_by_grid(self._generate_and_score_completions(generation_batch))
            self._buffered_inputs = [
                unsplit_pixel_values_by_grid(part) for part in split_tensor_dict(found, parts)
            ]
        return self._buffered_inputs[self._step % parts]

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if model.training:
            parts, process = self.args.gradient_accumulation_steps, self.accelerator.process_index
            # After sampling, which may draw too: dropout follows from the micro-batch's place in the step.
            seed_dropout(self.args.seed, self.state.global_step, process * parts + self._step % parts)
        return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]


def _answers(process: int) -> str:
    return f"answers_{process}.safetensors"


def _keep(batches: list[dict[str, Any]], file: Path) -> None:
    """Micro-batches as one file: what is no tensor (a number, nothing) stands in its head."""
    flat = {f"{place} {name}": value for place, batch in enumerate(batches) for name, value in batch.items()}
    # of their own memory: micro-batches are cut from one tensor
    tensors = {name: value.clone() for name, value in flat.items() if isinstance(value, Tensor)}
    others = {name: value for name, value in flat.items() if name not in tensors}
    save_file(tensors, file, {"count": str(len(batches)), "others": json.dumps(others)})


def _kept(file: Path, place: torch.device) -> list[dict[str, Any]]:
    """What `_keep` wrote."""
    with safe_open(file, "pt", device=str(place)) as opened:
        told = opened.metadata()
        flat = {name: opened.get_tensor(name) for name in opened.keys()} | json.loads(told["others"])  # noqa: SIM118 it is no mapping
    batches: list[dict[str, Any]] = [{} for _ in range(int(told["count"]))]
    for name, value in flat.items():
        number, _, own = name.partition(" ")
        batches[int(number)][own] = value
    return batches


def seed_dropout(seed: int, step: int, place: int) -> None:
    """Have chance follow from a micro-batch's place in its step, whichever process has it."""
    drawn = np.random.SeedSequence((seed, step, place)).generate_state(1, np.uint64)
    torch.manual_seed(int(drawn[0] >> 1))


def micro_batches_sampled(args: Any) -> int:
    """Micro-batches whose answers are sampled together; TRL's distillation knows a step's alone."""
    return vars(args).get("steps_per_generation") or args.gradient_accumulation_steps


def micro_batches_taught(args: Any) -> int:
    """Micro-batches, of several epochs, that are made of one sampling."""
    return micro_batches_sampled(args) * vars(args).get("num_iterations", 1)


def moves_reference(args: Any) -> bool:
    """Whether the reference follows the policy, so that it is a state of the run."""
    return bool(vars(args).get("sync_ref_model"))


def has_turns(args: Any) -> bool:
    """Whether a conversation may take several turns of sampling."""
    return bool(vars(args).get("tools"))


def plain_sampling(args: Any) -> bool:
    """Whether an answer is sampled by temperature, top_k and top_p alone, from one network in this
    process.
    """
    # Engines and sharded models don't hold a whole network in this process to sample from.
    engines = (
        args.use_vllm or vars(args).get("use_transformers_continuous_batching") or args.deepspeed or args.fsdp
    )
    further = (
        args.min_p or args.repetition_penalty != 1 or args.generation_kwargs or args.cache_implementation
    )
    return not (engines or further)


def sampling_of(args: Any) -> SamplingArguments:
    """TRL's options of sampling as this toolkit's."""
    return SamplingArguments(
        # TRL says None or -1 where top_k is off.
        args.max_completion_length, args.temperature, max(args.top_k or 0, 0), args.top_p,
        args.per_device_train_batch_size * micro_batches_sampled(args),
    )  # fmt: skip
