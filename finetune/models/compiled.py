"""The repeated layers of a model, compiled for training. Knows torch's compiler and modules; knows no
rows and no Trainer.

Between its products a layer reads and writes all its states again and again (norms, rotations, gates,
sums): on a card that takes as long as the products, and most of a step's memory. Compiled, neighbours are one
pass.
A layer is compiled once, for lines of every length, and stands for all of its kind; a whole model would be
compiled anew for each length of line.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import wraps
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from finetune.models.attention import packed


def compile_layers(network: Any, backend: str = "inductor", mode: str | None = None) -> int:
    """Have each repeated layer of a model compute by torch.compile where it is trained; evaluation and
    writing, whose caches and lengths differ from token to token, stay as they are.

    Args:
        network: on the device that it is trained on.
        backend, mode: torch.compile's.

    Returns:
        How many layers there are.
    """
    _prepare_attention(next(network.parameters()).device)
    layers = list(repeated(network))
    for layer in layers:
        _compile(layer, backend, mode)
    if layers and hasattr(network, "enable_input_require_grads"):
        # else the first layer, whose input a frozen embedding gives, would be compiled for itself
        network.enable_input_require_grads()
    return len(layers)


def _prepare_attention(place: torch.device) -> None:
    """Packed attention inside of a layer's graph on a card; elsewhere, where it reads the texts' borders,
    between two graphs.
    """
    if place.type != "cuda":
        AttentionInterface.register(packed.NAME, torch.compiler.disable(packed.attend))
    # asked while a graph is made and never inside of it
    for asked in (packed.kernel_serves, packed.wants_grouping_said):
        torch.compiler.assume_constant_result(asked)


def repeated(network: nn.Module) -> Iterator[nn.Module]:
    """Members of lists of several modules of one class, the outermost lists alone."""
    for child in network.children():
        kinds = {type(one) for one in child} if isinstance(child, nn.ModuleList) else set()
        if len(kinds) == 1 and len(child) > 1:  # type: ignore[arg-type]
            yield from child  # type: ignore[misc]
        else:
            yield from repeated(child)


def _compile(layer: Any, backend: str, mode: str | None) -> None:
    plain = layer.forward
    # one graph for all lengths: the first is not taken for a constant
    fast = torch.compile(plain, dynamic=True, backend=backend, mode=mode)

    @wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        trained = layer.training and torch.is_grad_enabled()
        return (fast if trained else plain)(*args, **kwargs)

    # on the instance, inside of what hooks, shards and recomputed activations put around a layer's call
    layer.forward = forward
