"""Several heads of a reward model → one score, by weights. Knows layers and names; knows no verb."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune.errors import InputError


def folder_and_rest(rest: str) -> tuple[str, str]:
    """`FOLDER[:WHAT]` → folder and what follows; a folder that exists is taken whole, as a path may hold a
    colon.
    """
    if Path(rest).is_dir() or ":" not in rest:
        return rest, ""
    folder, _, told = rest.rpartition(":")
    return folder, told


def head_weights(told: str, names: Sequence[str], folder: str) -> Tensor:
    """`NAME=WEIGHT,...` → a weight for each head, [heads]: 0 for those that aren't named, 1 each where none
    is.

    Raises:
        InputError: another name, or a weight that is no number.
    """
    if not told:
        return torch.ones(len(names))
    found = dict.fromkeys(names, 0.0)
    for one in told.split(","):
        name, _, weight = one.partition("=")
        try:
            value = float(weight or 1)
        except ValueError:
            value = float("nan")
        if name not in found or value != value:
            raise InputError(
                f"--reward model:{folder}:{told}; wanted NAME=WEIGHT, where NAME is one of: "
                f"{', '.join(names)}"
            )
        found[name] = value
    return torch.tensor(list(found.values()))


def one_head(head: nn.Linear, weights: Tensor) -> nn.Linear:
    """The layer whose single output is the weighted sum of another's outputs."""
    summed = nn.Linear(head.in_features, 1, bias=head.bias is not None)
    with torch.no_grad():
        summed.weight.copy_((weights.to(head.weight) @ head.weight)[None])
        if head.bias is not None:
            summed.bias.copy_(weights.to(head.bias) @ head.bias)
    return summed.to(head.weight.device)


def heads_of(options: dict[str, Any]) -> list[str]:
    """Names of a reward model's heads by its options; one alone for models of pairs."""
    return list(options.get("attributes") or ["reward"])
