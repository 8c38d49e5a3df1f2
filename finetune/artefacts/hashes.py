"""Hashes of a base's weights, of a tokenizer and of an adapter's file: what a passport compares. Knows
models; knows no folders of runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune.models.load import MADE_UP

SAMPLES = 64
# What changes a model's function although names and shapes of its weights stay the same.
ARCHITECTURE = ("model_type", "hidden_act", "activation_function", "num_attention_heads",
                "num_key_value_heads", "rope_theta",
                "rope_parameters", "rope_scaling", "layer_norm_eps", "rms_norm_eps", "sliding_window",
                "is_decoder")  # fmt: skip


def hash_weights(network: Any, samples: int | None = SAMPLES) -> dict[str, str]:
    """Name → hash of each weight of the base, seen without adapters and heads, so that every task on one base
    has the same.

    Args:
        samples: numbers taken from each tensor, evenly spaced; None takes all.

    Values count as bfloat16: the same base loaded in float32 and in bfloat16 is the same. Left out are biases
        (BitFit and LoRA's
    `bias` train them), whole numbers (quantised weights) and modules that the checkpoint lacked, which come
    with the adapter.
    """
    base = bare_base(network)
    made_up = (
        tuple(f"{name}." for name in base.config.to_dict().get(MADE_UP, []))
        if isinstance(base, PreTrainedModel)
        else ()
    )
    table = _table(base) if isinstance(base, PreTrainedModel) else None
    base = base.base_model if isinstance(base, PreTrainedModel) else base
    hashes = {}
    for name, tensor in _base_tensors(base):
        # Biases may be trained with the adapter; whole numbers are a quantiser's own.
        if name.endswith("bias") or name.startswith(made_up) or not tensor.is_floating_point():
            continue
        hashes[name] = _hash_tensor(tensor.detach(), samples, tensor is table)
    return hashes


def _table(base: PreTrainedModel) -> torch.Tensor | None:
    """The weight of the tokens' embeddings without what trains rows of it; None where it reads no tokens."""
    try:
        layer = base.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None
    # Under a wrapper that trains single rows the table itself is inside.
    layer = layer.original_module if isinstance(layer, AuxiliaryTrainingWrapper) else layer
    return layer.weight if isinstance(layer, nn.Embedding) else None


def _hash_tensor(tensor: torch.Tensor, samples: int | None, is_table: bool) -> str:
    shape = tuple(tensor.shape)
    if is_table:
        # Rows at the end are made up when a tokenizer gains a pad token; below a power of two none of them
        # is reached.
        tensor, shape = tensor[: 1 << max(0, (len(tensor) - 1).bit_length() - 1)], shape[1:]
    flat = tensor.reshape(-1)
    if samples is not None and flat.numel() > samples:
        # Evenly over the whole tensor, its first and last included.
        flat = flat[torch.arange(samples, device=flat.device) * (flat.numel() - 1) // (samples - 1)]
    # bf16, so that the type a base is loaded in changes nothing; as integers, since numpy has no bf16.
    content = flat.to(torch.bfloat16).cpu().contiguous().view(torch.int16).numpy().tobytes()
    return hashlib.sha256(repr(shape).encode() + content).hexdigest()[:16]


def _base_tensors(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Weights as they are named without any adapter, whatever adapters there are."""
    if isinstance(module, BaseTunerLayer):
        yield from _base_tensors(module.get_base_layer(), prefix)
    elif isinstance(module, AuxiliaryTrainingWrapper):
        # A module that was trained whole: the base's own is kept beside it.
        yield from _base_tensors(module.original_module, prefix)
    else:
        for name, tensor in module.named_parameters(prefix.rstrip("."), recurse=False):
            yield name, tensor
        for name, child in module.named_children():
            yield from _base_tensors(child, f"{prefix}{name}.")


def hash_processor(processor: Any) -> dict[str, str | None]:
    """Hashes of a tokenizer (vocabulary, merges, special tokens, normalising) and its chat template, or of
    another processor."""
    if not isinstance(processor, PreTrainedTokenizerBase):
        return {
            "tokenizer": hashlib.sha256(
                json.dumps(processor.to_dict(), sort_keys=True, default=str).encode()
            ).hexdigest()
        }
    if processor.is_fast:
        content = json.loads(processor.backend_tokenizer.to_str())
        for state in ("truncation", "padding"):  # a call's own settings stay behind in it
            content.pop(state, None)
    else:
        content = {"class": type(processor).__name__, "vocabulary": processor.get_vocab()}
    content["special"] = {k: str(v) for k, v in processor.special_tokens_map.items()}
    template = processor.chat_template
    return {
        "tokenizer": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
        "chat_template": None
        if template is None
        else hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest(),
    }


def architecture_of(network: Any) -> dict[str, Any]:
    """What a base's configuration says that its weights don't show."""
    config = bare_base(network).config.to_dict()
    return json.loads(json.dumps({key: config[key] for key in ARCHITECTURE if key in config}, default=str))


def bare_base(network: Any) -> Any:
    return network.get_base_model() if isinstance(network, PeftModel) else network


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, read in pieces: weights may be larger than memory."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
