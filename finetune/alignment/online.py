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

import trl
from datasets import Dataset
from transformers import set_seed
from trl.experimental.online_dpo import OnlineDPOConfig
from trl.experimental.online_dpo import OnlineDPOTrainer as TrlOnlineDPOTrainer

from finetune.alignment.grpo import as_trl_reward, with_tools
from finetune.alignment.pair_options import check_name
from finetune.alignment.policy import load_start, make_policy
from finetune.alignment.prompts import PromptArguments, prompts_fingerprint, read_prompts, save_asked_rows
from finetune.alignment.reward_kinds import load_rewards
from finetune.alignment.rewards import AskedRewards, RewardArguments
from finetune.alignment.rollout import SamplingArguments, stop_tokens
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


class OnlineDPOTrainer(Resuming, TrlOnlineDPOTrainer):
    """TRL's, which samples in the precision that it trains in."""

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        # TRL's own goes past autocast, without which a base in 16 bits and its adapter in 32 don't meet
        with self.accelerator.autocast():  # type: ignore[attr-defined]
            return super()._generate(*args, **kwargs)


class DistillationTrainer(Resuming, trl.DistillationTrainer):
    """TRL's."""


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
