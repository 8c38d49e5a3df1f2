"""LoRA's layer as one step of autograd. Knows PEFT's layer; knows no model and no Trainer.

PEFT adds two thin products to a frozen one, and autograd handles each of them, its scale and its sum by
itself: on a CPU that is an eighth of a step. Here the thin products are added where the wide one stands, and
their scale sits in the small factor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft.tuners import lora
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class LowRank(torch.autograd.Function):
    """y = x Wᵀ + b + scale · (x Aᵀ) Bᵀ (Hu et al. 2022, equation 3), with W and b frozen.

    states x [tokens, in], weight W [out, in], bias b [out] or None, down A [rank, in], up B [out, rank], all
    of one type → [tokens, out].
    """

    @staticmethod
    def forward(
        context: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
    ) -> Tensor:
        # the scale into the thin factor: over the wide product it would be a pass through the largest tensor
        narrow, wide = states @ down.T, up * scale
        context.save_for_backward(states, weight, down, wide, narrow)
        context.scale = scale
        # in place: the product is new, and nobody else's
        return F.linear(states, weight, bias).addmm_(narrow, wide.T)

    @staticmethod
    # the backward pass is not itself recorded; second derivatives are asked for by nobody
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, down, wide, narrow = context.saved_tensors
        to_narrow = gradient @ wide
        # into the wide product again; the first layer's input wants no gradient at all
        to_states = (gradient @ weight).addmm_(to_narrow, down) if context.needs_input_grad[0] else None
        return to_states, None, None, to_narrow.T @ states, (gradient.T @ narrow).mul_(context.scale), None


class LowRankLinear(lora.Linear):
    """PEFT's layer; trains its adapter by `LowRank` where that is all there is to compute."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base, dtype = self.base_layer, self._type(x)
        # PEFT's further arguments (adapter_names) choose by row
        if args or kwargs or dtype is None:
            return super().forward(x, *args, **kwargs)
        name = self.active_adapters[0]
        bias = None if base.bias is None else base.bias.to(dtype)
        factors = (part[name].weight.to(dtype) for part in (self.lora_A, self.lora_B))
        weight, scale = base.weight.to(dtype), self.scaling[name]
        if torch.compiler.is_compiling():
            # a compiler puts the sum into what comes next, which adding in place would hide from it
            down, up = factors
            x = x.to(dtype)
            return F.linear(x, weight, bias) + F.linear(F.linear(x, down), up * scale)
        # [..., time, in] → [tokens, in]
        found = LowRank.apply(x.to(dtype).flatten(0, -2), weight, bias, *factors, scale)
        return found.view(*x.shape[:-1], -1)

    def _type(self, x: Tensor) -> torch.dtype | None:
        """What the products are made in; None where PEFT's own way is called for."""
        names, kind = self.active_adapters, x.device.type
        # merged, switched off, stacked or unlike layers are all PEFT's
        if (
            not torch.is_grad_enabled()
            or self.disable_adapters
            or self.merged
            or len(names) != 1
            or names[0] not in self.lora_A
        ):
            return None
        down, up = self.lora_A[names[0]], self.lora_B[names[0]]
        # whoever listens to the factors, as to take their gradients by row, wants them called
        heard = down._forward_hooks or up._forward_hooks
        # a bias of the adapter, its dropout and its variants (DoRA) change the formula
        more = (
            heard
            or self.lora_variant
            or up.bias is not None
            or type(self.lora_dropout[names[0]]) is not nn.Identity
        )
        # a subclass may be quantised, and a base that is trained wants its own gradient
        if more or type(self.base_layer) is not nn.Linear or self.base_layer.weight.requires_grad:
            return None
        if torch.is_autocast_enabled(kind):
            return torch.get_autocast_dtype(kind)
        # without autocast, types that differ must not be joined silently
        return x.dtype if x.dtype == self.base_layer.weight.dtype == down.weight.dtype else None


@contextmanager
@torch.no_grad()
def folded(network: nn.Module) -> Iterator[None]:
    """W + scale · B A in the place of W and no adapter beside it, within; afterwards everything as it was, to
    the bit.

    For sampling, which calls every layer once a token, where the thin products cost almost what the wide one
    does. In a base of 16 bits the sum is rounded as W is. Networks where there is more to an adapter stay as
    they are.
    """
    tuned = [layer for layer in network.modules() if isinstance(layer, BaseTunerLayer)]
    if not all(map(_is_sum, tuned)) or _share(network, tuned):
        yield
        return
    # kept, since switching adapters off and on makes them trainable as PEFT sees fit
    flags = [(p, p.requires_grad) for layer in tuned for p in layer.parameters()]
    # the tensors themselves and no differences: adding and taking away again would leave a rounding
    weights = [layer.base_layer.weight for layer in tuned]
    before = [weight.data for weight in weights]
    try:
        for layer, weight in zip(tuned, weights, strict=True):
            delta = layer.get_delta_weight(layer.active_adapters[0])
            weight.data = (weight.data + delta).to(weight.dtype)
            layer.enable_adapters(False)
        yield
    finally:
        for layer, weight, data in zip(tuned, weights, before, strict=True):
            weight.data = data
            layer.enable_adapters(True)
        for parameter, trainable in flags:
            parameter.requires_grad_(trainable)


def _is_sum(layer: Any) -> bool:
    """Whether a tuned layer is a frozen linear one and one adapter's B A, and holds its weights in full."""
    names = layer.active_adapters
    if not isinstance(layer, lora.Linear) or len(names) != 1 or names[0] not in layer.lora_A:
        return False
    off = (
        layer.disable_adapters
        or layer.merged
        or layer.lora_variant
        or layer.lora_B[names[0]].bias is not None
    )
    # shards and quantised weights are tensors of other kinds
    weight = layer.base_layer.weight
    whole = (
        type(layer.base_layer) is nn.Linear and type(weight) is nn.Parameter and type(weight.data) is Tensor
    )
    return whole and not off and not weight.requires_grad and weight.dim() == 2


def _share(network: nn.Module, tuned: list[Any]) -> bool:
    """Whether the weight of a tuned layer is another module's too, as tied embeddings' is."""
    own = {layer.base_layer.weight for layer in tuned}
    every = (weight for _, weight in network.named_parameters(remove_duplicate=False))
    return sum(weight in own for weight in every) != len(tuned)


_casting: WeakKeyDictionary[nn.Module, list[Any]] = WeakKeyDictionary()


@contextmanager
def without_input_casts(network: nn.Module, active: bool) -> Iterator[None]:
    """PEFT's casts of every adapter's input to its weight's type left out: under autocast the next product
    undoes them.

    PEFT's own `disable_input_dtype_casting` stops at layers that know no such cast.
    """
    if (
        active and network not in _casting
    ):  # a walk through all modules, which a small model's step would feel
        tuned = (layer for layer in network.modules() if isinstance(layer, BaseTunerLayer))
        # only those that know the switch: on others the attribute would be a new one
        _casting[network] = [layer for layer in tuned if "cast_input_dtype_enabled" in vars(layer)]
    layers = _casting[network] if active else []
    for layer in layers:
        layer.cast_input_dtype_enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.cast_input_dtype_enabled = True
