"""What one step of PPO sampled, and which prompts it samples for. Knows tensors and rows; knows no model.

Chance has no state: prompts follow from (seed, step).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Row = TypeVar("Row")


@dataclass
class Experience:
    """One step's answers: ids and masks [rows, width], numbers a token [rows, time], numbers an answer
    [rows].

    `parts` is what each reward said, [rows, rewards], NaN where it doesn't apply.
    """

    prompts: Tensor
    prompt_mask: Tensor
    answers: Tensor
    mask: Tensor
    log_probs: Tensor
    reference: Tensor
    values: Tensor
    entropies: Tensor
    parts: Tensor
    ended: Tensor
    empty: Tensor

    def rows(self, index: Sequence[int], device: torch.device) -> Experience:
        """Some answers, their prompts without the columns that are padding in all of them."""
        # A step's experience stays on the CPU; a minibatch goes to the device.
        part = Experience(*(vars(self)[f.name][list(index)].to(device) for f in fields(self)))
        return replace(
            part, prompts=(kept := real_columns(part.prompts, part.prompt_mask))[0], prompt_mask=kept[1]
        )


def real_columns(prompts: Tensor, prompt_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Prompts and mask, padded on the left, without leading columns that hold no real token."""
    # On the left stands padding alone, so that the longest row says where the first real token is.
    width = int(prompt_mask.sum(1).max())
    return prompts[:, -width:], prompt_mask[:, -width:]


class Clock:
    """Seconds of each part of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[f"seconds_{name}"] = now - self._last
        self._last = now


def step_prompts(prompts: Sequence[Row], seed: int, step: int, size: int) -> list[Row]:
    """The prompts of a step: a new permutation an epoch, read on end, so that each prompt comes
    equally often.
    """
    # Counted over the whole run: a step may begin in one epoch and end in the next.
    first = step * size
    chosen = []
    for place in range(first, first + size):
        epoch, index = divmod(place, len(prompts))
        chosen.append(prompts[int(_order(len(prompts), seed, epoch)[index])])
    return chosen


def _order(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, 7, epoch)).permutation(size)
