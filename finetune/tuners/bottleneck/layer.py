"""Layers that hold bottleneck adapters around a frozen one. Knows tensors; knows no architectures.

Nothing is kept from one call to the next, so that gradient checkpointing, threads and compilation see plain
functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from finetune.tuners.bottleneck.config import BottleneckConfig
from finetune.tuners.tuner import BASE_LAYER

Step = Callable[[torch.Tensor], torch.Tensor]  # what an adapter reads → what it adds


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm over its last dimension, of whatever class."""
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    # By its shape and not its class: families have norms of their own.
    return weight is not None and weight.dim() == 1 and not list(module.children())


def width(module: nn.Module) -> int:
    """Features of a module's output: a norm's own, else those of the last linear layer in it.

    Raises:
        TypeError: there is none.
    """
    if is_norm(module):
        return module.weight.shape[0]  # type: ignore[union-attr, return-value]
    # From behind: a feed-forward ends in the layer that gives its width.
    for layer in reversed(list(module.modules())):
        if isinstance(layer, nn.Linear):
            return layer.out_features
        if isinstance(layer, Conv1D):
            return layer.nf
    raise TypeError(
        f"A bottleneck adapter needs a linear layer to sit on; {type(module).__name__} holds none. Set "
        "target_modules."
    )


def units(features: int, config: BottleneckConfig) -> int:
    """Width of the bottleneck, rounded down.

    Raises:
        ValueError: nothing is left.
    """
    if config.reduction_factor > features:
        raise ValueError(
            f"reduction_factor {config.reduction_factor} leaves nothing of a layer {features} wide; wanted "
            f"{features} or less."
        )
    return features // config.reduction_factor


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """What every kind shares: one adapter a name, built by `update_layer`. Subclasses say where its output
    goes."""

    adapter_layer_names: tuple[str, ...] = ("bottleneck_down", "bottleneck_act", "bottleneck_up")
    other_param_names: tuple[str, ...] = ("bottleneck_dropout", "scaling")
    by_row = True  # whether each row of a batch can go through another adapter

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_act = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_dropout = nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.in_features = self.out_features = width(base_layer)
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add an adapter of that name, trainable if it is active."""
        # By the frozen layer and not by the wrapper, whose own modules are adapters.
        self._build(adapter_name, config, width(self.get_base_layer()))
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _build(self, name: str, config: BottleneckConfig, features: int) -> None:
        self.bottleneck_down[name] = nn.Linear(features, units(features, config))
        self.bottleneck_act[name] = ACT2FN[config.non_linearity]
        self._build_up(name, config, features)

    def _build_up(self, name: str, config: BottleneckConfig, features: int) -> None:
        up = nn.Linear(units(features, config), features)
        if config.init_weights:  # zeros: a new adapter changes nothing
            nn.init.zeros_(up.weight)
            # Both: with a bias drawn at random a new adapter would change every output.
            nn.init.zeros_(up.bias)
        self.bottleneck_up[name] = up
        self.bottleneck_dropout[name] = nn.Dropout(config.dropout)
        self.scaling[name] = float(config.scaling)  # type: ignore[arg-type]  # the config settles it

    def _get_base_layer_device_and_dtype(
        self, base_layer: nn.Module
    ) -> tuple[torch.device | None, torch.dtype | None]:
        # a feed-forward as a whole has no weight of its own; quantised weights have no dtype to train in
        for parameter in base_layer.parameters():
            if parameter.is_floating_point():
                return parameter.device, parameter.dtype
        return super()._get_base_layer_device_and_dtype(base_layer)

    def forward(self, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Any:
        if adapter_names is None:
            return self.around([partial(self.change, name) for name in self.running()], *args, **kwargs)
        # Rows of different widths can't stand in one tensor.
        if not self.by_row:
            raise ValueError(
                "A parallel adapter that widens the feed-forward takes one adapter for all rows; leave "
                "adapter_names "
                "out."
            )
        return self.around([partial(self._change_rows, adapter_names)], *args, **kwargs)

    def around(self, steps: Sequence[Step], *args: Any, **kwargs: Any) -> Any:
        """The frozen layer's output with what the steps add."""
        raise NotImplementedError

    def _change_rows(self, names: Sequence[str], hidden: torch.Tensor) -> torch.Tensor:
        """What each row's own adapter adds; nothing for PEFT's `__base__`, nor for one that isn't on this
        layer."""
        total = torch.zeros_like(hidden)
        # Each adapter once, for all of its rows together; __base__ leaves a row as it was.
        for name in set(names) & set(self.scaling) - {BASE_LAYER}:
            rows = torch.tensor([i for i, own in enumerate(names) if own == name], device=hidden.device)
            total[rows] = self.change(name, hidden[rows])
        return total

    def running(self) -> list[str]:
        """Names of the adapters that take part in a call, in the order they run."""
        return (
            [] if self.disable_adapters else [name for name in self.active_adapters if name in self.scaling]
        )

    def change(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        """scaling · up(f(down(hidden))), in hidden's shape and dtype: [..., features]."""
        # Back in the layer's type: the next one may be in bf16.
        return self.grow(name, self.bottleneck_act[name](self.shrink(name, hidden))).to(hidden.dtype)

    def shrink(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        """down(hidden): [..., features] → [..., units], in the adapter's dtype."""
        down: Any = self.bottleneck_down[name]
        return down(self._cast_input_dtype(hidden, down.weight.dtype))

    def grow(self, name: str, inner: torch.Tensor) -> torch.Tensor:
        """scaling · up(inner): [..., units] → [..., features], in the adapter's dtype."""
        up: Any = self.bottleneck_up[name]
        return self.scaling[name] * up(
            self.bottleneck_dropout[name](self._cast_input_dtype(inner, up.weight.dtype))
        )


class Sequential(BottleneckLayer):
    """Behind a layer: its output goes through one adapter after the other (Houlsby)."""

    def around(self, steps: Sequence[Step], *args: Any, **kwargs: Any) -> torch.Tensor:
        hidden = self.base_layer(*args, **kwargs)
        for step in steps:
            # Each reads what the one before has made, so that two are a stack.
            hidden = hidden + step(hidden)
        return hidden


class AfterNorm(BottleneckLayer):
    """At the layer norm that follows a feed-forward and its residual (Pfeiffer, in models that norm there).

    The norm is given z = h + x. Adapters read LN(z), and what they add goes to h: LN(z + change(LN(z))).
    """

    def around(self, steps: Sequence[Step], total: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        for step in steps:
            # The norm anew for each: the sum of norms isn't the norm of the sum.
            total = total + step(self.base_layer(total, *args, **kwargs))
        return self.base_layer(total, *args, **kwargs)


class AfterLayer(BottleneckLayer):
    """Behind a whole layer that ends with a feed-forward and its residual (Pfeiffer, in models that norm a
    sub-layer's input): what comes out is h + x, and goes through one adapter after the other."""

    def around(self, steps: Sequence[Step], *args: Any, **kwargs: Any) -> Any:
        found = self.base_layer(*args, **kwargs)
        # Some architectures' layers give attention beside their states.
        hidden = found[0] if isinstance(found, tuple) else found
        for step in steps:
            hidden = hidden + step(hidden)
        return (hidden, *found[1:]) if isinstance(found, tuple) else hidden

    def __getattr__(self, name: str) -> Any:
        # models read their layers' attributes, such as which kind of attention one has
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Before it is assigned: asking for it would come here again, for ever.
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)


class Parallel(BottleneckLayer):
    """Beside a feed-forward that is one module: same input, outputs added (He et al., table 1)."""

    def around(self, steps: Sequence[Step], hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        output = self.base_layer(hidden, *args, **kwargs)
        for step in steps:
            # The same input for all: their order doesn't count.
            output = output + step(hidden)
        return output


class ParallelOutput(BottleneckLayer):
    """Beside the feed-forward of BERT's kin, held by the module that ends it.

    There the residual is the feed-forward's own input, and the module computes norm(linear(inner) +
    residual): what is added to the residual is added to the feed-forward's output.
    """

    def around(  # type: ignore[override]
        self, steps: Sequence[Step], inner: torch.Tensor, residual: torch.Tensor
    ) -> torch.Tensor:
        total = residual
        for step in steps:
            total = total + step(residual)
        return self.base_layer(inner, total)


class WideIn(BottleneckLayer):
    """First half of an adapter beside a feed-forward that is no module of its own but fc1, activation, fc2
    inside a layer (BART).

    A parallel adapter with the same activation is the same thing as more units in the feed-forward. So fc1
    hands over its own units and the bottleneck's side by side, the model applies its activation (and its
    dropout) to all, and `WideOut` takes them apart.
    """

    adapter_layer_names = ("bottleneck_down",)
    # Dropout and scaling belong to the half that comes after.
    other_param_names = ()
    by_row = False  # rows would be of different widths

    def _build(self, name: str, config: BottleneckConfig, features: int) -> None:
        base: Any = self.get_base_layer()
        self.bottleneck_down[name] = nn.Linear(base.in_features, units(base.in_features, config))

    def running(self) -> list[str]:
        known = [name for name in self.active_adapters if name in self.bottleneck_down]
        return [] if self.disable_adapters else known

    def around(self, steps: Sequence[Step], hidden: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        output = self.base_layer(hidden)
        more = [self.shrink(name, hidden).to(output.dtype) for name in self.running()]
        # Behind its own units, in the order in which `WideOut` takes them apart.
        return torch.cat([output, *more], dim=-1) if more else output


class WideOut(BottleneckLayer):
    """Second half: fc2 takes its own units, the adapters theirs (see `WideIn`)."""

    adapter_layer_names = ("bottleneck_up",)
    by_row = False

    def _build(self, name: str, config: BottleneckConfig, features: int) -> None:
        self._build_up(name, config, features)

    def around(self, steps: Sequence[Step], inner: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        names = self.running()
        layers: list[Any] = [self.get_base_layer(), *(self.bottleneck_up[name] for name in names)]
        # By the layers' own widths, in the order of `WideIn`.
        own, *more = inner.split([layer.in_features for layer in layers], dim=-1)
        output = self.base_layer(own)
        for name, part in zip(names, more, strict=True):
            output = output + self.grow(name, part).to(output.dtype)
        return output
