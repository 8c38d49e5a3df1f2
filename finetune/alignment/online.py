"""Online DPO with any rewards, and distillation from a larger model on the student's own answers, on TRL's
trainers.

  Guo et al. 2024, Direct language model alignment from online AI feedback
  Agarwal et al. 2024, On-policy distillation of language models (generalised knowledge distillation with λ =
  1)

Knows TRL; knows no reward's kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import set_seed
from trl.data_utils import maybe_apply_chat_template
from trl.experimental.online_dpo import OnlineDPOConfig
from trl.experimental.online_dpo import OnlineDPOTrainer as TrlOnlineDPOTrainer

from finetune.alignment.grpo import as_trl_reward, with_tools
from finetune.alignment.own_sampling import (
    FAR,
    EpochRepeats,
    OwnSampling,
    SampledSteps,
    plain_sampling,
    seed_dropout,
)
from finetune.alignment.pair_options import check_name
from finetune.alignment.policy import load_start, make_policy
from finetune.alignment.prompts import PromptArguments, prompts_fingerprint, read_prompts, save_asked_rows
from finetune.alignment.reward_kinds import load_rewards
from finetune.alignment.rewards import AskedRewards, RewardArguments
from finetune.alignment.rollout import SamplingArguments, pad_left, stop_tokens
from finetune.alignment.trl_options import TrlOptions, callbacks, made_by_trl, quiet
from finetune.alignment.watch import Watch
from finetune.artefacts.folder import resolved_options, save_artefact
from finetune.artefacts.provenance import provenance_of
from finetune.artefacts.runs import open_run
from finetune.data.sources import DataArguments, load_rows
from finetune.errors import InputError
from finetune.methods import MethodArguments
from finetune.models.load import ModelArguments
from finetune.training.allocator import keep_freed_memory
from finetune.training.interrupts import Resuming
from finetune.training.machine import processes
from finetune.training.optimizers import check_optimizer


@dataclass
class OnlineDPOArguments(TrlOptions, OnlineDPOConfig):
    """TRL's options of online DPO: two answers to each prompt at every step, the rewards choose."""

    task: str = field(default="online_dpo")
    algorithm: str = field(default="online_dpo", metadata={"help": "Always online_dpo here."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate."})
    max_new_tokens: int | None = field(  # type: ignore[assignment]
        default=48, metadata={"help": "Longest answer in tokens."}
    )
    max_steps: int = field(default=100, metadata={"help": "Optimizer steps."})
    logging_steps: float = field(default=1, metadata={"help": "A line of figures every so many steps."})
    held_out_prompts: int = field(default=128, metadata={"help": "Held-out prompts to measure on."})
    measure_steps: int = field(
        default=50, metadata={"help": "Measure on them every so many steps; always at start and end."}
    )
    # --reward, --reward_weights and --missing_eos_penalty say these for every verb
    reward_model_path: str | None = field(default=None, init=False)
    reward_weights: list[float] | None = field(default=None, init=False)
    missing_eos_penalty: float | None = field(default=None, init=False)
    eval_strategy: str = field(default="no", init=False)

    def __post_init__(self) -> None:
        check_name("algorithm", self.algorithm, ("online_dpo",))
        super().__post_init__()


@dataclass
class DistillArguments(TrlOptions, trl.DistillationConfig):
    """TRL's options of on-policy distillation: the student answers, the teacher's distribution is
    learnt at each token.
    """

    task: str = field(default="distill")
    algorithm: str = field(default="distill", metadata={"help": "Always distill here."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate."})
    max_completion_length: int | None = field(default=48, metadata={"help": "Longest answer in tokens."})
    max_steps: int = field(default=100, metadata={"help": "Optimizer steps."})
    logging_steps: float = field(default=1, metadata={"help": "A line of figures every so many steps."})
    held_out_prompts: int = field(
        default=64, metadata={"help": "Held-out prompts to measure on, before and after."}
    )

    def __post_init__(self) -> None:
        check_name("algorithm", self.algorithm, ("distill",))
        if self.teacher_model_name_or_path is None:
            raise InputError(
                "No teacher; set --teacher_model_name_or_path to a larger model of the same vocabulary"
            )
        super().__post_init__()


class OnlineDPOTrainer(OwnSampling, Resuming, TrlOnlineDPOTrainer):
    """TRL's, with this toolkit's sampling, and gradients that are a mean over the micro-batches."""

    train_dataset: Any
    current_gradient_accumulation_steps: int

    def _get_train_sampler(self, dataset: Any = None) -> EpochRepeats:
        # Whole steps alone: accelerate fills an epoch's last one up with rows of its first, as many as there
        # are processes for.
        rows = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        rows *= self.accelerator.num_processes
        return EpochRepeats(dataset or self.train_dataset, 1, rows, seed=self.args.seed)

    def _generate(self, model: Any, prompts: Any, images: Any = None) -> Any:
        args, processor = self.args, self.processing_class  # type: ignore[attr-defined]
        # accelerate deals an epoch's batches out by turns
        place = self._next_turn() * self.accelerator.num_processes + self.accelerator.process_index
        if images is not None or not plain_sampling(args):
            # TRL's own goes past autocast, without which a base in 16 bits and its adapter in 32 don't meet
            with self.accelerator.autocast():
                found = super()._generate(model, prompts, images)  # type: ignore[misc]
        else:
            texts = [maybe_apply_chat_template({"prompt": prompt}, processor)["prompt"] for prompt in prompts]
            ids = 2 * processor(text=texts, add_special_tokens=False)["input_ids"]
            first = [place * len(prompts) + i for i in range(len(prompts))]
            # a prompt's second answer stands far from all first ones
            numbers = [*first, *(number + FAR for number in first)]
            sampling = SamplingArguments(
                args.max_new_tokens, args.temperature, args.top_k or 0, args.top_p, len(ids)
            )
            answers = self._sampled(ids, numbers, sampling, self.state.global_step)
            padded = [
                pad_left(ids, processor.pad_token_id),
                pad_right(answers, processor.pad_token_id),
            ]
            found = (*(part.to(args.device) for pair in padded for part in pair), None)
        # what follows in this micro-batch is its update
        seed_dropout(args.seed, self.state.global_step, place)
        return found

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """TRL's own, whose gradients are a sum over the micro-batches of a step: with more of them, and fewer
        processes, the same rows would make a larger step.
        """
        found = super().training_step(model, *args, **kwargs)
        parts = self.current_gradient_accumulation_steps
        if self._turn[1] == parts - 1 > 0:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad /= parts
        return found

    def _other_run(self, checkpoint: Path, told: dict[str, Any]) -> str | None:
        # The rewards' means, deviations and lowest scores are of what is scored at once.
        told_rows = told["processes"] * told["rows"]
        here = self.accelerator.num_processes * self.args.per_device_train_batch_size
        settings = RewardArguments() if self.rewards is None else self.rewards.settings
        if told_rows != here and (settings.normalise_rewards or settings.missing_eos_penalty):
            return (
                "with --normalise_rewards or --missing_eos_penalty a score follows from all answers that are "
                "scored together"
            )
        return super()._other_run(checkpoint, told)


class DistillationTrainer(SampledSteps, Resuming, trl.DistillationTrainer):
    """TRL's, with this toolkit's sampling."""


def pad_right(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token lists → ids and mask, [rows, width], real tokens at the left end."""
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad)
    # by the lengths: a real token may have the padding's id
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


def begin(
    data: DataArguments, prompt: PromptArguments, model: ModelArguments, training: Any
) -> tuple[Any, Any, list[AskedRewards], list[AskedRewards], dict[str, Any]]:
    """Processor and model to start from, prompts to learn on and prompts held out, with the seed set; and
    where the rows are from.

    Raises:
        InputError: rows with tools of their own.
    """
    keep_freed_memory()
    processes("align")
    set_seed(training.seed)
    with training.main_process_first(desc="reading prompts"):
        # One process fills the caches that the others read.
        processor, network = load_start(model)
        read = load_rows(data)
        rows, held_out = read_prompts(data, prompt, processor, read)
        check_no_tools((*rows, *held_out))
    return processor, network, rows, held_out, provenance_of(read, data)


def align_online(
    data: DataArguments, prompt: PromptArguments, model: ModelArguments, method: MethodArguments,
    *, reward: RewardArguments, training: OnlineDPOArguments,
) -> None:  # fmt: skip
    """The whole of online DPO; figures are of held-out prompts, before and after."""
    processor, network, rows, held_out, told = begin(data, prompt, model, training)
    # Before the policy is made: a folder that holds another run is refused at once.
    checkpoint = open_run(
        resolved_options(data, prompt, model, method, reward, training), prompts_fingerprint(rows), network
    )
    save_asked_rows(str(training.output_dir), told, rows)
    policy = make_policy(network, method.method, method.method_kwargs, bool(training.bf16))
    check_optimizer(training, policy.network)
    rewards = load_rewards(reward, policy, model)
    sampling = SamplingArguments(
        training.max_new_tokens or 48, training.temperature, training.top_k or 0, training.top_p
    )
    held_out = held_out[: training.held_out_prompts]
    watch = Watch(policy, processor, held_out, rewards, sampling=sampling, every=training.measure_steps)
    # TRL hands a prompt's text on; the number finds its row's columns again. It takes no figures of a reward.
    score = as_trl_reward(rewards, rows, stop_tokens(network, processor), watch.note)
    with made_by_trl():
        trainer = OnlineDPOTrainer(
            model=policy.network, reward_funcs=score,
            args=training,
            train_dataset=numbered(rows), processing_class=processor, callbacks=[watch, *callbacks(training)],
        )  # fmt: skip
    trainer.rewards = rewards
    quiet(trainer).train(resume_from_checkpoint=checkpoint and str(checkpoint))
    if trainer.is_world_process_zero():
        save_artefact(
            policy.network, processor, Path(str(training.output_dir)), None, watch.finish("online_dpo")
        )
        print(training.output_dir)


def check_no_tools(rows: Sequence[AskedRewards]) -> None:
    """
    Raises:
        InputError: rows with tools of their own, which TRL's trainers here don't render.
    """
    if with_tools(rows):
        raise InputError(
            "The rows have a column 'tools', which this algorithm's prompts are not asked with. Set "
            "--ignore_columns tools to leave them out, or use ppo, grpo, rloo or prefer"
        )


def numbered(rows: Sequence[AskedRewards]) -> Dataset:
    """Prompts for TRL, and which row each is of."""
    return Dataset.from_dict({"prompt": [row.prompt for row in rows], "row": list(range(len(rows)))})


def distill(
    data: DataArguments, prompt: PromptArguments, model: ModelArguments, method: MethodArguments,
    training: DistillArguments
) -> None:  # fmt: skip
    """The whole of distillation; figures are the divergence from the teacher on held-out prompts, before and
    after.

    Raises:
        InputError: a teacher of another vocabulary.
    """
    processor, network, rows, held_out, told = begin(data, prompt, model, training)
    teacher = load_teacher(model, training, processor)
    checkpoint = open_run(
        resolved_options(data, prompt, model, method, training), prompts_fingerprint(rows), network
    )
    save_asked_rows(str(training.output_dir), told, rows)
    network = make_policy(network, method.method, method.method_kwargs).network
    check_optimizer(training, network)
    parts = [
        Dataset.from_dict({"prompt": [row.prompt for row in part]})
        for part in (rows, held_out[: training.held_out_prompts])
    ]
    with made_by_trl():
        trainer: Any = quiet(
            DistillationTrainer(
                model=network, teacher_model=teacher, args=training, train_dataset=parts[0],
                eval_dataset=parts[1],
                processing_class=processor, callbacks=callbacks(training),
            )
        )  # fmt: skip
    # Before training, on the same prompts, so that the two figures compare.
    before = trainer.evaluate()["eval_loss"]
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    after = trainer.evaluate()["eval_loss"]
    if trainer.is_world_process_zero():
        save_artefact(
            network, processor, Path(str(training.output_dir)), None, {"before": before, "after": after}
        )
        print(
            f"divergence from the teacher on held-out prompts: {before:.4f} → "
            f"{after:.4f}\n{training.output_dir}"
        )


def load_teacher(model: ModelArguments, training: DistillArguments, processor: Any) -> Any:
    """The teacher, ready.

    Raises:
        InputError: it has another vocabulary than the student.
    """
    name = str(training.teacher_model_name_or_path)
    theirs, teacher = load_start(replace(model, model_name_or_path=name))
    # The whole vocabulary: a token's id must mean the same piece of text in both distributions.
    if theirs.get_vocab() != processor.get_vocab():
        raise InputError(
            f"The teacher {name} has another vocabulary than {model.model_name_or_path}; their distributions "
            "can't be "
            "compared token by token. Set --teacher_model_name_or_path"
        )
    return teacher.eval().requires_grad_(False)
