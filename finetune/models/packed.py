"""Attention for packed rows: several texts in one line, none sees another. Knows transformers' attention; no rows, no Trainer.

A dense mask over a line of n tokens costs n², most of it for pairs that may not see each other. Here each text is attended to by
itself: by the variable-length kernel on a GPU, text by text on a CPU.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from finetune.errors import InputError

NAME = "texts_apart"
SHORT = 320  # below this many tokens plain matrix products beat the fused kernel's backward on a CPU


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each text of a packed line; lines that are not packed go to transformers' own function.

    Args:
        query: [1, heads, tokens, width]; key and value may have fewer heads (grouped-query attention).
        cu_seq_lens_q: where texts begin, and the end of the last, [texts + 1].

    Returns:
        [1, tokens, heads, width].
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.is_cuda:
        return _on_gpu(query, key, value, cu_seq_lens_q, scale), None
    edges = cu_seq_lens_q.tolist()
    parts = [
        _one_text(query[0, :, start:end], key[0, :, start:end], value[0, :, start:end], scale)
        for start, end in itertools.pairwise(edges)
    ]
    return torch.cat(parts, dim=1).transpose(0, 1)[None], None


def _one_text(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """[heads, time, width], causal."""
    heads, time, width = query.shape
    groups = heads // key.shape[0]
    if time > SHORT:
        whole = torch.nn.functional.scaled_dot_product_attention(
            query[None], key[None], value[None], is_causal=True, scale=scale, enable_gqa=groups > 1
        )
        return whole[0]
    grouped = query.reshape(key.shape[0], groups * time, width)
    scores = (grouped @ key.transpose(1, 2)).view(key.shape[0], groups, time, time) * scale
    hidden = torch.ones(time, time, dtype=torch.bool, device=query.device).triu(1)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1, dtype=torch.float32).to(value.dtype)
    return (weights.view(key.shape[0], groups * time, time) @ value).view(heads, time, width)


def _on_gpu(query: Tensor, key: Tensor, value: Tensor, edges: Tensor, scale: float) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # exists for a GPU alone

    longest = int(edges.diff().max())
    apart = {"cu_seq_q": edges, "cu_seq_k": edges, "max_q": longest, "max_k": longest, "window_size": (-1, 0)}
    lines = {name: part[0].transpose(0, 1).contiguous() for name, part in (("query", query), ("key", key), ("value", value))}
    return varlen_attn(**lines, **apart, scale=scale, enable_gqa=query.shape[1] != key.shape[1])[None]  # type: ignore


def no_mask(attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """The mask of a packed line, which needs none; other lines get that of scaled_dot_product_attention."""
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **kwargs)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, no_mask)


def pack(network: PreTrainedModel) -> None:
    """Have a decoder attend to packed rows text by text.

    Raises:
        InputError: a model whose attention can't be chosen.
    """
    try:
        network.set_attn_implementation(NAME)
    except (ValueError, NotImplementedError) as error:
        raise InputError(f"{type(network).__name__} can't read packed rows ({error}). Set --packing false") from error
