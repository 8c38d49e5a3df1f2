"""States → log-probabilities, without the logits of a whole batch ever standing in memory. Knows tensors and
heads; no rollout.

A language model's logits are the largest thing in a step of alignment: 16 answers of 64 tokens over 50,000
words are 200 MB, and softmax, gradient and entropy make several of them. Here they are made for some tokens
at a time, and made again going back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from finetune.device import computed_in
from finetune.models.heads import body

ENTRIES = 2**24  # logits that stand at a time: 64 MB in float32


class TokenLogProbs(torch.autograd.Function):
    """Log-probabilities of given tokens under a frozen head, and entropies; the gradient goes to the states
    alone.

    With p = softmax(logits): d log p[token] = onehot - p, and dH = -p (log p + H).
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        temperature: float,
        spread: bool,
    ) -> tuple[Tensor, Tensor]:
        found = [torch.empty(len(tokens), dtype=torch.float32, device=states.device) for _ in range(3)]
        for part in tiles(len(tokens), len(weight)):
            logits = logits_of(states[part], weight, bias, temperature)
            total = logits.logsumexp(-1)
            found[0][part] = logits.gather(1, tokens[part, None])[:, 0] - total
            found[1][part] = total
            # H = log Σ exp(logits) - Σ p logits
            found[2][part] = total - (logits * (logits - total[:, None]).exp_()).sum(-1) if spread else 0.0
        ctx.save_for_backward(states, weight, bias, tokens, found[1], found[2])
        ctx.temperature, ctx.spread = temperature, spread
        return found[0], found[2]

    @staticmethod
    def backward(ctx: Any, to_log_probs: Tensor, to_entropies: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        states, weight, bias, tokens, totals, entropies = ctx.saved_tensors
        gradient = torch.empty_like(states)
        for part in tiles(len(tokens), len(weight)):
            logits = logits_of(states[part], weight, bias, ctx.temperature).sub_(totals[part, None])
            if ctx.spread:
                scale = -(
                    to_log_probs[part, None] + to_entropies[part, None] * (logits + entropies[part, None])
                )
                slope = logits.exp_().mul_(scale)
            else:
                slope = logits.exp_().mul_(-to_log_probs[part, None])
            slope.scatter_add_(1, tokens[part, None], to_log_probs[part, None])
            gradient[part] = (slope.to(weight.dtype) @ weight).to(states.dtype) / ctx.temperature
        return gradient, None, None, None, None, None


def tiles(rows: int, width: int) -> Iterator[slice]:
    """Slices of `rows` that hold at most ENTRIES numbers of `width` a row."""
    step = max(1, ENTRIES // width)
    return (slice(start, start + step) for start in range(0, rows, step))


def logits_of(states: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """Tempered logits in float32, [rows, vocabulary]."""
    with torch.autocast(states.device.type, enabled=False):  # the types were chosen by who called
        logits = nn.functional.linear(states.to(weight.dtype), weight, bias).float()
    return logits.div_(temperature) if temperature != 1 else logits


def token_log_probs(
    head: nn.Linear, states: Tensor, tokens: Tensor, temperature: float = 1.0, spread: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token after each state, and the distribution's entropy where `spread` (else 0),
    both [rows, time].

    Args:
        head: frozen; under bf16 autocast its products are made in bf16.
        states: [rows, time, width].
        tokens: [rows, time].
    """
    dtype = computed_in(head.weight)
    weight, bias = head.weight.detach().to(dtype), None if head.bias is None else head.bias.detach().to(dtype)
    flat = states.reshape(-1, states.shape[-1])
    found = TokenLogProbs.apply(flat, weight, bias, tokens.reshape(-1), temperature, spread)
    return found[0].view(tokens.shape), found[1].view(tokens.shape)


@torch.no_grad()
def plain_head(network: Any) -> nn.Linear | None:
    """A causal model's output layer, where it is frozen and its logits are that layer's product with the
    body's states and nothing else.

    Families that scale or cap their logits afterwards are told by what they do, on two tokens, not by their
    names.

    Args:
        network: the transformers model itself, in evaluation mode.
    """
    head = network.get_output_embeddings()
    if type(head) is not nn.Linear or head.weight.requires_grad:
        return None
    ids = torch.tensor([[1, 2]], device=network.device)
    states = body(network)(input_ids=ids, use_cache=False).last_hidden_state
    same = torch.allclose(
        head(states.to(head.weight.dtype)),
        network(input_ids=ids, use_cache=False).logits,
        atol=1e-5,
        rtol=1e-3,
    )
    return head if same else None


def cast_frozen(network: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
    """Frozen linear layers in the type that autocast would cast them to at every use: the same products, half
    the memory.

    Embeddings and norms stay as they are; an output layer that shares the embeddings' weight gets a copy of
    its own.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear) and not module.weight.requires_grad:
            module.weight = nn.Parameter(module.weight.detach().to(dtype), requires_grad=False)
            if module.bias is not None and not module.bias.requires_grad:
                module.bias = nn.Parameter(module.bias.detach().to(dtype), requires_grad=False)
