"""A model → how it tells places apart: sinusoidal, learnt, rotary and relative encodings as matrices of the
same shape. Knows models; knows no texts and no pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune.errors import InputError
from finetune.models.heads import core


@dataclass(frozen=True)
class PositionView:
    """What two places are to each other under one encoding.

    Attributes:
        matrix: [places, places]; what its numbers are, `measure` says.
        own: whether these are the model's own weights; the rest are drawn by their formula for comparison.
        table: [places, width], the encoding itself, where it is one vector a place.
    """

    name: str
    measure: str
    matrix: Tensor
    own: bool
    table: Tensor | None = None


def sinusoidal(places: int, width: int) -> Tensor:
    """sin and cos of place / 10000^(2i/width), interleaved, [places, width] (Vaswani et al. 2017, 3.5)."""
    rates = 10000.0 ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(places)[:, None] * rates
    # interleaved; an odd width loses the last cosine
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]


def rotated_products(rates: Tensor, places: int) -> Tensor:
    """Dot product, as a share of its largest, of one vector of equal parts rotated to place m with itself
    rotated to place n: the mean of cos((m - n) θ) (Su et al. 2021, section 3.4.3), [places, places].

    Args:
        rates: θ of each pair of components, in radians a place.
    """
    steps = torch.arange(places)
    # [places, places, 1], against the rates of all pairs
    distances = (steps[:, None] - steps[None]).unsqueeze(-1)
    return (distances * rates.float().cpu()).cos().mean(-1)


def alibi(heads: int, places: int) -> Tensor:
    """-slope · distance, averaged over heads whose slopes are 2^(-8h/heads) (Press et al. 2022, section 3),
    [places, places].
    """
    slopes = 2.0 ** (-8 * torch.arange(1, heads + 1) / heads)
    steps = torch.arange(places)
    return -slopes.mean() * (steps[:, None] - steps[None]).abs()


def learnt_table(network: Any) -> Tensor | None:
    """The vectors that a model adds to its inputs by their place, [places, width]; None where it has none."""
    model = core(network)
    for name, module in model.named_modules():
        # by the last part of the name, as models bury the table at different depths
        if isinstance(module, nn.Embedding) and _names_places(name):
            return module.weight.detach().float().cpu()
    for name, weight in model.named_parameters():
        if _names_places(name) and weight.dim() == 3 and weight.shape[0] == 1:  # ViT: [1, patches + 1, width]
            return weight[0].detach().float().cpu()
    return None


def _names_places(name: str) -> bool:
    last = name.split(".")[-1]
    return last in ("wpe", "embed_positions") or last.startswith("position_emb") or last == "pos_embed"


def rotary_rates(network: Any) -> Tensor | None:
    """Radians a place of each pair of components, [width of a head / 2]; None where a model doesn't
    rotate.
    """
    for name, buffer in core(network).named_buffers():
        # transformers' own name of it, in all families that rotate
        if name.endswith("inv_freq"):
            return buffer.detach().float().cpu()
    return None


@torch.no_grad()
def relative_bias(network: Any, places: int) -> Tensor | None:
    """What T5-like models add to the scores by distance, [heads, places, places]; None where there is
    none.
    """
    for module in core(network).modules():
        if isinstance(getattr(module, "relative_attention_bias", None), nn.Embedding):
            return module.compute_bias(places, places)[0].float().cpu()
    return None


def position_views(network: Any, places: int) -> list[PositionView]:
    """The four encodings side by side for the first `places` places, the model's own ones by its weights."""
    config = core(network).config.get_text_config()
    if "num_attention_heads" not in config.to_dict() and "num_attention_heads" not in config.attribute_map:
        raise InputError(
            f"A model of the kind '{config.model_type}' encodes no positions: it reads in order. `show "
            "gradients` tells how far back it looks"
        )
    width, heads = config.hidden_size, config.num_attention_heads
    table = learnt_table(network)
    views = [_of_table("sinusoidal", sinusoidal(places, width), own=False)]
    # of a model without one there is no formula to draw
    if table is not None:
        views.append(_of_table("learnt", table[:places], own=True))
    rates = rotary_rates(network)
    # drawn by the formula for a model that has none, at its own width
    made = rates if rates is not None else 10000.0 ** (-torch.arange(0, width // heads, 2) * heads / width)
    views.append(
        PositionView("rotary", "mean cos((m − n) θ)", rotated_products(made, places), rates is not None)
    )
    bias = relative_bias(network, places)
    # T5's own weights, else ALiBi by its formula
    if bias is not None:
        views.append(PositionView("relative (T5)", "mean bias of the heads", bias.mean(0), True))
    else:
        views.append(PositionView("relative (ALiBi)", "mean bias of the heads", alibi(heads, places), False))
    return views


def _of_table(name: str, table: Tensor, own: bool) -> PositionView:
    # length aside: vectors of later places may be longer
    unit = functional.normalize(table, dim=-1)
    return PositionView(name, "cosine of the two places' vectors", unit @ unit.T, own, table)
