"""A base in 4 bits (Dettmers et al. 2023), on a GPU or a CPU: how transformers is told. Knows no
tuning method.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import BitsAndBytesConfig
from transformers.utils import is_bitsandbytes_available

from finetune.device import device
from finetune.errors import InputError


def in_four_bits(auto_class: Any, settings: Any) -> dict[str, Any]:
    """What `from_pretrained` takes for a base in NF4 with its scales quantised too.

    What stands on top of the base (a head, the output layer) and what is no linear layer stays as it is.
    Products are made in bfloat16 on a GPU; on a CPU in float32, since the gain there is memory and not speed.

    Raises:
        InputError: the package is missing.
    """
    if not is_bitsandbytes_available():
        raise InputError(
            "A base in 4 bits needs the package bitsandbytes, not found here (pip install bitsandbytes). "
            "Install it, or set --method lora"
        )
    here = device()
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if here.type == "cuda" else torch.float32,
        llm_int8_skip_modules=_on_top(auto_class, settings),
    )
    return {"quantization_config": config, "device_map": {"": here}}


def keep_differentiable(network: torch.nn.Module) -> None:
    """Have rounded layers never lay their weights out for inference alone.

    On processors with bf16 products bitsandbytes does that in the first evaluation, and gradients no longer
    pass the layers in the training that goes on after it. Such a layer does nothing else in another way in
    training.
    """
    for module in network.modules():
        if isinstance(module, torch.nn.Linear) and hasattr(module, "quant_state"):
            # a hook and not once: evaluation switches every layer back each time
            module.register_forward_pre_hook(_in_training)


def _in_training(layer: torch.nn.Module, inputs: Any) -> None:
    layer.train()


def _on_top(auto_class: Any, settings: Any) -> list[str]:
    """Names of the modules outside the base, told from a model without weights."""
    # without memory, and without the weights' file
    with torch.device("meta"):
        bare = auto_class.from_config(settings)
    # an encoder-decoder without a base of its own: its parts by their names in T5 and BART
    base = {bare.base_model_prefix} if bare.base_model is not bare else {"shared", "encoder", "decoder"}
    output = bare.get_output_embeddings()
    # the output layer may stand deeper than among the children
    named = {name for name, module in bare.named_modules() if module is output and output is not None}
    return sorted({name for name, _ in bare.named_children() if name not in base} | named)
