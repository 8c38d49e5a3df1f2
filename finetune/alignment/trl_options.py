"""What every trainer of TRL's is told here, whatever it trains. Knows option names; knows no loss and no model.

TRL's own option names stay; other defaults stand where its own lose speed, disk or the truth about a run.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from finetune.errors import InputError
from finetune.training.plan import has_fast_bf16


@dataclass
class TrlOptions:
    """Stands before one of TRL's configurations in a class's bases, and beats it."""

    bf16: bool | None = field(
        default=None, metadata={"help": "bf16 autocast over float32 masters (default: where the hardware has it)."}
    )
    trust_remote_code: bool = field(default=False, init=False)  # ModelArguments has it
    gradient_checkpointing: bool | None = field(default=None, metadata={"help": "The old name of activation_checkpointing."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide losses that are no numbers."})
    dataloader_pin_memory: bool = field(default=torch.cuda.is_available(), metadata={"help": "Pinned memory for a GPU."})

    def __post_init__(self) -> None:
        if self.output_dir is None:  # type: ignore[attr-defined]
            raise InputError("No output folder; set --output_dir")
        if not torch.cuda.is_available():
            self.use_cpu = True
        if self.bf16 is None:
            self.bf16 = not self.fp16 and has_fast_bf16()  # type: ignore[attr-defined]
        super().__post_init__()  # type: ignore[misc]


@dataclass
class PairOptions(TrlOptions):
    """The same for trainers on preference pairs."""

    max_length: int | None = field(default=512, metadata={"help": "Longest prompt and answer together, in tokens."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps, epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint: no, steps, epoch."})


@dataclass
class GroupOptions(TrlOptions):
    """The same for trainers that sample several answers to each prompt."""

    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate."})
    max_completion_length: int | None = field(default=48, metadata={"help": "Longest answer in tokens."})
    max_steps: int = field(default=100, metadata={"help": "Optimizer steps."})
