"""Instruction tuning on TRL's SFTTrainer, with exact losses and packed rows. Knows trainers; knows no
templates.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from trl import SFTConfig, SFTTrainer

from finetune.methods import check_packed
from finetune.models.attention.packed import pack
from finetune.models.heads import unwrapped
from finetune.models.lora_kernel import without_input_casts
from finetune.objectives.streams import Stream
from finetune.tasks.options import TaskArguments
from finetune.tasks.sft import InstructionArguments, as_asked, packed
from finetune.training.options import TrainingArguments
from finetune.training.trainer import ExactTrainer, make_trainer


@dataclass
# this project's first: where both set a default, its own counts
class SftArguments(TrainingArguments, SFTConfig):
    """This project's training options, and TRL's by their own names."""

    packing: bool = field(
        default=True, metadata={"help": "Rows of a batch in one line without padding; none sees another."}
    )
    max_length: int = field(
        default=1024, metadata={"help": "Longest row in tokens; longer ones lose their end."}
    )  # type: ignore[assignment]
    completion_only_loss: bool = field(
        default=True, metadata={"help": "Learn completions alone, not prompts."}
    )  # type: ignore[assignment]
    assistant_only_loss: bool = field(default=True, metadata={"help": "Learn the assistant's turns alone."})
    # What TRL does with these, finetune.tasks.sft and the other option classes do here: they are no options.
    dataset_text_field: str = field(default="text", init=False)
    dataset_kwargs: dict[str, Any] | None = field(
        default_factory=lambda: {"skip_prepare_dataset": True}, init=False
    )
    dataset_num_proc: int | None = field(default=None, init=False)
    packing_strategy: str = field(default="bfd", init=False)
    padding_free: bool = field(default=False, init=False)
    eval_packing: bool | None = field(default=None, init=False)
    pad_to_multiple_of: int | str | None = field(default=None, init=False)
    truncation_mode: str = field(default="keep_start", init=False)
    shuffle_dataset: bool = field(default=False, init=False)
    loss_type: str = field(default="nll", init=False)
    eos_token: str | None = field(default=None, init=False)
    pad_token: str | None = field(default=None, init=False)
    model_init_kwargs: dict[str, Any] | str | None = field(default=None, init=False)
    trust_remote_code: bool = field(default=False, init=False)
    chat_template_path: str | None = field(default=None, init=False)
    router_aux_loss_coef: float | None = field(default=None, init=False)


def as_task(instruct: InstructionArguments, training: SftArguments) -> tuple[TaskArguments, dict[str, Any]]:
    """The options that the table's row is settled by, and what stands in it otherwise then."""
    task = TaskArguments(
        task=instruct.task,
        max_length=training.max_length,
        max_target_length=instruct.max_new_tokens,
        early_stopping_patience=instruct.early_stopping_patience,
    )
    changes = as_asked(
        instruct.chat,
        training.assistant_only_loss,
        training.completion_only_loss,
        instruct.write_answers,
        instruct.chat_template_kwargs,
    )
    return task, changes


# in this order ExactTrainer's steps go before TRL's, and its super() calls reach TRL's constructor
class InstructTrainer(ExactTrainer, SFTTrainer):
    """TRL's SFTTrainer whose steps are ExactTrainer's: losses summed over labelled tokens, logits only where
    a label is.

    Args:
        neftune: noise on embeddings in training, as alpha (Jain et al. 2024); 0 for none. transformers' own
            scales it by the length of the line, which is that of all rows where they are packed.
    """

    def __init__(self, *, train_dataset: Any, neftune: float = 0.0, **kwargs: Any) -> None:
        self.neftune = neftune
        endless = isinstance(train_dataset, Stream)
        # TRL looks at columns while it is made, which a stream has none of
        super().__init__(train_dataset=train_dataset.as_dataset() if endless else train_dataset, **kwargs)
        self.train_dataset = train_dataset  # a stream itself knows its share on each process

    def measured(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Any]:
        """ExactTrainer's, with noise on the embeddings where it was asked for.

        Under autocast, PEFT's own casts of every adapter's input to float32 are undone by the next product:
        left out, same values.
        """
        network = unwrapped(self.model)
        noise = noisy(network.get_input_embeddings(), token_lengths(inputs), self.neftune)
        # dropped again after each step, so that evaluation and generation see none of it
        with noise, without_input_casts(network, bool(self.args.bf16 or self.args.fp16)):
            return super().measured(model, inputs)


def token_lengths(batch: dict[str, Any]) -> Tensor:
    """Length of the text that each place belongs to: packed [1, tokens], padded [batch, 1]."""
    if "cu_seq_lens_q" in batch:
        lengths = batch["cu_seq_lens_q"].diff()
        # each token has the length of its own text beside it: [texts] → [1, tokens]
        return lengths.repeat_interleave(lengths)[None]
    return batch["attention_mask"].sum(dim=1, keepdim=True)


@contextmanager
def noisy(embeddings: nn.Module, lengths: Tensor, alpha: float) -> Iterator[None]:
    """Uniform noise of alpha / sqrt(length × width) on what the embeddings give, for the length of the
    context.
    """
    if not alpha:
        yield
        return

    def add_noise(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        # `size` [batch, time] is spread over the width of the vectors
        size = alpha / (lengths * output.shape[-1]).sqrt()
        return output + torch.empty_like(output).uniform_(-1, 1) * size[..., None].to(output)

    handle = embeddings.register_forward_hook(add_noise)
    try:
        yield
    finally:
        handle.remove()


def in_lines(row: Any, network: Any, method: str, packing: bool) -> Any:
    """The row with texts packed into one line, where that was asked for and the model keeps them apart.

    Raises:
        InputError: a method whose tokens of its own a packed line has no place for.
    """
    if packing:
        # before `pack` changes the model's attention, which an error would leave changed
        check_packed(method, " or --packing false")
    return packed(row) if packing and pack(network) else row


def make_instruct_trainer(
    row: Any,
    network: Any,
    processor: Any,
    training: SftArguments,
    features: dict[str, Dataset],
    *,
    kind: type[ExactTrainer] = InstructTrainer,
    **options: Any,
) -> ExactTrainer:
    """A trainer on encoded rows; `options` are those of `make_trainer`."""
    # What is read here already: TRL would look for raw rows, and transformers add noise and smoothing of its
    # own.
    plain = replace(
        training,
        packing=False,
        assistant_only_loss=False,
        completion_only_loss=False,
        neftune_noise_alpha=None,
        label_smoothing_factor=0.0,
    )
    alpha = training.neftune_noise_alpha or 0.0
    return make_trainer(
        row,
        network,
        processor,
        plain,
        features,
        kind=kind,
        neftune=alpha,
        **options,
    )
