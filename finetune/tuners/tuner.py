"""What this package's tuners share: how a layer is wrapped and given back. Knows PEFT's hooks; knows no
method."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

BASE_LAYER = "__base__"  # PEFT's name for rows that no adapter changes


class TunerType(StrEnum):
    """Names of this package's methods; PEFT's hot-swap and status read `.value`, as of its own
    enumeration."""

    BITFIT = "BITFIT"
    BOTTLENECK = "BOTTLENECK"


def _name_rows(module: nn.Module, args: Any, kwargs: Any, adapter_names: list[str]) -> Any:
    return args, kwargs | {"adapter_names": adapter_names}


class LayerTuner(BaseTuner):
    """A tuner whose layers wrap one frozen module each and take further adapters by `update_layer`."""

    tuner_layer_cls: type[Any]

    @abstractmethod
    def _wrap(self, config: Any, adapter_name: str, target: nn.Module, name: str) -> nn.Module:
        """The layer around a module of that name, holding a first adapter.

        Raises:
            TypeError, ValueError: the method can't work on this module.
        """

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: Any,
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        # A second adapter on a layer that has one: its wrapper takes it in.
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config)
            return
        layer = self._wrap(peft_config, adapter_name, target, current_key)
        # A further adapter is not trained until it is chosen.
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT's mixed batches: `adapter_names` in a call says which adapter each row goes through.

        Raises:
            ValueError: in training, an unknown adapter, or beams.
        """
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        # Asked first: a wrong name in a batch would go through the bare base.
        unknown = sorted(set(names) - {BASE_LAYER, *self.peft_config})
        if self.training or unknown or (kwargs.get("num_beams") or 1) > 1:
            what = f"there is no adapter {unknown[0]!r}" if unknown else "it is for inference without beams"
            raise ValueError(f"adapter_names: {what}; the model has {', '.join(self.peft_config)}.")
        # Heads that are trained whole switch by row too.
        kinds = (self.tuner_layer_cls, AuxiliaryTrainingWrapper)
        hook = partial(_name_rows, adapter_names=list(names))
        # By hooks, as PEFT does it: models don't hand `adapter_names` down to their layers.
        handles = [
            module.register_forward_pre_hook(hook, with_kwargs=True)
            for module in self.modules()
            if isinstance(module, kinds)
        ]
        try:
            yield
        finally:
            # Also after an error, or the next call would go by this one's rows.
            for handle in handles:
                handle.remove()

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        # PEFT sets `weight` on what it gives back, which fails for a module without one: a feed-forward, a
        # head of two layers
        if hasattr(new_module, "base_layer"):
            super()._replace_module(parent, child_name, new_module, child)
        else:
            setattr(parent, child_name, new_module)
