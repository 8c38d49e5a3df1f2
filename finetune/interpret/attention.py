"""A model and one input → who attends to whom, by layer and head. Knows models; knows no files and no
pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from finetune.errors import InputError
from finetune.models.heads import core

# what transformers' outputs call the maps → what a page calls them
KINDS = {
    "encoder_attentions": "encoder",
    "decoder_attentions": "decoder",
    "cross_attentions": "cross",
    "attentions": "self",
}


def scaled_dot_product(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(Q Kᵀ / √d) V (Vaswani et al. 2017, eq. 1).

    Args:
        query: [..., queries, d]; key: [..., keys, d]; value: [..., keys, width].
        mask: [..., queries, keys], true where a query may look.

    Returns:
        The output [..., queries, width] and the weights [..., queries, keys], whose rows sum to 1.
    """
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if mask is not None:
        # before the softmax, so that the rest of a row still sums to 1
        scores = scores.masked_fill(~mask, -math.inf)
    weights = scores.softmax(-1)
    return weights @ value, weights


@torch.no_grad()
def attention_maps(network: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of every layer and head for a batch of one input.

    Returns:
        kind (self, encoder, decoder, cross) → [layers, heads, queries, keys], float32 on the CPU. Keys may be
        more than queries: prefix tuning puts virtual tokens before them. Layers without attention (a
        convolution, a state space) are left out.

    Raises:
        InputError: a model without attention, or whose layers don't hand their weights out.
    """
    model = core(network)
    before = model.config._attn_implementation
    # fused kernels never form the weights: only the plain product can hand them out
    model.set_attn_implementation("eager")
    try:
        outputs = network(**batch, output_attentions=True)
    except (TypeError, ValueError) as error:
        raise InputError(_without(model, str(error))) from error
    finally:
        model.set_attn_implementation(before)
    maps = {}
    for name, kind in KINDS.items():
        # the batch's only input; hybrids give None for layers without attention
        layers = [one[0] for one in outputs.get(name) or () if one is not None]
        if layers:
            maps[kind] = torch.stack(layers).float().cpu()
    if not maps:
        raise InputError(_without(model, ""))
    return maps


def _without(model: Any, reason: str) -> str:
    said = f" ({reason})" if reason else ""
    return (
        f"A model of the kind '{model.config.model_type}' hands out no attention weights{said}; "
        "`show gradients` tells what its words do, where gradients reach them"
    )


def rollout(maps: Tensor) -> Tensor:
    """How much of each input reaches each place of the last layer (Abnar and Zuidema 2020, section 3).

    Heads are averaged, the residual connection is half of each layer, and layers multiply.

    Args:
        maps: [layers, heads, time, time] of one self-attention; virtual tokens before the keys are cut off
            and the rows made to sum to 1 again.

    Returns:
        [time, time], rows sum to 1.
    """
    time = maps.shape[-2]
    # virtual tokens stand before the keys and have no row of their own
    heads = maps.mean(1)[..., -time:]
    heads = heads / heads.sum(-1, keepdim=True).clamp_min(1e-12)
    reached = torch.eye(time)
    for layer in heads:
        # later layers multiply from the left: rows are where one looks from
        reached = (0.5 * layer + 0.5 * torch.eye(time)) @ reached
    return reached


def head_entropy(maps: Tensor) -> Tensor:
    """Mean entropy of each head's rows in nats, [layers, heads]: 0 looks at one place, ln(keys) at all."""
    # 0 · log 0 counts as 0
    return -(maps * maps.clamp_min(1e-12).log()).sum(-1).mean(-1)
