"""Bottleneck adapters put into a model, by PEFT's rules. Knows architectures by the table of sites alone."""

from __future__ import annotations

from typing import Any

from peft.config import PeftConfig
from torch import nn

from finetune.tuners.bottleneck.config import PUBLISHED, BottleneckConfig
from finetune.tuners.bottleneck.layer import BottleneckLayer, Sequential, WideIn, WideOut, is_norm
from finetune.tuners.bottleneck.sites import SITES, output, parallel_kind, site_kind, targets
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
            # Settled here where the model is known, and saved with it.
            peft_config.target_modules = targets(model_config, peft_config)
            if peft_config.shape == "pfeiffer" and peft_config.original_ln_before is None:
                peft_config.original_ln_before = True
        sites = SITES.get(model_type)
        # BART's kin widen their feed-forward: the activation is the model's own.
        shared = (
            model_config[sites.activation]
            if peft_config.shape == "parallel" and sites and sites.activation
            else None
        )
        if shared and peft_config.non_linearity not in (None, shared):
            raise ValueError(
                f"non_linearity is '{peft_config.non_linearity}', but a parallel adapter in '{model_type}' "
                "shares "
                f"the feed-forward's own, '{shared}'; leave non_linearity out of --method_kwargs."
            )
        published = str(PUBLISHED[peft_config.shape]["non_linearity"])
        peft_config.non_linearity = peft_config.non_linearity or shared or published
        return peft_config

    def _check_new_adapter_config(self, config: PeftConfig) -> None:
        # PEFT checks names and biases first.
        super()._check_new_adapter_config(config)
        # adapters on a module inside another's would be left out by PEFT without a word
        others = [other for other in self.peft_config.values() if isinstance(other, BottleneckConfig)]
        # By where they sit: two shapes behind the same modules go together.
        places = sorted({f"{other.shape} {self._place(other)}" for other in others})
        if len({place.rpartition(" ")[2] for place in places}) > 1:
            raise ValueError(
                "One model can't hold parallel and sequential adapters together, nor adapters on layers and "
                "inside "
                f"them; got: {', '.join(places)}."
            )

    def _place(self, config: BottleneckConfig) -> str:
        """Which adapters can be in one model with others."""
        if config.shape == "parallel":
            return "(beside)"
        model_config = self.get_model_config(self.model)
        sites = SITES.get(model_config["model_type"])
        named = config.original_ln_before is None and config.target_modules is not None
        inside = config.shape == "houlsby" or config.original_ln_before is False or named or sites is None
        return "(inside)" if inside or output(sites, model_config).endswith("orm") else "(around)"

    def _wrap(
        self, config: BottleneckConfig, adapter_name: str, target: nn.Module, name: str
    ) -> BottleneckLayer:
        model_type = self.get_model_config(self.model)["model_type"]
        kind = site_kind(config.shape, model_type, name, target)
        # Before it is built: a wrong place fails at once and not at the first batch.
        self._check_kind(config, kind, target, name)
        if config.shape == "parallel":
            self._check_both_halves(config, kind, name)
        return kind(target, adapter_name, config)

    def _check_kind(
        self, config: BottleneckConfig, kind: type[BottleneckLayer], target: nn.Module, name: str
    ) -> None:
        """A shape names what its adapters read: another module under that name would be another method.

        Raises:
            TypeError: the module isn't what the shape sits on.
        """
        summed = config.original_ln_before if config.shape == "pfeiffer" else False
        # A norm says by itself where its adapter reads.
        if config.shape == "parallel" or (summed is None and is_norm(target)):
            return
        if (kind is Sequential) == bool(summed):
            place = "norms or layers that end with a residual" if summed else "a linear layer"
            raise TypeError(
                f"A '{config.shape}' adapter sits behind {place}, and '{name}' is a "
                f"{type(target).__name__}. Set "
                "target_modules in --method_kwargs (with pfeiffer, original_ln_before too)."
            )

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
        # Matched names may hold one half of some layer only.
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
