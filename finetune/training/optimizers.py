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
        # made by transformers' own look-up and thrown away: importing its package is what may fail
        Trainer.get_optimizer_cls_and_kwargs(training, network)
    except (ImportError, ValueError, RuntimeError, NotImplementedError) as error:
        # an enum's value is what the user wrote
        name = training.optim.value if isinstance(training.optim, OptimizerNames) else training.optim
        raise InputError(
            # messages of several lines would tear the error's one line
            f"--optim {name} can't be used: {' '.join(str(error).split())} Set --optim"
        ) from error
