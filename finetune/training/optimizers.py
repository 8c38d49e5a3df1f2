"""Which optimizers can be made here. Knows transformers' options; knows no task and no rows."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import Trainer
from transformers.training_args import OptimizerNames

from finetune.device import device
from finetune.errors import InputError
from finetune.models.compiled import check_compiler

OWN_WARMUP = (
    "schedule_free_adamw",
    "schedule_free_sgd",
)  # transformers hands them `warmup_steps` as it stands


# made or stepped by `.cuda()` in their packages' own code → what learns likewise anywhere
ON_CUDA = {
    "galore_adamw_8bit": "galore_adamw",
    "galore_adamw_8bit_layerwise": "galore_adamw_layerwise",
    "adalomo": "lomo",
}
# torchao's, each step of which is compiled
COMPILED = ("adamw_torch_4bit", "adamw_torch_8bit")


def check_optimizer(training: transformers.TrainingArguments, network: Any) -> None:
    """The optimizer that was asked for can be made here; said before the first step and not at it.

    Raises:
        InputError: its package is missing, or options that it needs, or a warm-up that it takes for another.
    """
    # an enum's value is what the user wrote
    name = training.optim.value if isinstance(training.optim, OptimizerNames) else str(training.optim)
    if name in ON_CUDA and device().type != "cuda":
        raise InputError(
            f"--optim {name} can't be used: its package works on NVIDIA's GPUs alone, and this run is on "
            f"{device().type.upper()}. Set --optim {ON_CUDA[name]}"
        )
    try:
        # made by transformers' own look-up and thrown away: importing its package is what may fail
        Trainer.get_optimizer_cls_and_kwargs(training, network)
    except (ImportError, ValueError, RuntimeError, NotImplementedError) as error:
        raise InputError(
            # messages of several lines would tear the error's one line
            f"--optim {name} can't be used: {' '.join(str(error).split()).rstrip('.')}. "
            "Set --optim to another"
        ) from error
    if name in COMPILED:
        asked = f"--optim {name} can't be used: its steps are compiled, and "
        check_compiler(asked, "set --optim adamw_torch", device(), "inductor", None)
    if name in OWN_WARMUP and 0 < training.warmup_steps < 1:
        raise InputError(
            f"--optim {name} warms up by itself, over a number of steps, and a share of them "
            f"(--warmup_steps {training.warmup_steps:g}) would multiply the first step's rate. Set "
            "--warmup_steps 0, or a number of steps"
        )
