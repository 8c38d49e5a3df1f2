"""A causal model → the same model with a value for each token. Knows models; knows no reward and no rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ValueHead(nn.Module):
    """Hidden states [..., width] → expected return [...], in float32 whatever the states are.

    States are normalised first, since models differ by orders of magnitude in them, and every value starts at 0, so that the
    first advantages are plain rewards. It has one hidden layer: a single product learns too little in runs of some tens of
    steps.
    """

    def __init__(self, width: int, hidden: int = 128) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.hidden, self.out = nn.Linear(width, hidden), nn.Linear(hidden, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, states: Tensor) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            return self.out(self.hidden(self.norm(states.float())).tanh())[..., 0]


def hidden_width(network: Any) -> int:
    """Width of the states that a causal model's head reads."""
    return network.config.get_text_config().hidden_size
