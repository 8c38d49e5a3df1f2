"""Policy gradients without a value model, on TRL's trainers: GRPO (Shao et al. 2024) and RLOO (Ahmadian et al. 2024).

The same rewards as PPO's, so that the three can be compared. Knows TRL; knows no reward's kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import trl
from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback

from finetune.alignment.policy import Policy
from finetune.alignment.rewards import Prompt, Reward, checked
from finetune.errors import InputError
from finetune.training.checkpoints import Sealer
from finetune.training.plan import has_fast_bf16
from finetune.training.progress import Progress


def _settle(options: Any) -> None:
    if options.output_dir is None:
        raise InputError("No output folder; set --output_dir")
    if not torch.cuda.is_available():
        options.use_cpu = True
    if options.bf16 is None:
        options.bf16 = not options.fp16 and has_fast_bf16()


@dataclass
class GRPOArguments(trl.GRPOConfig):
    """TRL's options of group relative policy optimisation."""

    trust_remote_code: bool = field(default=False, init=False)  # ModelArguments has it
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate."})
    bf16: bool | None = field(default=None, metadata={"help": "bf16 autocast over float32 masters (default: where it is fast)."})  # type: ignore[assignment]
    gradient_checkpointing: bool | None = field(default=None, metadata={"help": "The old name of activation_checkpointing."})  # type: ignore[assignment]
    max_completion_length: int | None = field(default=48, metadata={"help": "Longest answer in tokens."})
    max_steps: int = field(default=100, metadata={"help": "Optimizer steps."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep."})
    dataloader_pin_memory: bool = field(default=torch.cuda.is_available(), metadata={"help": "Pinned memory for a GPU."})

    def __post_init__(self) -> None:
        _settle(self)
        super().__post_init__()


@dataclass
class RLOOArguments(trl.RLOOConfig):
    """TRL's options of REINFORCE leave-one-out."""

    trust_remote_code: bool = field(default=False, init=False)  # ModelArguments has it
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate."})
    bf16: bool | None = field(default=None, metadata={"help": "bf16 autocast over float32 masters (default: where it is fast)."})  # type: ignore[assignment]
    gradient_checkpointing: bool | None = field(default=None, metadata={"help": "The old name of activation_checkpointing."})  # type: ignore[assignment]
    max_completion_length: int | None = field(default=48, metadata={"help": "Longest answer in tokens."})
    max_steps: int = field(default=100, metadata={"help": "Optimizer steps."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep."})
    dataloader_pin_memory: bool = field(default=torch.cuda.is_available(), metadata={"help": "Pinned memory for a GPU."})

    def __post_init__(self) -> None:
        _settle(self)
        super().__post_init__()


def as_trl_reward(reward: Reward, empty_score: float) -> Callable[..., list[float]]:
    """A reward as TRL calls it: completions are texts, or conversations of one message."""

    def scores(prompts: Sequence[Prompt], completions: Sequence[Any], **_: Any) -> list[float]:
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        return checked(reward, prompts, texts, empty_score)

    return scores


def make_group_trainer(
    policy: Policy,
    processor: Any,
    training: GRPOArguments | RLOOArguments,
    prompts: Sequence[Prompt],
    reward: Callable[..., list[float]],
) -> Any:
    """TRL's trainer that the options are of, on a policy's network; the reference is the base with the adapter off."""
    kind = trl.GRPOTrainer if isinstance(training, GRPOArguments) else trl.RLOOTrainer
    share = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    try:
        trainer = kind(
            model=policy.network, reward_funcs=reward, args=training, train_dataset=Dataset.from_dict({"prompt": list(prompts)}),
            processing_class=processor, callbacks=[Sealer(), Progress(share)],
        )  # fmt: skip
    except ValueError as error:
        raise InputError(f"TRL refuses these options: {error}") from error
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer
