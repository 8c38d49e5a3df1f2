"""A causal model → the same model with a value for each token. Knows models; knows no reward and no rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ValueHead(nn.Module):
    """Hidden states [..., width] → expected return [...], in float32 whatever the states are.

    States are normalised first, since models differ by orders of magnitude in them, and every value starts at
    0, so that the first advantages are plain rewards. It has one hidden layer: a single product learns too
    little in runs of some tens of steps.
    """

    def __init__(self, width: int, hidden: int = 128) -> None:
        super().__init__()
        self.score: nn.Linear | None = None
        # nothing to learn in it: it only brings states of any model to one size
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.hidden, self.out = nn.Linear(width, hidden), nn.Linear(hidden, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, states: Tensor) -> Tensor:
        # returns are regressed on, where bf16's three digits are too few
        with torch.autocast(states.device.type, enabled=False):
            states = states.float()
            found = self.out(self.hidden(self.norm(states)).tanh())[..., 0]
            # added to 0 at first, so that values begin as the reward model's
            return found if self.score is None else found + self.score(states)[..., 0]

    def start_at(self, head: nn.Linear) -> None:
        """Begin with what a reward model's head says of the same states, instead of 0."""
        self.score = nn.Linear(head.in_features, 1).to(head.weight.device)
        with torch.no_grad():
            self.score.weight.copy_(head.weight)
            self.score.bias.copy_(torch.zeros(1) if head.bias is None else head.bias)

    @torch.no_grad()
    def in_deviations(self, values: Tensor, mask: Tensor, mean: float, deviation: float) -> Tensor:
        """Have the head that `start_at` set give (value - mean) / deviation from now on; the same of
        `values` [rows, time].
        """
        assert self.score is not None
        self.score.weight.div_(deviation)
        # the order counts: (w·x + b - mean) / deviation
        self.score.bias.sub_(mean).div_(deviation)
        return (values - mean) / deviation * mask


def hidden_width(network: Any) -> int:
    """Width of the states that a causal model's head reads."""
    return network.config.get_text_config().hidden_size
