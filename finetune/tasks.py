"""TASKS: what there is to learn. One row a task; behind it pure functions for each step of the flow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoModelForSequenceClassification

from finetune import loss, metrics
from finetune.data import collate, encode
from finetune.errors import InputError
from finetune.models import forward


@dataclass(frozen=True)
class Task:
    """One task, as the functions and classes that each step needs.

    Attributes:
        model: transformers' auto class.
        encode: (rows, columns, processor, max_length, labels) → features.
        collate: processor → (features → batch).
        loss: (logits, labels) → summed loss of each row [batch].
        items: labels → number of items that the loss of each row is summed over [batch].
        metrics: (what is kept of the logits, labels, label names) → figures.
        peft: PEFT's name of the task.
        pair: whether a row has two texts.
        best: the figure that tells the better of two models; greater is better.
        forward: (model, batch without labels, labels) → logits, where a head wants more than `model(**batch)["logits"]`.
        keep: (logits, labels) → what evaluation keeps of a batch [batch, ...]; all logits of a vocabulary would not fit.
    """

    model: Any
    encode: Callable
    collate: Callable
    loss: loss.RowLoss
    items: Callable
    metrics: Callable
    peft: str
    pair: bool = False
    best: str = "accuracy"
    forward: Callable = forward.plain
    keep: Callable = loss.everything


TASKS: dict[str, Task] = {
    "classification": Task(
        AutoModelForSequenceClassification, encode.sequence, collate.sequences, loss.cross_entropy, loss.items, metrics.labels, "SEQ_CLS"
    ),
    "pairs": Task(
        AutoModelForSequenceClassification, encode.sequence, collate.sequences, loss.cross_entropy, loss.items, metrics.labels, "SEQ_CLS",
        pair=True,
    ),
}  # fmt: skip


@dataclass
class TaskArguments:
    """Which task."""

    task: str = field(default="classification", metadata={"help": "A row of TASKS: classification, pairs."})
    max_length: int = field(default=256, metadata={"help": "Longest input in tokens; longer texts are cut, and the log says how many."})


def find_task(name: str) -> Task:
    """The row of that name.

    Raises:
        InputError: there is none.
    """
    if name not in TASKS:
        raise InputError(f"Unknown task '{name}'; wanted one of: {', '.join(TASKS)}. Set --task")
    return TASKS[name]
