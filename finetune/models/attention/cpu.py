"""Attention for training on a CPU in bf16. Knows transformers' attention functions; knows no model, no rows
and no Trainer.

The fused kernel's backward pass is slow there: plain matrix products take a sixth of its time at 128 tokens
and a third at 512. They hold all scores until the backward pass, so that long lines, float32 and everything
that isn't trained stay with the kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from finetune.device import computed_in, device

NAME = "products"
OTHER_SCORES = (
    "position_bias",
    "softcap",
    "s_aux",
)  # what some families add to their scores: nothing here computes it
MOST_SCORES = 2**26  # of one layer: 128 MB in bf16


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention by matrix products where they are faster, else by transformers' own function.

    Args:
        query: [batch, heads, time, width]; key and value [batch, key heads, key time, width] may have fewer
            heads.
        attention_mask: [batch, 1, time, key time], true where a key is seen; None where all are, or all that
            came before.

    Returns:
        [batch, time, heads, width].
    """
    # where nothing says what is seen, the kernel hides what comes later by itself; products have no such rule
    unseen = attention_mask is None and (
        getattr(module, "is_causal", True) if is_causal is None else is_causal
    )
    strange = any(kwargs.get(name) is not None for name in OTHER_SCORES)
    if unseen or strange or not products_are_faster(query, key):
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            **kwargs,
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # rotary positions hand on float32 under autocast
    lines = (part.to(computed_in(part)) for part in (query, key, value))
    return products(*lines, attention_mask, scale=scale, dropout=dropout).transpose(1, 2), None


def products_are_faster(query: Tensor, key: Tensor) -> bool:
    """Whether plain products beat the fused kernel for these: [batch, heads, time, width]."""
    trained = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)
    plain = query.device.type == "cpu" and computed_in(query) == torch.bfloat16
    return trained and plain and query.shape[:3].numel() * key.shape[2] <= MOST_SCORES


def products(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scale: float, dropout: float = 0.0
) -> Tensor:
    """softmax(q kᵀ · scale) v (Vaswani et al. 2017, eq. 1), [batch, heads, time, width]; heads that
    share keys go together.
    """
    batch, heads, time, width = query.shape
    shared = key.shape[1]
    # on the queries, which are smaller than the scores; heads that share keys one below the other
    together = (query * scale).reshape(batch, shared, heads // shared * time, width)
    scores = (together @ key.transpose(2, 3)).view(batch, heads, time, -1)
    if mask is not None:
        # not -inf: a row of padding that sees nothing would give no numbers
        unseen = torch.finfo(scores.dtype).min
        scores = scores + (
            # some families hand on what is to be added already
            scores.new_zeros(mask.shape).masked_fill(~mask, unseen) if mask.dtype == torch.bool else mask
        )
    weights = torch.nn.functional.dropout(scores.softmax(-1), dropout)
    return (weights.view(batch, shared, heads // shared * time, -1) @ value).view(
        batch, heads, time, value.shape[-1]
    )


def mask(allow_is_causal_skip: bool = True, **kwargs: Any) -> Tensor | None:
    """scaled_dot_product_attention's mask, written out where it would be left to the kernel to hide
    what comes later.
    """
    # with gradients the products may be used, which need it written out
    return sdpa_mask(allow_is_causal_skip=allow_is_causal_skip and not torch.is_grad_enabled(), **kwargs)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, mask)


def choose_attention(network: PreTrainedModel) -> None:
    """Have a model that would take the fused kernel on a CPU take the faster way of each batch."""
    # a choice of the user's own (eager, flash) stays
    if device().type == "cpu" and network.config._attn_implementation == "sdpa":
        network.set_attn_implementation(NAME)
