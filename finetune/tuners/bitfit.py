"""BitFit: only biases are trained (Ben Zaken et al. 2022, arXiv:2106.10199). Knows layers with a bias; knows
no architectures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn
from transformers.pytorch_utils import Conv1D

from finetune.tuners.tuner import BASE_LAYER, LayerTuner, TunerType

BITFIT = TunerType.BITFIT
# an output plus a vector is the same as a bias plus that vector in these alone
ADDITIVE = (nn.Linear, Conv1D, nn.LayerNorm)


@dataclass
class BitFitConfig(PeftConfig):
    """Trains a difference to each bias, kept apart from the frozen model."""

    target_modules: list[str] | set[str] | str | None = field(
        default=None,
        metadata={
            "help": "Layers whose bias is trained: a list of name endings, or one regular expression for "
            "whole names. None: every linear layer and layer norm that has one."
        },
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "Modules trained and saved whole beside the biases, such as a new head."},
    )
    init_weights: bool = field(
        default=True,
        metadata={"help": ("Start at zero, so that nothing changes; false draws at random, for tests.")},
    )

    trainable_token_indices: dict[str, list[int]] | None = field(
        default=None,
        metadata={"help": "Rows of embeddings that are trained beside: the layer's name and token ids."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = BITFIT
        # A set, as PEFT makes of lists: saving and matching want one form.
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)


def is_additive(layer: nn.Module) -> bool:
    """Whether a vector added to a layer's output is the same as one added to its bias."""
    # ConvNeXt's norm of pictures is a LayerNorm by type, with its channels before their places: a vector
    # would meet the picture's columns.
    return isinstance(layer, ADDITIVE) and vars(layer).get("data_format") != "channels_first"


def features(layer: Any) -> tuple[int, int]:
    """Width of what goes into a layer, and of what comes out."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, Conv1D):
        return layer.nx, layer.nf
    # A norm's input and output are one width.
    return layer.weight.shape[0], layer.weight.shape[0]


class BitFitLayer(nn.Module, BaseTunerLayer):
    """A frozen layer whose output is shifted by one trained vector for each active adapter; several add
    up."""

    # "bias" in the name keeps transformers' Trainer from decaying it
    adapter_layer_names = ("bitfit_bias",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BitFitConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bitfit_bias = nn.ParameterDict()
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        # To the bit: taking the shift off again would leave roundings.
        self._bias_before_merge: torch.Tensor | None = None
        self.in_features, self.out_features = features(base_layer)
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BitFitConfig) -> None:
        """Add an adapter of that name, at zero, trainable if it is active."""
        start = torch.zeros(self.bias.shape) if config.init_weights else torch.randn(self.bias.shape)
        self.bitfit_bias[adapter_name] = nn.Parameter(start)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        # Of the layer's active adapters: a second one that is added stays off.
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Fold adapters (the active ones if None) into the layer's bias.

        Raises:
            ValueError: safe_merge is set and an adapter holds NaN or infinity.
        """
        bias = self.bias
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.bitfit_bias:
                continue
            shift = self.bitfit_bias[name].data
            # Before anything is written: a bias half merged can't be told from a whole one.
            if safe_merge and not torch.isfinite(shift).all():
                raise ValueError(f"The adapter '{name}' holds NaN or infinity and was not merged.")
            if not self.merged_adapters:
                self._bias_before_merge = bias.detach().clone()
            # in place, so that a bias tied to another module's stays tied
            bias.data.copy_(bias.data.to(shift.dtype) + shift)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Put back the bias as it was before merging, to the bit."""
        if self._bias_before_merge is not None:
            self.bias.data.copy_(self._bias_before_merge)
        self._bias_before_merge = None
        self.merged_adapters.clear()

    def forward(self, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> torch.Tensor:
        if adapter_names is not None:
            return self._mixed(self.base_layer(*args, **kwargs), adapter_names)
        if self.disable_adapters and self.merged:
            # Without adapters means without merged ones too.
            self.unmerge()
        output = self.base_layer(*args, **kwargs)
        if self.disable_adapters or self.merged:
            return output
        shifts = [self.bitfit_bias[name] for name in self.active_adapters if name in self.bitfit_bias]
        # In float32 where the shift is: a bf16 sum would lose small shifts.
        return (output + sum(shifts)).to(output.dtype) if shifts else output

    def _mixed(self, output: torch.Tensor, names: list[str]) -> torch.Tensor:
        """Each row's own shift; several names of a row aren't PEFT's way."""
        if self.merged:
            raise ValueError("Adapters are merged: rows can't go without them. Call unmerge_adapter() first.")
        known = [name if name in self.bitfit_bias else BASE_LAYER for name in names]
        none = torch.zeros(output.shape[-1], device=output.device)
        shifts = torch.stack([none if name == BASE_LAYER else self.bitfit_bias[name] for name in known])
        # Broadcast over time: a vector a row, [rows, 1, width].
        return (output + shifts.reshape(len(known), *[1] * (output.dim() - 2), -1)).to(output.dtype)


class BitFitModel(LayerTuner):
    """A frozen model with trainable shifts of its biases; made by `peft.get_peft_model`, not by hand."""

    prefix = "bitfit_"
    tuner_layer_cls = BitFitLayer

    def _prepare_adapter_config(  # type: ignore[override]
        self, peft_config: BitFitConfig, model_config: dict[str, Any]
    ) -> BitFitConfig:
        """Find every layer with a bias outside the modules that are trained whole.

        Raises:
            ValueError: the model has none.
        """
        if peft_config.target_modules is None:
            # A head that is trained whole has its bias in that already.
            peft_config.target_modules = self._biased_layers(peft_config.modules_to_save or [])
            if not peft_config.target_modules:
                raise ValueError(
                    f"BitFit trains biases, and the layers of {type(self.model).__name__} "
                    f"('{model_config['model_type']}') "
                    "have none. Set another --method, such as lora."
                )
        return peft_config

    def _biased_layers(self, heads: list[str]) -> set[str]:
        layers = {}
        # a bare trunk's pooler feeds a head that isn't there: its bias would never get a gradient
        bare = getattr(self.model, "base_model", None) is self.model
        unused = {"pooler"} if bare else set()
        # A pooler behind a bare trunk never sees a loss.
        for name, module in self.model.named_modules():
            if unused & set(name.split(".")):
                continue
            if isinstance(module, BitFitLayer):
                layers[name] = module.get_base_layer()
            # Below another adapter's wrapper the layer has been counted by its wrapper.
            elif "base_layer" not in name.split(".") and is_additive(module):
                layers[name] = module
        return {
            name
            for name, layer in layers.items()
            # A dot on either side, so that "score" doesn't match "scorer".
            if layer.bias is not None and not any(f".{head}." in f".{name}." for head in heads)
        }

    def _wrap(self, config: BitFitConfig, adapter_name: str, target: nn.Module, name: str) -> BitFitLayer:
        if not is_additive(target) or target.bias is None:
            raise TypeError(
                f"'{name}' is a {type(target).__name__} without a bias to shift; wanted linear layers or "
                "layer norms that "
                "have one. Set target_modules in --method_kwargs."
            )
        return BitFitLayer(target, adapter_name, config)
