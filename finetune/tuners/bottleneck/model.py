"""Bottleneck adapters put into a model, by PEFT's rules. Knows architectures by the table of sites alone."""

from __future__ import annotations

from typing import Any

from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from finetune.tuners.bottleneck.config import BottleneckConfig
from finetune.tuners.bottleneck.layer import BottleneckLayer, Sequential, WideIn, WideOut
from finetune.tuners.bottleneck.sites import SITES, parallel_kind, targets


class BottleneckModel(BaseTuner):
    """A frozen model with trainable bottleneck adapters; made by `peft.get_peft_model`, not by hand."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer

    def _prepare_adapter_config(self, peft_config: BottleneckConfig, model_config: dict[str, Any]) -> BottleneckConfig:
        """Settle what the architecture decides: the modules and, where it is shared, the activation.

        Raises:
            ValueError: the architecture is unknown and target_modules is None, or non_linearity isn't the one that has to be shared.
        """
        model_type = model_config["model_type"]
        if peft_config.target_modules is None:
            peft_config.target_modules = targets(model_type, peft_config.shape)
        sites = SITES.get(model_type)
        shared = model_config[sites.activation] if peft_config.shape == "parallel" and sites and sites.activation else None
        if shared and peft_config.non_linearity not in (None, shared):
            raise ValueError(
                f"non_linearity is '{peft_config.non_linearity}', but a parallel adapter in '{model_type}' shares the feed-forward's own "
                f"activation '{shared}'; leave non_linearity out of --method_kwargs."
            )
        peft_config.non_linearity = peft_config.non_linearity or shared or "relu"
        return peft_config

    def _check_new_adapter_config(self, config: PeftConfig) -> None:
        super()._check_new_adapter_config(config)
        # the two kinds wrap nested modules in some architectures, where PEFT would skip the inner ones without a word
        shapes = sorted({other.shape for other in self.peft_config.values()})
        if "parallel" in shapes and len(shapes) > 1:
            raise ValueError(
                f"One model can't hold parallel and sequential adapters together; got the shapes {', '.join(shapes)}."
            )

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)
            return
        kind = Sequential
        if peft_config.shape == "parallel":
            kind = parallel_kind(self.get_model_config(self.model)["model_type"], current_key)
            self._check_both_halves(peft_config, kind, current_key)
        layer = kind(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _check_both_halves(self, config: BottleneckConfig, kind: type[BottleneckLayer], name: str) -> None:
        """A widened feed-forward needs both its ends; half of one would fail at the first batch with a message about shapes."""
        if kind not in (WideIn, WideOut):
            return
        siblings = [other for other, _ in self.model.named_modules() if other.rpartition(".")[0] == name.rpartition(".")[0]]
        model_type = self.get_model_config(self.model)["model_type"]
        adapted = {parallel_kind(model_type, other) for other in siblings if self._check_target_module_exists(config, other)}
        if not {WideIn, WideOut} <= adapted:
            ends = " and ".join(SITES[model_type].parallel)
            raise ValueError(
                f"target_modules holds only '{name}'; a parallel adapter in '{model_type}' needs {ends} of the same layer."
            )

    def _check_merge_allowed(self) -> None:
        raise ValueError(
            "Bottleneck adapters are non-linear and can't be merged into the base; keep the adapter, or unload() to drop it."
        )
