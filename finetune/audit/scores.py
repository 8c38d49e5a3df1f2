"""A model and features → what each row costs it. Knows tasks as functions of a row; knows no attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset

from finetune.data.batching import LengthBatches, Shares
from finetune.loss import IGNORED
from finetune.tasks.task import Task


@dataclass(frozen=True)
class Costs:
    """Nats of each raw row.

    Attributes:
        losses: a mean over the row's items, [rows].
        items: nats of each item of each row, where the loss is a sum over tokens; else empty.
    """

    losses: np.ndarray
    items: list[np.ndarray]


@torch.inference_mode()
def costs(row: Task, network: Any, processor: Any, features: Dataset, batch_size: int = 32) -> Costs:
    """What each raw row costs a model; features of one row count together, in the order of their rows."""
    # no dropout: a cost must not depend on chance
    network.eval()
    collate, owners = row.collate(processor), np.asarray(features["row"][:])
    numbers = sorted(set(owners.tolist()))
    # rows of which nothing is left have no features: places close up
    place = {number: index for index, number in enumerate(numbers)}
    sums, counts = np.zeros(len(numbers)), np.zeros(len(numbers))
    items: list[list[np.ndarray]] = [[] for _ in numbers]
    # in any order: sums go to their owners
    for batch_places in LengthBatches(features["length"][:], Shares(batch_size)):
        batch = {
            name: value.to(network.device) if isinstance(value, torch.Tensor) else value
            for name, value in collate([features[one] for one in batch_places]).items()
        }
        # models take no such input
        batch.pop("row", None)
        labels = batch.pop("labels")
        logits = row.forward(network, batch, labels)
        # float64, as sums over many tokens are compared by small differences
        losses, many = row.loss(logits, labels).double().cpu(), row.items(labels).cpu()
        tokens = token_losses(logits, labels)
        for index, one in enumerate(batch_places):
            owner = place[int(owners[one])]
            sums[owner] += float(losses[index])
            counts[owner] += int(many[index])
            if tokens is not None:
                items[owner].append(tokens[index])
    # token by token for all rows or for none
    whole = all(items) and bool(items)
    return Costs(sums / np.maximum(counts, 1), [np.concatenate(parts) for parts in items] if whole else [])


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> Sequence[np.ndarray] | None:
    """Nats of each labelled token of each row; None where a row has one label, or no classes.

    Args:
        logits: [batch, time, classes]; labels: [batch, time].
    """
    # one logit a class, or labels that are numbers, have no tokens
    if logits.dim() != 3 or logits.shape[:2] != labels.shape or labels.is_floating_point():
        return None
    # logits here are shifted already: a label stands where it is predicted
    flat = F.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(labels)
    return [line[gold.ne(IGNORED)].cpu().numpy() for line, gold in zip(flat, labels, strict=True)]
