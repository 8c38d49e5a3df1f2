"""Bottleneck adapters put into a model, by PEFT's rules. Knows architectures by the table of sites alone."""

from __future__ import annotations

from typing import Any

from peft.config import PeftConfig
from torch import nn
from transformers.pytorch_utils import Conv1D

from finetune.tuners.bottleneck.config import BottleneckConfig
from finetune.tuners.bottleneck.layer import BottleneckLayer, Sequential, WideIn, WideOut
from finetune.tuners.bottleneck.sites import SITES, parallel_kind, targets
from finetune.tuners.tuner import LayerTuner


class BottleneckModel(LayerTuner):
    """A frozen model with trainable bottleneck adapters; made by `peft.get_peft_model`, not by hand."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer

    def _prepare_adapter_config(  # type: ignore[override]
        self, peft_config: BottleneckConfig, model_config: dict[str, Any]
    ) -> BottleneckConfig:
        """Settle what the architecture decides: the modules and, where it is shared, the activation.

        Raises:
            ValueError: the architecture is unknown and target_modules is None, or non_linearity isn't the
                shared one.
        """
        model_type = model_config["model_type"]
        if peft_config.target_modules is None:
            peft_config.target_modules = targets(model_type, peft_config.shape)
        sites = SITES.get(model_type)
        shared = (
            model_config[sites.activation]
            if peft_config.shape == "parallel" and sites and sites.activation
            else None
        )
        if shared and peft_config.non_linearity not in (None, shared):
            raise ValueError(
                f"non_linearity is '{peft_config.non_linearity}', but a parallel adapter in '{model_type}' "
                "shares the "
                f"feed-forward's own, '{shared}'; leave non_linearity out of --method_kwargs."
            )
        peft_config.non_linearity = peft_config.non_linearity or shared or "relu"
        return peft_config

    def _check_new_adapter_config(self, config: PeftConfig) -> None:
        super()._check_new_adapter_config(config)
        # the two kinds wrap nested modules in some architectures, where PEFT would skip the inner ones
        # without a word
        shapes = sorted(
            {other.shape for other in self.peft_config.values() if isinstance(other, BottleneckConfig)}
        )
        if "parallel" in shapes and len(shapes) > 1:
            raise ValueError(
                "One model can't hold parallel and sequential adapters together; got the shapes "
                f"{', '.join(shapes)}."
            )

    def _wrap(
        self, config: BottleneckConfig, adapter_name: str, target: nn.Module, name: str
    ) -> BottleneckLayer:
        if config.shape == "parallel":
            kind = parallel_kind(self.get_model_config(self.model)["model_type"], name)
            self._check_both_halves(config, kind, name)
            return kind(target, adapter_name, config)
        if not isinstance(target, (nn.Linear, Conv1D)):
            raise TypeError(
                f"A '{config.shape}' adapter sits behind a linear layer, and '{name}' is a "
                f"{type(target).__name__}. "
                "Set target_modules in --method_kwargs to the layers that end attention and feed-forward."
            )
        return Sequential(target, adapter_name, config)

    def _check_both_halves(self, config: BottleneckConfig, kind: type[BottleneckLayer], name: str) -> None:
        """A widened feed-forward needs both its ends; half of one would fail at the first batch with a
        message about shapes."""
        if kind not in (WideIn, WideOut):
            return
        siblings = [
            other
            for other, _ in self.model.named_modules()
            if other.rpartition(".")[0] == name.rpartition(".")[0]
        ]
        model_type = self.get_model_config(self.model)["model_type"]
        adapted = {
            parallel_kind(model_type, other)
            for other in siblings
            if self._check_target_module_exists(config, other)
        }
        if not {WideIn, WideOut} <= adapted:
            ends = " and ".join(SITES[model_type].parallel)
            raise ValueError(
                f"target_modules holds only '{name}'; a parallel adapter in '{model_type}' needs {ends} of "
                "the same layer."
            )

    def _check_merge_allowed(self) -> None:
        raise ValueError(
            "Bottleneck adapters are non-linear and can't be merged into the base; keep the adapter, or "
            "unload() to drop it."
        )
