"""Logits and labels → summed losses and the number of items they are summed over. Knows no model and no
Trainer.

A mean over a batch can't be combined exactly: batches, accumulation steps and processes hold different
numbers of rows or tokens. Sums and counts can. Every loss here returns one sum a row; who wants a mean
divides a sum of sums by a sum of counts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
# Below the logarithm of every float32 but 0: a class that is banned (a logit of -inf) has no part in an
# entropy, and 0 times its logarithm would be no number.
NEVER = -1e4
BLOCK = 24  # a power of two: logits of a frozen layer that stand in memory together, 64 MB in float32


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    smoothing: float = 0.0,
    weights: Tensor | None = None,
    gamma: float = 0.0,
) -> Tensor:
    """Summed cross-entropy of each row, in float32; labels of -100 count for nothing.

    Args:
        logits: [batch, classes] or [batch, time, classes].
        labels: [batch] or [batch, time].
        smoothing: label smoothing (Szegedy et al. 2016, section 7).
        weights: one weight a class, [classes].
        gamma: focal loss: a label whose probability is p counts (1 - p)^gamma times (Lin et al. 2017,
            equation 5).

    Returns:
        [batch], in nats.
    """
    # in float32: a sum of many exponentials loses its small terms in 16 bits
    flat = F.cross_entropy(
        logits.float().reshape(-1, logits.shape[-1]),
        labels.reshape(-1),
        weight=weights,
        ignore_index=IGNORED,
        reduction="none",
        label_smoothing=smoothing,
    )
    if gamma:
        # the chance of the label itself, which weights and smoothing have no part in
        chances = logits.float().log_softmax(-1).reshape(-1, logits.shape[-1])
        plain = F.nll_loss(chances, labels.reshape(-1), ignore_index=IGNORED, reduction="none")
        flat = flat * (1 - (-plain).exp()) ** gamma
    return flat.reshape(labels.shape[0], -1).sum(dim=1)


def binary_cross_entropy(
    logits: Tensor, labels: Tensor, *, weights: Tensor | None = None, gamma: float = 0.0
) -> Tensor:
    """Summed binary cross-entropy of each row over its classes, for several labels a row; in float32.

    Args:
        logits: [batch, classes].
        labels: [batch, classes], 0.0 or 1.0.
        weights: how many times a class counts where it is present, [classes].
        gamma: focal loss, as in `cross_entropy`.

    Returns:
        [batch], in nats.
    """
    # classes of a row are added, not averaged: `items` counts the rows
    each = F.binary_cross_entropy_with_logits(
        logits.float(), labels.float(), pos_weight=weights, reduction="none"
    )
    if gamma:
        plain = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
        each = each * (1 - (-plain).exp()) ** gamma
    return each.sum(dim=1)


def squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Squared error of each row, in float32: logits [batch, 1], labels [batch] → [batch]."""
    return (logits.float().squeeze(-1) - labels.float()) ** 2


