"""A student learns what a teacher says of each class beside the labels. Knows logits and trainers; knows no
teacher's folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from finetune.errors import InputError
from finetune.loss import IGNORED
from finetune.training.trainer import ExactTrainer

# (inputs of a batch, its labels, its training rows) → the teacher's logits, shaped as the student's
Teacher = Callable[[dict[str, Any], Tensor, Tensor], Tensor]


@dataclass
class DistilArguments:
    """Whom the model learns from beside the labels."""

    teacher: str | None = field(
        default=None,
        metadata={
            "help": "Output folder of a run on the same task, whose logits are learnt too (Hinton et al. "
            "2015): one class a text, or language models with the same tokenizer."
        },
    )
    distil_temperature: float = field(
        default=2.0,
        metadata={"help": "Both sets of logits are divided by it: higher shows more of unlikely classes."},
    )
    distil_weight: float = field(
        default=0.5, metadata={"help": "Share of the teacher in the loss; the labels have the rest."}
    )

    def __post_init__(self) -> None:
        # nan fails every comparison; an endless temperature would make all classes alike
        if not 0 < self.distil_temperature < math.inf:
            raise InputError(f"Got --distil_temperature {self.distil_temperature}; wanted a number above 0")
        if not 0 < self.distil_weight <= 1:
            raise InputError(
                f"Got --distil_weight {self.distil_weight}; wanted a share above 0, 1 for the teacher alone"
            )
        # compared with the defaults, which are said in one place
        plain = DistilArguments.__dataclass_fields__
        for name in ("distil_temperature", "distil_weight"):
            if self.teacher is None and vars(self)[name] != plain[name].default:
                raise InputError(f"--{name} is for a --teacher; set one, or leave it out")


def soft_cross_entropy(logits: Tensor, taught: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Temperature² × the Kullback-Leibler divergence of the student from the teacher at a temperature, summed
    over each row's labelled places (Hinton et al. 2015, section 2: the square keeps its gradients as large as
    the labels').

    Args:
        logits: the student's, [batch, classes] or [batch, time, classes].
        taught: the teacher's, of the same shape.
        labels: [batch] or [batch, time]; places of -100 count for nothing.

    Returns:
        [batch], in nats × temperature².
    """
    # the teacher's logits may be in bf16, whose logarithms of small chances are too coarse
    wanted = (taught.float() / temperature).log_softmax(-1)
    said = (logits.float() / temperature).log_softmax(-1)
    each = (wanted.exp() * (wanted - said)).sum(-1) * temperature**2
    # summed by row, as the labels' losses are, for the trainer divides both by the same number of items
    return each.masked_fill(labels.eq(IGNORED), 0.0).reshape(len(labels), -1).sum(dim=1)


class DistilTrainer(ExactTrainer):
    """ExactTrainer whose loss is the labels' and the teacher's, both summed over the step's items; evaluation
    is by the labels alone.
    """

    def __init__(self, *, teacher: Teacher, distil: DistilArguments, **kwargs: Any) -> None:
        self.teacher, self.distil = teacher, distil
        super().__init__(**kwargs)

    def measured(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Any]:
        # read before super's, which takes both out of the batch
        rows, labels = inputs["row"], inputs["labels"]
        losses, items, logits = super().measured(model, inputs)
        with torch.no_grad():
            # a teacher may stand on another device or keep its logits in main memory
            taught = self.teacher(inputs, labels, rows).to(logits.device)
        share = self.distil.distil_weight
        soft = soft_cross_entropy(logits, taught, labels, self.distil.distil_temperature)
        return share * soft + (1 - share) * losses, items, logits


def taught_by(teacher: Teacher | None, distil: DistilArguments, others: Mapping[str, Any]) -> dict[str, Any]:
    """What `make_trainer` is told of a teacher: nothing where there is none.

    Args:
        others: what it is told already.

    Raises:
        InputError: the run shall be private, which covers nothing that a teacher says.
    """
    if teacher is None:
        return {}
    # a mechanism of differential privacy, see finetune.privacy
    if "mechanism" in others:
        raise InputError(
            "--teacher with --epsilon: what the teacher has learnt of its rows is not covered by it; leave "
            "one of them out"
        )
    return {"kind": DistilTrainer, "teacher": teacher, "distil": distil}
