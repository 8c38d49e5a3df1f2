"""Options of training: transformers' by their own names, with other defaults where those lose accuracy, speed
or a run.

Knows what may not go together; knows no model and no rows.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from typing import Any

import transformers
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import IntervalStrategy

from finetune.device import device
from finetune.errors import InputError
from finetune.training.hub import check_hub
from finetune.training.interrupts import ResumeOptions, check_stops
from finetune.training.machine import has_fast_bf16, keep_to_cpu

# Below these a run stops in mid-air, or trains on nothing without a word.
LEAST = {
    "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "gradient_accumulation_steps": 1,
    "num_train_epochs": 0,
    "seed": 0, "warmup_steps": 0, "max_grad_norm": 0, "weight_decay": 0, "label_smoothing_factor": 0,
    "dataloader_num_workers": 0,
}  # fmt: skip
# figures of which fewer is better; all others grow with quality
LOWER_IS_BETTER = {"loss", "mse", "mae", "perplexity", "bits_per_byte", "uniformity", "alignment"}


@dataclass
class TrainingArguments(ResumeOptions, transformers.TrainingArguments):
    """transformers' options by their own names; other defaults where those lose accuracy, speed or a run."""

    learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate (default: the method's own, see METHODS)."}
    )  # type: ignore[assignment]
    bf16: bool | None = field(
        default=None,
        metadata={"help": "bf16 autocast over float32 masters (default: where it is faster here)."},
    )  # type: ignore[assignment]
    torch_compile: bool = field(
        default=False,
        metadata={"help": "Compile the repeated layers for training: wins on a card, after a minute."},
    )
    per_device_train_batch_size: int = field(
        default=16, metadata={"help": "Rows a micro-batch on each process."}
    )
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "The same for evaluation."})
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Warm-up of the learning rate: steps, or a share of all below 1."}
    )
    logging_steps: float = field(
        default=10, metadata={"help": "Log every so many optimizer steps, or a share of all below 1."}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps, epoch."})
    save_strategy: str = field(
        default="epoch", metadata={"help": "When to save a checkpoint: no, steps, epoch."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep."})
    # Said to transformers' own loaders and loops, which are not at work here: no options. They would be
    # ignored, leave rows out,
    # or make losses depend on the number of processes.
    dataloader_drop_last: bool = field(default=False, init=False)
    auto_find_batch_size: bool = field(default=False, init=False)
    train_sampling_strategy: str = field(default="random", init=False)
    batch_eval_metrics: bool = field(default=False, init=False)
    eval_do_concat_batches: bool = field(default=True, init=False)
    prediction_loss_only: bool = field(default=False, init=False)
    average_tokens_across_devices: bool = field(default=True, init=False)
    do_train: bool = field(default=False, init=False)
    do_predict: bool = field(default=False, init=False)
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Hide losses that are no numbers; here they stop the run."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Drop columns the model doesn't name; encoders here keep none."}
    )
    dataloader_pin_memory: bool = field(
        default=device().type == "cuda", metadata={"help": "Pinned memory (default: where there is a GPU)."}
    )
    dataloader_num_workers: int = field(
        default=0, metadata={"help": "Processes that collate batches; the main one where 0."}
    )

    def __post_init__(self) -> None:
        # before super's checks, whose words name no flag of this project
        if self.output_dir is None:
            raise InputError("No output folder; set --output_dir")
        for name, least in LEAST.items():
            # `not >=` and no `<`, which nan would pass
            if not vars(self)[name] >= least:
                raise InputError(f"Got --{name} {vars(self)[name]}; wanted {least} or more")
        # -1 is transformers' own word for no limit
        if self.max_steps == 0 or self.max_steps < -1:
            raise InputError(
                f"Got --max_steps {self.max_steps}; wanted 1 or more, or none for --num_train_epochs"
            )
        # numpy takes seeds of 32 bits
        if self.seed >= 2**32:
            raise InputError(f"Got --seed {self.seed}; wanted a number below {2**32}")
        if self.fsdp and os.environ.get("WORLD_SIZE", "1") == "1":
            raise InputError(
                "--fsdp shards a model over several processes and this is one; leave it out, or start more"
            )
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise InputError(
                f"Got --learning_rate {self.learning_rate}; wanted a number above 0, or none for the "
                "method's own"
            )
        if self.label_smoothing_factor >= 1:
            raise InputError(
                f"Got --label_smoothing_factor {self.label_smoothing_factor}; wanted a share below 1"
            )
        self.settle_micro_batches()
        # both look at the raw options: super's own initialisation settles device and precision by them
        check_stops(self)
        keep_to_cpu(self)
        if self.bf16 is None:
            # fp16 and bf16 together are refused by transformers
            self.bf16 = not self.fp16 and has_fast_bf16()
        named, better = self.metric_for_best_model, self.greater_is_better
        if named is not None and better is None:
            self.greater_is_better = named.removeprefix("eval_") not in LOWER_IS_BETTER
        try:
            super().__post_init__()
            # made once for nothing: a package that is missing is said now and not after the model was loaded
            for reporter in get_reporting_integration_callbacks(self.report_to):
                reporter()
        # transformers' own words on options that don't fit together, or packages that aren't there
        except (ValueError, RuntimeError, ImportError) as error:
            raise InputError(str(error)) from error
        # transformers has put "loss" there meanwhile; the two schedulers need it
        if named is None and self.lr_scheduler_type not in ("reduce_lr_on_plateau", "greedy"):
            self.metric_for_best_model, self.greater_is_better = None, better  # the task's own, see `settled`


def settled(
    training: TrainingArguments, learning_rate: float, best: str = "accuracy", patience: int | None = None
) -> TrainingArguments:
    """The options with the method's learning rate where the user gave none, and with the figure that tells
    the best model.

    Raises:
        InputError: early stopping without evaluations, or with checkpoints at other times than evaluations;
            a hub that isn't to be reached where the run shall push.
    """
    check_hub(training)
    changes: dict[str, Any] = {}
    if training.learning_rate is None:
        changes["learning_rate"] = learning_rate
    if patience is not None:
        # waiting is counted in evaluations, and the best of them must have a checkpoint to go back to
        if training.eval_strategy == "no" or training.eval_strategy != training.save_strategy:
            # enums by now, made of the user's words by transformers
            when, saved = (
                IntervalStrategy(name).value for name in (training.eval_strategy, training.save_strategy)
            )
            raise InputError(
                f"--early_stopping_patience with --eval_strategy {when} and --save_strategy {saved}; wanted "
                "steps or epoch for both"
            )
        # a run that is continued remembers how long it has been waiting
        changes |= {"load_best_model_at_end": True, "restore_callback_states_from_checkpoint": True}
    named = training.metric_for_best_model
    if named is None and (
        patience is not None or training.load_best_model_at_end or training.save_strategy == "best"
    ):
        changes |= {"metric_for_best_model": best, "greater_is_better": best not in LOWER_IS_BETTER}
    elif named is not None and named.removeprefix("eval_") not in (best, "loss"):
        changes["eval_on_start"] = True  # a figure that isn't there is said before the training
    return replace(training, **changes) if changes else training
