"""Attention for packed rows: several texts in one line, none sees another. Knows transformers' attention; no rows, no Trainer.

A dense mask over a line of n tokens costs n², most of it for pairs that may not see each other. Here each text is attended to by
itself: by the variable-length kernel on a GPU, text by text on a CPU.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from finetune.errors import InputError
from finetune.models.attention.cpu import OTHER_SCORES
from finetune.models.forward import computed_in

NAME = "texts_apart"
SHORT = 640  # up to this many tokens plain matrix products beat the fused kernel's backward on a CPU


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each text of a packed line; lines that are not packed go to transformers' own function.

    Args:
        query: [1, heads, tokens, width]; key and value may have fewer heads (grouped-query attention).
        cu_seq_lens_q: where texts begin, and the end of the last, [texts + 1].
        sliding_window: tokens that each one sees, itself included; None for all before it.

    Returns:
        [1, tokens, heads, width].

    Raises:
        InputError: a family whose scores are not the plain ones.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    strange = [name for name in OTHER_SCORES if kwargs.get(name) is not None]
    if strange:
        raise InputError(
            f"Packed rows know no attention with {strange[0]}. Set --attn_implementation eager and --packing false"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.is_cuda and not dropout:
        return _on_gpu(query, key, value, cu_seq_lens_q, scale, sliding_window), None
    lengths = cu_seq_lens_q.diff().tolist()
    if not dropout and max(lengths) <= SHORT:
        line = (part[0].to(computed_in(part)) for part in (query, key, value))
        return ShortTexts.apply(*line, lengths, scale, sliding_window).transpose(0, 1)[None], None
    texts = zip(*(part[0].split(lengths, dim=1) for part in (query, key, value)), strict=True)
    parts = [_one_text(*text, scale, sliding_window, dropout) for text in texts]
    return torch.cat(parts, dim=1).transpose(0, 1)[None], None


class ShortTexts(torch.autograd.Function):
    """Causal attention of each text of a line by plain products: query [heads, tokens, width], key and value [key heads, ...].

    What autograd would do between the products, text by text and layer by layer, costs as much as they do.
    """

    @staticmethod
    def forward(
        context: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        lengths: list[int],
        scale: float,
        window: int | None,
    ) -> Tensor:
        found, chances, start, groups = torch.empty_like(query), [], 0, query.shape[0] // key.shape[0]
        with torch.autocast("cpu", enabled=False):
            for time in lengths:
                here = slice(start, start + time)
                bias = _remembered(time, window, query.dtype, query.device).repeat(groups, 1)
                together = _grouped(query[:, here], groups)
                scores = torch.baddbmm(bias, together, key[:, here].transpose(1, 2), alpha=scale)
                chances.append(scores.softmax(-1))
                found[:, here] = (chances[-1] @ value[:, here]).view(query.shape[0], time, -1)
                start += time
        context.save_for_backward(query, key, value, *chances)
        context.lengths, context.scale = lengths, scale
        return found

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *chances = context.saved_tensors
        of_query, of_key, of_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        start, groups = 0, query.shape[0] // key.shape[0]
        for time, weights in zip(context.lengths, chances, strict=True):
            here = slice(start, start + time)
            grown, together = _grouped(gradient[:, here], groups), _grouped(query[:, here], groups)
            of_value[:, here] = weights.transpose(1, 2) @ grown
            scores = torch.ops.aten._softmax_backward_data(
                grown @ value[:, here].transpose(1, 2), weights, -1, weights.dtype
            )
            of_query[:, here] = (scores @ key[:, here]).mul_(context.scale).view(query.shape[0], time, -1)
            of_key[:, here] = (scores.transpose(1, 2) @ together).mul_(context.scale)
            start += time
        return of_query, of_key, of_value, None, None, None


def _grouped(line: Tensor, groups: int) -> Tensor:
    """[heads, time, width] → [key heads, heads that share one × time, width]."""
    heads, time, width = line.shape
    return line.reshape(heads // groups, groups * time, width)


def _one_text(
    query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, dropout: float
) -> Tensor:
    """[heads, time, width], causal."""
    heads, time, width = query.shape
    groups = heads // key.shape[0]
    if time > SHORT:
        line = (query[None], key[None], value[None])
        mask = None if window is None else _unseen(time, window, query.dtype, query.device)
        return torch.nn.functional.scaled_dot_product_attention(
            *line,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=groups > 1,
        )[0]
    bias = _remembered(time, window, query.dtype, query.device)
    scores = torch.baddbmm(bias.repeat(groups, 1), _grouped(query, groups), key.transpose(1, 2), alpha=scale)
    weights = torch.nn.functional.dropout(scores.softmax(-1), dropout)
    return (weights @ value).view(heads, time, width)


def _unseen(time: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """-inf where a token may not look, else 0: [time, time]."""
    whole = torch.full((time, time), float("-inf"), dtype=dtype, device=device)
    return whole.triu(1) if window is None else whole.triu(1) + whole.tril(-window)


_remembered = lru_cache(maxsize=32)(_unseen)  # every layer asks for the same texts' again


def _on_gpu(
    query: Tensor, key: Tensor, value: Tensor, edges: Tensor, scale: float, window: int | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # exists for a GPU alone

    longest = int(edges.diff().max())
    seen = (-1 if window is None else window - 1, 0)
    apart = {"cu_seq_q": edges, "cu_seq_k": edges, "max_q": longest, "max_k": longest, "window_size": seen}
    lines = {
        name: part[0].transpose(0, 1).contiguous()
        for name, part in (("query", query), ("key", key), ("value", value))
    }
    return varlen_attn(**lines, **apart, scale=scale, enable_gqa=query.shape[1] != key.shape[1])[None]  # type: ignore


def no_mask(attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """The mask of a packed line, which needs none; other lines get that of scaled_dot_product_attention."""
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **kwargs)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, no_mask)


def pack(network: PreTrainedModel, otherwise: str = "--packing false") -> None:
    """Have a decoder attend to packed rows text by text.

    Args:
        otherwise: what to set where that can't be.

    Raises:
        InputError: a model whose attention can't be chosen.
    """
    try:
        network.set_attn_implementation(NAME)
    except (ValueError, NotImplementedError) as error:
        raise InputError(
            f"{type(network).__name__} can't read packed rows ({error}). Set {otherwise}"
        ) from error
