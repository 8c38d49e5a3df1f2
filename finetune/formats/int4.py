"""Linear layers in 4 bits: 32 weights of a row share one scale. Knows torchao and safetensors; knows no rows.

The file holds two weights a byte, in the order of the layer: it reads the same on every processor, and the
layout that this one's kernel wants is made at loading.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from finetune.errors import InputError
from finetune.models.rounded import GROUP, MULTIPLE, takes_int4

FILE = "int4.safetensors"
PACKED, SCALE = ".weight.int4", ".weight.scale"


def quantised_names(network: Any) -> list[str]:
    """The linear layers that get 4 bits: all whose sizes fit, but for a language model's output layer."""
    # often tied to the embeddings, which stay as they are
    head = network.get_output_embeddings()
    return [name for name, one in network.named_modules() if takes_int4(one) and one is not head]


def save_int4(network: Any, folder: Path) -> Path:
    """Write `int4.safetensors` and the configuration: linear layers in 4 bits, all else in bf16.

    Raises:
        InputError: no layer fits.
    """
    names = quantised_names(network)
    if not names:
        raise InputError(
            f"{type(network).__name__} has no linear layer for int4; wanted inputs in groups of {GROUP} and "
            f"outputs in groups of {MULTIPLE}"
        )
    tensors: dict[str, Tensor] = {}
    modules = dict(network.named_modules())
    for name in names:
        # from float32: scales are found from what was trained, not from bf16
        packed, scale = quantise(modules[name].weight.detach().float())
        tensors |= {name + PACKED: packed, name + SCALE: scale}
    whole = {f"{name}.weight" for name in names}
    seen: set[int] = set()
    for name, tensor in network.state_dict().items():
        if name not in whole and tensor.data_ptr() not in seen:  # tied ones once
            seen.add(tensor.data_ptr())
            # ids of positions stay whole numbers
            kept = tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
            # safetensors refuses views and shared memory
            tensors[name] = kept.contiguous().clone()
    network.config.save_pretrained(folder)
    save_file(tensors, folder / FILE, metadata={"int4": json.dumps({"group": GROUP})})
    return folder / FILE


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[out, in] → two weights a byte [out, in / 2], the first in the low half, and scales [out, in / 32], as
    torchao's weight-only int4 with symmetric groups finds them.
    """
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    # torchao quantises modules, not tensors
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    # torch makes the type when it is imported, which no stub knows
    four_bits = vars(torch)["int4"]
    quantize_(layer, IntxWeightOnlyConfig(weight_dtype=four_bits, granularity=PerGroup(GROUP)))
    found: Any = layer.weight
    # -8..7 → 0..15, half a byte
    raised = (found.qdata + 8).to(torch.uint8)
    return raised[:, ::2] | (raised[:, 1::2] << 4), found.scale.reshape(len(weight), -1).contiguous()


def load_int4(file: Path, kind: str) -> Any:
    """The network of an `int4.safetensors`, computing in bf16.

    Args:
        kind: name of transformers' auto class.

    Raises:
        InputError: weights of the model are missing in the file.
    """
    import transformers

    settings = transformers.AutoConfig.from_pretrained(file.parent)
    network = getattr(transformers, kind).from_config(settings, dtype=torch.bfloat16).eval()
    with safe_open(str(file), framework="pt") as held:
        tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
    # the file itself says which layers have 4 bits
    names = [name.removesuffix(PACKED) for name in tensors if name.endswith(PACKED)]
    for name in names:
        layer = network.get_submodule(name)
        packed, scale = tensors.pop(name + PACKED), tensors.pop(name + SCALE)
        layer.weight = nn.Parameter(_for_kernel(packed, scale), requires_grad=False)
    # the packed layers are set already and count as missing here
    missing, strange = network.load_state_dict(tensors, strict=False)
    # tied weights are in the file once
    network.tie_weights()
    lacking = {one for one in missing if one.removesuffix(".weight") not in names} - _tied(network)
    if lacking or strange:
        raise InputError(f"{file} does not hold this model: {', '.join(sorted(lacking | set(strange))[:3])}")
    return network


def _tied(network: Any) -> set[str]:
    """Names of weights that are another's."""
    whole = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    return whole - {name for name, _ in network.named_parameters()}


def _for_kernel(packed: Tensor, scale: Tensor) -> Tensor:
    """What the processor's int4 product takes: w = (q - 8) × scale + 0."""
    from torchao.prototype.quantization.int4 import Int4OpaqueTensor

    # low half first, as `quantise` wrote: [out, in]
    values = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1).int()
    # [groups, out], as the kernel has them
    turned = scale.to(torch.bfloat16).T
    table = torch.stack([turned, torch.zeros_like(turned)], dim=-1).contiguous()
    laid_out = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, 1)
    return Int4OpaqueTensor(laid_out, table, [1, GROUP], values.shape)
