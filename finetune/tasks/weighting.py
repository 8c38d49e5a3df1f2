"""How much each label counts in training: class weights, label smoothing, focal loss. Knows labels; knows no
model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset

from finetune.errors import InputError
from finetune.tasks.options import TaskArguments
from finetune.tasks.task import Task


def shape_loss(
    row: Task, options: TaskArguments, smoothing: float, features: Dataset, labels: list[str] | None
) -> dict[str, Any]:
    """Keyword arguments of the row's loss in training, those that were asked for: class weights, smoothing,
    focal gamma.

    Raises:
        InputError: smoothing for a loss that has none, or weights for classes that aren't there.
    """
    shape: dict[str, Any] = {}
    if not 0 <= smoothing < 1:
        raise InputError(f"Got --label_smoothing_factor {smoothing}; wanted 0 or more, below 1")
    # refused here, as it is an option of the trainer and not of the task
    if smoothing:
        if "label_smoothing_factor" not in row.takes:
            raise InputError(
                f"The task '{options.task}' has no use for --label_smoothing_factor; leave it out"
            )
        shape["smoothing"] = smoothing
    if options.focal_gamma:
        shape["gamma"] = options.focal_gamma
    if options.class_weights:
        if labels is None:
            raise InputError(f"The task '{options.task}' has no classes to weight; leave --class_weights out")
        shape["weights"] = class_weights(options.class_weights, features["labels"][:], labels)
    return shape


def class_weights(wanted: str, gold: Sequence[Any], labels: list[str]) -> torch.Tensor:
    """Weights [classes]: given by name as JSON (1 for the rest), or balanced.

    Balanced weights make each class count as much in all (King & Zeng 2001), with a mean of 1 over labels;
    for sets of labels they are the ratio of rows without a label to rows with it.

    Args:
        gold: one class id a row, one a token (-100 where there is none), or 0.0 and 1.0 for each class.
    """
    if wanted != "balanced":
        try:
            given = json.loads(wanted)
            unknown = set(given) - set(labels)
            # a list or number has no `get`: caught below as no mapping
            weights = torch.tensor([float(given.get(name, 1.0)) for name in labels])
        except (ValueError, TypeError, AttributeError) as error:
            example = json.dumps({labels[0]: 2})
            raise InputError(
                f"--class_weights {wanted} is no mapping; wanted balanced, or JSON as '{example}'"
            ) from error
        # JSON as Python reads it knows NaN and Infinity
        if not torch.isfinite(weights).all() or weights.min() < 0 or not weights.any():
            raise InputError(
                f"--class_weights {wanted} has weights that are below 0 or no numbers; wanted 0 or more, not "
                "all 0"
            )
        if unknown:
            raise InputError(
                f"--class_weights names {', '.join(sorted(unknown))}; there are: {', '.join(labels)}"
            )
        return weights
    if isinstance(gold[0], list) and gold[0] and isinstance(gold[0][0], float):
        present = torch.tensor(gold).sum(dim=0)
        # binary cross-entropy's weights of positives; a label that nobody has gets a finite one
        return (len(gold) - present) / present.clamp(min=1)
    ids = [label for row in gold for label in row] if isinstance(gold[0], list) else gold
    flat = torch.tensor(ids)
    # -100 marks places without a label
    counts = torch.bincount(flat[flat >= 0], minlength=len(labels)).float()
    # classes that no row has stay at 1 and out of the mean
    return torch.where(
        counts > 0, counts.sum() / (counts.gt(0).sum() * counts.clamp(min=1)), torch.ones_like(counts)
    )
