"""How the next token is chosen. Knows logits and the tokens before them; knows no models and no batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass
class Sampling:
    """How a text is written.

    Attributes:
        max_new_tokens: 0 writes nothing, where only the prompt's log-probabilities are wanted.
        temperature: 0 takes the likeliest token.
        top_p: the smallest set of tokens with this much probability is drawn from (Holtzman et al. 2020).
        top_k: as many of the likeliest tokens are drawn from; 0 for all.
        min_p: tokens are drawn whose probability is this share of the likeliest's or more (Nguyen et al.
            2024).
        frequency_penalty, presence_penalty: taken off a logit for each time, and once, that its token was
            written, as OpenAI defines them.
        repetition_penalty: logits of all tokens so far, the prompt's too, are divided (negative ones
            multiplied) by it (Keskar et al. 2019).
        logit_bias: added to the logits of tokens, by id.
        stop: the text ends before any of these.
        logprobs: how many of the likeliest tokens are noted beside each token; None notes nothing.
        echo: note the prompt's tokens as well.
        grammar: makes what a text must obey; see finetune.pool.grammar.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    echo: bool = False
    grammar: Callable[[], Any] | None = None

    @property
    def plain(self) -> bool:
        """Whether the likeliest token is all that is asked for."""
        # `top_k` and the like change nothing where the likeliest is taken, and are not asked after.
        untouched = self.repetition_penalty == 1.0 and not self.logit_bias and self.grammar is None
        return self.temperature <= 0 and untouched and not (self.frequency_penalty or self.presence_penalty)


class Noted(NamedTuple):
    """A token with its log-probability, and the likeliest tokens in its place with theirs.

    The model's own, before temperature, penalties and a grammar; None for a text's first token.
    """

    token: int
    logprob: float | None
    top: list[tuple[int, float]]


def note(tokens: Sequence[int], logits: Tensor, most: int) -> list[Noted]:
    """Tokens, and logits [tokens, vocabulary] that stood before each."""
    # Float32: over 50,000 tokens bf16's three digits would tie many of the likeliest.
    chances = logits.float().log_softmax(-1)
    own = chances.gather(1, torch.tensor(tokens, device=chances.device)[:, None])[:, 0].tolist()
    top = chances.topk(min(most, chances.shape[-1])) if most else None
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True) if top else [([], [])] * len(tokens)
    return [
        Noted(token, value, list(zip(*pair, strict=True)))
        for token, value, pair in zip(tokens, own, pairs, strict=True)
    ]


def adjusted(logits: Tensor, how: Sampling, prompt: Sequence[int], written: Sequence[int]) -> Tensor:
    """Logits [vocabulary] after penalties and biases, float32 on the CPU."""
    # A copy: the row of logits belongs to the batch, which notes the model's own afterwards.
    logits = logits.float().cpu().clone()
    if how.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*prompt, *written}))
        had = logits[seen]
        # Dividing a negative logit would make its token likelier.
        logits[seen] = torch.where(had > 0, had / how.repetition_penalty, had * how.repetition_penalty)
    if written and (how.frequency_penalty or how.presence_penalty):
        counts = Counter(written)
        times = torch.tensor(list(counts.values()), dtype=torch.float32)
        logits[list(counts)] -= how.frequency_penalty * times + how.presence_penalty
    if how.logit_bias:
        logits[list(how.logit_bias)] += torch.tensor(list(how.logit_bias.values()), dtype=torch.float32)
    return logits


def draw(logits: Tensor, how: Sampling, generator: torch.Generator) -> int:
    """A token by its chance, for logits [vocabulary] after `adjusted`."""
    # Temperature first: nucleus and `min_p` are shares of the distribution that is drawn from.
    values, order = (logits / how.temperature).sort(descending=True)
    chances = values.softmax(-1)
    # Less its own chance: the token that crosses the border is still inside, by Holtzman's definition.
    outside = (chances.cumsum(-1) - chances >= how.top_p) | (chances < how.min_p * chances[0])
    if how.top_k:
        outside[how.top_k :] = True
    outside[0] = False
    return int(order[torch.multinomial(chances.masked_fill(outside, 0.0), 1, generator=generator)])
