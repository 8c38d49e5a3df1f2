"""LoRA that trains for a file of 4 bits: the sum of base and adapter is rounded in each step as the file will
round it. Knows PEFT's layer and torchao's rounding; knows no file and no Trainer.

Quantisation-aware training (Jacob et al. 2018; Liu et al. 2024, "LLM-QAT"): forward with rounded weights,
backward as if they were not (straight-through).
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn

from finetune.errors import InputError

GROUP, MULTIPLE = 32, 16


def takes_int4(module: nn.Module) -> bool:
    """Whether a layer's sizes fit the groups and the kernel."""
    return (
        isinstance(module, nn.Linear)
        and module.in_features % GROUP == 0
        and module.out_features % MULTIPLE == 0
    )


def rounded(weight: Tensor) -> Tensor:
    """[out, in] with 16 values for each 32 weights of a row, as `export --to int4` finds them; its gradient
    is the weight's own where no value was cut.
    """
    from torchao.quantization.qat import IntxFakeQuantizeConfig
    from torchao.quantization.qat.fake_quantizer import IntxFakeQuantizer

    # torch makes the type when it is imported, which no stub knows
    four_bits = vars(torch)["int4"]
    return IntxFakeQuantizer(IntxFakeQuantizeConfig(four_bits, group_size=GROUP))(weight)


class RoundedLinear(lora.Linear):
    """PEFT's layer; in training it multiplies by the rounded W + scale · B A, elsewhere as PEFT does.

    Evaluation is not rounded: the run is read without it, and what int4 costs is the export's to say.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        names, base = self.active_adapters, self.base_layer
        # what isn't one adapter's training is all PEFT's, and so is a layer that the file keeps whole
        off = self.disable_adapters or self.merged or len(names) != 1 or names[0] not in self.lora_A
        if not self.training or off or args or kwargs or not takes_int4(base):
            return super().forward(x, *args, **kwargs)
        # the sum in full precision, as merging has it: scales follow from its largest weights
        with torch.autocast(x.device.type, enabled=False):
            whole = rounded(base.weight.float() + self.get_delta_weight(names[0]).float())
        bias = base.bias
        kind = x.dtype if not torch.is_autocast_enabled(x.device.type) else whole.dtype
        return nn.functional.linear(x, whole.to(kind), None if bias is None else bias.to(kind))


def check_rounded(network: nn.Module, config: lora.LoraConfig) -> None:
    """The adapter is a sum with the base, whose layers go into 4 bits, and what rounds is installed.

    Raises:
        InputError: one of these doesn't hold.
    """
    if importlib.util.find_spec("torchao") is None:
        raise InputError(
            "The method 'qat_lora' rounds by torchao, which is not installed: "
            "pip install 'finetune-and-prompt[int4]'; or set --method lora"
        )
    # dropout falls on the adapter's input alone, and a rounded sum has no such part
    if config.lora_dropout or config.use_dora:
        raise InputError(
            "The method 'qat_lora' rounds the sum of base and adapter, in which lora_dropout and use_dora "
            "have no place; leave them out of --method_kwargs"
        )
    # GPT-2's own kind of layer, or widths that no group of 32 fits
    if not any(map(takes_int4, network.modules())):
        raise InputError(
            f"The method 'qat_lora' can't tune {type(network).__name__}: no linear layer has inputs in "
            f"groups of {GROUP} and outputs in groups of {MULTIPLE}. Set --method lora"
        )