def packed_cross_entropy(logits: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Summed cross-entropy of each row where logits stand for labelled places alone.

    Args:
        logits: [labels that are not -100, classes], row by row.
        labels: [batch, time].

    Returns:
        [batch], in nats.
    """
    return placed_cross_entropy(token_costs(logits, labels[labels.ne(IGNORED)]), labels, smoothing=smoothing)


def placed_cross_entropy(costs: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """`packed_cross_entropy` from the `token_costs` of each labelled place, [labels that are not -100, 4]."""
    nats = costs[:, NATS]
    # a mean over all classes is infinite where one of them is banned, and no share of it is a number
    mixed = (1 - smoothing) * nats + smoothing * costs[:, MEAN_NATS] if smoothing else nats
    return _row_sums(mixed, labels)


# Columns of what `token_costs` says of a token.
NATS, MEAN_NATS, HIT, ENTROPY = range(4)


def token_costs(
    given: Tensor,
    labels: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
    entropies: bool = False,
) -> Tensor:
    """What the label at each place costs, in float32 whatever the logits are, a few lines at a time: no
    float32 table of a vocabulary is ever held.

    With a frozen output layer its states stand in for the logits, which then never stand in memory together,
    as they are made again going back; the gradient goes to the states alone.

    Args:
        given: logits [places, classes], or states [places, width] of the layer.
        labels: [places].
        weight, bias: the frozen layer, [classes, width] and [classes], in the type that its product is
            made in.
        temperature: what logits are divided by.
        entropies: whether the distributions' entropies are wanted; they cost another pass over the classes.

    Returns:
        [places, 4]: nats of the label; mean nats over all classes (for label smoothing); whether the label
        is the likeliest class, which is counted where no gradient is wanted, else 0; the entropy in nats,
        else 0.
    """
    return _TokenCosts.apply(given, labels, weight, bias, temperature, entropies)


class _TokenCosts(torch.autograd.Function):
    """With p = softmax(logits), H its entropy and V classes: d nats = p - onehot, d mean nats = p - 1/V,
    dH = -p (log p + H).
    """

    @staticmethod
    def forward(
        context: Any,
        given: Tensor,
        labels: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        temperature: float,
        entropies: bool,
    ) -> Tensor:
        costs = torch.zeros(len(labels), 4, dtype=torch.float32, device=given.device)
        for block in _blocks(given, weight):
            # a view: what is written into it stands in the whole
            logits, gold, rows = _logits(given[block], weight, bias), labels[block, None], costs[block]
            for part in _parts(logits):
                lines, own = _tempered(logits[part], temperature), gold[part]
                # One pass over the classes each: what a GPU pays for here is reading and writing them.
                spread = lines.log_softmax(-1, dtype=torch.float32)
                rows[part, NATS] = -spread.gather(1, own)[:, 0]
                # the mean of all, from that of the logits: their distance is the same for each class
                away = (lines.gather(1, own)[:, 0] - lines.mean(-1, dtype=torch.float32)).float()
                rows[part, MEAN_NATS] = rows[part, NATS] + away
                # a pass over the classes of its own, which training has no use for
                if not context.needs_input_grad[0]:
                    rows[part, HIT] = lines.argmax(-1).eq(own[:, 0]).float()
                if entropies:
                    rows[part, ENTROPY] = -(spread.exp() * spread.clamp_(min=NEVER)).sum(-1)
        context.save_for_backward(given, labels, weight, bias, costs[:, ENTROPY] if entropies else None)
        context.temperature = temperature
        return costs

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        given, labels, weight, bias, spreads = context.saved_tensors
        found = torch.empty_like(given)
        # a tempered logit moves by so much less than the logit itself
        gradient = gradient / context.temperature
        # logits are made again block by block, as they were never kept
        for block in _blocks(given, weight):
            logits, gold = _logits(given[block], weight, bias), labels[block, None]
            own, every = gradient[block, NATS, None], gradient[block, MEAN_NATS, None]
            # A block's own logits are needed once, so that their slopes may take their place.
            slopes = found[block] if weight is None else logits
            for part in _parts(logits):
                lines, scale = _tempered(logits[part], context.temperature), (own + every)[part]
                if spreads is None:
                    chances = lines.softmax(-1, dtype=torch.float32)
                else:
                    inside = lines.log_softmax(-1, dtype=torch.float32).clamp_(min=NEVER)
                    scale = scale - gradient[block, ENTROPY, None][part] * (
                        inside + spreads[block, None][part]
                    )
                    chances = inside.exp_()
                rest, of_gold = every[part] / -logits.shape[1], gold[part]
                # the label's own slope before anything is rounded to 16 bits
                factors = (one.gather(1, of_gold) for one in (chances, scale.expand_as(chances)))
                at_gold = torch.addcmul(rest, *factors) - own[part]
                torch.addcmul(rest, chances, scale, out=slopes[part])
                slopes[part].scatter_(1, of_gold, at_gold.to(slopes.dtype))
            # from the logits' slopes to the states': the layer is frozen, so that it wants none itself
            if weight is not None:
                with torch.autocast(given.device.type, enabled=False):
                    found[block] = (slopes @ weight).to(found.dtype)
        return found, None, None, None, None, None


def _logits(given: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is None:
        return given
    with torch.autocast(given.device.type, enabled=False):  # the types were chosen by who called
        return F.linear(given.to(weight.dtype), weight, bias)


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1 else logits.float() / temperature


def _blocks(given: Tensor, weight: Tensor | None) -> list[slice]:
    """Places whose logits stand in memory together: all where they are there anyway."""
    return [slice(0, len(given))] if weight is None else _slices(given, len(weight), BLOCK)


def _parts(logits: Tensor) -> list[slice]:
    """Lines that together stay in a core's cache, or on a GPU keep it busy."""
    return _slices(logits, logits.shape[1], 20)


def _slices(table: Tensor, width: int, power: int) -> list[slice]:
    # a GPU wants larger pieces than a core's cache holds; one line at least, however wide it is
    step = max(1, 2 ** (27 if table.is_cuda else power) // width)
    return [slice(start, start + step) for start in range(0, len(table), step)]


def items(labels: Tensor) -> Tensor:
    """Number of labels that count in each row: [batch] or [batch, time] → [batch]."""
    return labels.ne(IGNORED).reshape(labels.shape[0], -1).sum(dim=1)


def everything(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits as they are: what evaluation keeps of a head with few classes."""
    return logits


def same_labels(labels: Tensor) -> Tensor:
    """The labels as they are."""
    return labels


def hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Number of labels that are the likeliest class: [batch, time, classes], [batch, time] → [batch]; -100
    counts for nothing.
    """
    return logits.argmax(-1).eq(labels).sum(dim=1)


def time_first(logits: Tensor, labels: Tensor) -> Tensor:
    """[batch, 2, time] → [batch, time, 2]: what evaluation keeps of the two ends of an answer, so that time
    can be padded.
    """
    # evaluation pads its second dimension alone
    return logits.transpose(1, 2)


def packed_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """`hits` for logits [labels, classes] of labelled places alone: [batch]."""
    return _row_sums(logits.argmax(-1).eq(labels[labels.ne(IGNORED)]).long(), labels)


def placed_hits(costs: Tensor, labels: Tensor) -> Tensor:
    """`hits` from the `token_costs` of each labelled place: [batch]."""
    return _row_sums(costs[:, HIT].long(), labels)


def placed_nats_and_hits(costs: Tensor, labels: Tensor) -> Tensor:
    """`nats_and_hits` from the `token_costs` of each labelled place: [batch, 2]."""
    return torch.stack([placed_cross_entropy(costs, labels), placed_hits(costs, labels).float()], dim=1)


def labelled_places(labels: Tensor, count: int) -> Tensor:
    """Row and column of each of the `count` labels that aren't -100, row by row, [count, 2].

    With their number known nothing is asked of a GPU, which would stop it.
    """
    return labels.ne(IGNORED).nonzero_static(size=count)


def _row_sums(values: Tensor, labels: Tensor) -> Tensor:
    """One value a labelled place, row by row → their sums in each row of labels [batch, time]: [batch]."""
    rows = labelled_places(labels, len(values))[:, 0]
    return values.new_zeros(labels.shape[0]).index_add(0, rows, values)


def nats_and_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Nats and hits of each row: logits [labels that count, vocabulary], labels [batch, time] →
    [batch, 2].
    """
    return torch.stack([packed_cross_entropy(logits, labels), packed_hits(logits, labels).float()], dim=1)


def pair_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Loss of each pair: that of its two-way choice, and the mean over its masked tokens (Devlin et al. 2019,
    appendix A.2).

    Args:
        logits: [batch + masked tokens, vocabulary], the choices first (see `heads.pair_logits`).
        labels: [batch, 1 + time], the choices first.

    Returns:
        [batch], in nats.
    """
    rows, masks = len(labels), labels[:, 1:]
    choice = F.cross_entropy(logits[:rows].float(), labels[:, 0], reduction="none")
    return choice + packed_cross_entropy(logits[rows:], masks) / items(masks).clamp(min=1)


def pair_items(labels: Tensor) -> Tensor:
    """One for each pair, [batch]."""
    return torch.ones(len(labels), dtype=torch.long, device=labels.device)


def pair_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Nats and hits of the masked tokens, and whether the choice is right: [batch, 3]."""
    rows = len(labels)
    right = logits[:rows].argmax(-1).eq(labels[:, 0]).float()
    return torch.cat([nats_and_hits(logits[rows:], labels[:, 1:]), right[:, None]], dim=1)
