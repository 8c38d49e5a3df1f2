"""What every trainer of TRL's is told here, whatever it trains. Knows options and callbacks; knows no loss
and no model.

TRL's own option names stay; other defaults stand where its own lose speed, disk or the truth about a run.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from finetune.artefacts.checkpoints import Sealer
from finetune.device import device
from finetune.errors import InputError
from finetune.training.interrupts import Interrupts, ResumeOptions, check_stops
from finetune.training.machine import has_fast_bf16, keep_to_cpu
from finetune.training.progress import Progress


@dataclass
class TrlOptions(ResumeOptions):
    """Stands before one of TRL's configurations in a class's bases, and beats it."""

    task: str = field(
        default="",
        metadata={
            "help": "What arguments.yaml says of the run, which is a recipe: always the script's name."
        },
    )
    bf16: bool | None = field(
        default=None,
        metadata={"help": "bf16 autocast over float32 masters (default: where it is faster here)."},
    )
    do_train: bool = field(default=False, init=False)  # the verbs do one thing each
    do_predict: bool = field(default=False, init=False)
    # ModelArguments has it, and the model is here when TRL gets it
    trust_remote_code: bool = field(default=False, init=False)
    model_init_kwargs: dict[str, Any] | None = field(default=None, init=False)
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "The old name of activation_checkpointing."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide losses that are no numbers."})
    dataloader_pin_memory: bool = field(
        default=device().type == "cuda", metadata={"help": "Pinned memory (default: where there is a GPU)."}
    )

    def __post_init__(self) -> None:
        # Before TRL's own checks, whose messages know nothing of recipes.
        check_task(self.task, type(self).task)
        if self.output_dir is None:  # type: ignore[attr-defined]
            raise InputError("No output folder; set --output_dir")
        self.settle_micro_batches()
        check_stops(self)
        keep_to_cpu(self)
        if self.bf16 is None:
            self.bf16 = not self.fp16 and has_fast_bf16()  # type: ignore[attr-defined]
        # Last: it computes what follows from the fields above.
        super().__post_init__()  # type: ignore[misc]


@dataclass
class PairOptions(TrlOptions):
    """The same for trainers on preference pairs."""

    learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Peak learning rate (default: the method's own, see METHODS; a tenth of it for DPO)."
        },
    )
    max_length: int | None = field(
        default=512, metadata={"help": "Longest prompt and answer together, in tokens."}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps, epoch."})
    save_strategy: str = field(
        default="epoch", metadata={"help": "When to save a checkpoint: no, steps, epoch."}
    )


@dataclass
class GroupOptions(TrlOptions):
    """The same for trainers that sample several answers to each prompt."""

    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate."})
    max_completion_length: int | None = field(default=48, metadata={"help": "Longest answer in tokens."})
    max_steps: int = field(default=100, metadata={"help": "Optimizer steps."})
    logging_steps: float = field(default=1, metadata={"help": "A line of figures every so many steps."})
    held_out_prompts: int = field(default=128, metadata={"help": "Held-out prompts to measure on."})
    measure_steps: int = field(
        default=50, metadata={"help": "Measure on them every so many steps; always at start and end."}
    )
    # --reward_weights and --normalise_rewards say it for every verb
    reward_weights: list[float] | None = field(default=None, init=False)


def check_task(told: str, wanted: str) -> None:
    """Refuse the arguments.yaml of another script as a recipe."""
    if told != wanted:
        raise InputError(
            f"Got --task {told}; wanted {wanted}, which this script does. Set --config to a recipe of its own"
        )


class NoCard(TrainerCallback):
    """Removes the form that TRL leaves for a model card: it names no base and no data."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # After each save, since TRL writes it with each.
        if state.is_world_process_zero:
            (Path(str(args.output_dir)) / "README.md").unlink(missing_ok=True)


def callbacks(training: Any) -> list[TrainerCallback]:
    """Checkpoints that are sealed, a line a log, no empty card, and an end in order where one is
    asked for.
    """
    # the Sealer keeps the limit: an old checkpoint goes when the new one is whole
    limit, training.save_total_limit = training.save_total_limit, None
    return [
        Sealer(limit),
        NoCard(),
        Progress(
            training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
        ),
        Interrupts(training.time_limit),
    ]


@contextmanager
def made_by_trl() -> Iterator[None]:
    """Turns what TRL says of options that don't go together into an error that the user can mend."""
    try:
        with warnings.catch_warnings():
            # of the copy that TRL makes of a fresh prefix, which is never saved (`drop_copy`)
            warnings.filterwarnings("ignore", "Adapter name 'ref' should not be contained", UserWarning)
            yield
    except (ValueError, NotImplementedError) as error:
        # The library's own sentences name the options, which are this project's too.
        raise InputError(f"TRL refuses these options: {error} Set what it names") from error


def quiet(trainer: Any) -> Any:
    """The trainer without transformers' own bars and printed mappings: `callbacks` say the same."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer
