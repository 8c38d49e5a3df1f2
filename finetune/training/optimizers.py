"""Which optimizers can be made here. Knows transformers' options; knows no task and no rows."""

from __future__ import annotations

from typing import Any

from transformers import Trainer
from transformers.training_args import OptimizerNames

from finetune.errors import InputError
from finetune.training.options import TrainingArguments


def check_optimizer(training: TrainingArguments, network: Any) -> None:
    """The optimizer that was asked for can be made here; said before the first step and not at it.

    Raises:
        InputError: its package is missing, or options that it needs.
    """
    try:
        Trainer.get_optimizer_cls_and_kwargs(training, network)
    except (ImportError, ValueError, RuntimeError, NotImplementedError) as error:
        name = training.optim.value if isinstance(training.optim, OptimizerNames) else training.optim
        raise InputError(
            f"--optim {name} can't be used: {' '.join(str(error).split())} Set --optim"
        ) from error
