"""What this package's tuners share: how a layer is wrapped and given back. Knows PEFT's hooks; knows no
method."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from torch import nn


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
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config)
            return
        layer = self._wrap(peft_config, adapter_name, target, current_key)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        # PEFT sets `weight` on what it gives back, which fails for a module without one: a feed-forward, a
        # head of two layers
        if hasattr(new_module, "base_layer"):
            super()._replace_module(parent, child_name, new_module, child)
        else:
            setattr(parent, child_name, new_module)
