"""Whether an adapter's tensors have the shapes of the layers that they change. Knows layers and tensors;
knows no files.

A tensor of another shape would break the batch of everybody who writes beside it, or be stretched without a
word where it has a single row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from finetune.adapters.weights import LAYERS, Adapter
from finetune.errors import InputError
from finetune.tuners.bottleneck.layer import width


def check_shapes(adapter: Adapter, name: str, module: nn.Module) -> None:
    """See that what an adapter changes of one layer fits it.

    Raises:
        InputError: a tensor of another shape.
    """
    for what, tensor, wanted in _wanted(adapter, name, module):
        if tensor is None or tuple(tensor.shape) != wanted:
            found = "is missing" if tensor is None else f"has the shape {list(tensor.shape)}"
            raise InputError(
                f"{adapter.folder} belongs on another base, or is damaged: {what} of '{name}' {found}, and "
                f"this base wants {list(wanted)}"
            )


def _wanted(
    adapter: Adapter, name: str, module: nn.Module
) -> Iterator[tuple[str, Tensor | None, tuple[int, ...]]]:
    """Each tensor of a layer, what it is called, and the shape that it must have."""
    if name in adapter.layers:
        parts, outputs = adapter.layers[name], width(module)
        down = parts.get(LAYERS[0])
        # Its own to choose; whether all parts agree on it is what is looked at.
        units = 0 if down is None else len(down)
        shapes = ((units, outputs), (units,), (outputs, units), (outputs,))
        yield from ((part, parts.get(part), shape) for part, shape in zip(LAYERS, shapes, strict=True))
    elif name in adapter.shifts:
        bias: Any = module.bias
        yield "the bias", adapter.shifts[name], tuple(bias.shape)
    else:
        inputs, outputs = _sizes(module)
        if name in adapter.factors:
            factors = adapter.factors[name]
            yield "lora_A", factors.down, (factors.rank, inputs)
            yield "lora_B", factors.up, (outputs, factors.rank)
        if name in adapter.magnitudes:
            yield "DoRA's magnitude", adapter.magnitudes[name], (outputs,)
        if name in adapter.scales:
            yield "IA3's factor", adapter.scales[name], (inputs if name in adapter.inward else outputs,)


def _sizes(module: Any) -> tuple[int, int]:
    """Inputs and outputs of a layer by its own word: weights of a quantised one are packed."""
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return module.in_features, module.out_features
