"""Prompts → sampled answers, and the log-probabilities of answers. Knows causal models; knows no reward and
no update.

Prompts are padded on the left, answers on the right, and positions are counted from each prompt's first real
token, so that padding changes no score. Chance is drawn at the edge: each answer has its own stream of
uniforms, made of (seed, step, row), so that neither the number of processes, nor the batch an answer is made
in, nor a resumed run changes what is sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from finetune.alignment.ppo import entropy
from finetune.errors import InputError, check_least
from finetune.models.frozen_head import token_log_probs
from finetune.models.heads import body, core
from finetune.models.lora_kernel import folded


@dataclass
class SamplingArguments:
    """How answers are sampled."""

    max_new_tokens: int = field(default=48, metadata={"help": "Longest answer in tokens, the EOS included."})
    temperature: float = field(
        default=1.0, metadata={"help": "Temperature; the policy is the tempered distribution."}
    )
    top_k: int = field(default=0, metadata={"help": "Sample among the k likeliest tokens only; 0 for all."})
    top_p: float = field(
        default=1.0, metadata={"help": "Sample among the likeliest tokens that hold this much probability."}
    )
    generation_batch_size: int = field(
        default=64, metadata={"help": "Answers made together on each process, of like prompt length."}
    )

    def __post_init__(self) -> None:
        check_least(self, 1, "max_new_tokens", "generation_batch_size")
        if self.temperature <= 0:
            raise InputError(
                f"--temperature is {self.temperature}; wanted above 0 (very low for greedy answers)"
            )
        if not 0 < self.top_p <= 1 or self.top_k < 0:
            raise InputError(
                f"--top_p is {self.top_p} and --top_k {self.top_k}; wanted 0 < top_p ≤ 1 and top_k ≥ 0"
            )


@dataclass(frozen=True)
class Answers:
    """Sampled answers, padded on the right: ids and mask [rows, max_new_tokens], ended [rows] (with
    an EOS of its own).
    """

    ids: Tensor
    mask: Tensor
    ended: Tensor


def pad_left(rows: Sequence[Sequence[int]], pad: int, width: int | None = None) -> tuple[Tensor, Tensor]:
    """Token lists → ids and mask, [rows, width], real tokens at the right end."""
    width = max(map(len, rows)) if width is None else width
    # What is padded is masked; the id only has to be one.
    ids, mask = torch.full((len(rows), width), pad), torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.as_tensor(row)
        mask[index, width - len(row) :] = 1
    return ids, mask


def positions(mask: Tensor) -> Tensor:
    """Position of each token counted from its row's first real one, [rows, width]; padding gets 0."""
    # Padding before the first token would count -1.
    return (mask.cumsum(1) - 1).clamp(min=0)


def draw_uniforms(seed: int, step: int, rows: Sequence[int], width: int) -> Tensor:
    """One uniform of [0, 1) for each token of each answer, [rows, width]: row i's depend on (seed,
    step, rows[i]) alone.
    """
    return torch.from_numpy(
        # A generator an answer: no other row, process or batch draws from it.
        np.stack([np.random.default_rng((seed, step, row)).random(width) for row in rows])
    )


def narrowed(logits: Tensor, sampling: SamplingArguments) -> Tensor:
    """Tempered logits [rows, vocabulary], -inf outside the k likeliest and outside the nucleus
    (Holtzman et al. 2020).
    """
    logits = logits.float() / sampling.temperature
    if sampling.top_k:
        # Fewer than k where the vocabulary is small. Equal to the least stay in, all of them.
        least = logits.topk(min(sampling.top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(
            -1
        )  # the first token to cross the line stays in
        # Back in the vocabulary's order: `pick` finds a token by its place.
        logits = torch.empty_like(logits).scatter_(
            1, order, ordered.masked_fill(before >= sampling.top_p, -torch.inf)
        )
    return logits


def pick(logits: Tensor, uniforms: Tensor) -> Tensor:
    """The token at which each row's cumulative probability passes its uniform, [rows]; logits [rows,
    vocabulary].
    """
    # Float64: a sum over 50,000 float32 chances is off by more than rare tokens have.
    cumulative = logits.double().softmax(-1).cumsum(-1)
    target = uniforms.to(cumulative)[:, None] * cumulative[:, -1:]  # rounding may leave the last sum off 1
    # `right`, so that a uniform of exactly 0 never takes a token without any chance at the front.
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def stop_tokens(network: Any, processor: Any) -> list[int]:
    """Ids that end an answer: the tokenizer's EOS, the model's own list, and the pad token, which
    nothing can follow.
    """
    # A model without a head for writing has no such settings.
    named = network.generation_config.eos_token_id if network.generation_config is not None else None
    listed = named if isinstance(named, list) else [named]
    return sorted({i for i in (*listed, processor.eos_token_id, processor.pad_token_id) if i is not None})


def longest_input(network: Any) -> int | None:
    """Positions that the model was made for, or None where its configuration doesn't say."""
    # Names of most families, and GPT-2's.
    return network.config.to_dict().get("max_position_embeddings") or network.config.to_dict().get(
        "n_positions"
    )


def check_room(network: Any, lengths: Sequence[int], width: int) -> None:
    """Refuse prompts without tokens, and those that leave an answer of `width` tokens no room in the model's
    context.

    Raises:
        InputError: there is one.
    """
    longest = longest_input(network)
    if min(lengths) == 0:
        raise InputError(
            f"Prompt {list(lengths).index(0)} has no token; wanted one or more. Set --text_column or "
            "--prompt_tokens"
        )
    if longest and max(lengths) + width > longest:
        raise InputError(
            f"A prompt of {max(lengths)} tokens and an answer of {width} don't fit the model's {longest} "
            "positions. "
            "Lower --max_prompt_length or --max_new_tokens"
        )


@torch.no_grad()
def sample_answers(
    network: Any,
    prompts: Sequence[Sequence[int]],
    uniforms: Tensor,
    sampling: SamplingArguments,
    stops: Sequence[int],
) -> Answers:
    """Answers to all prompts, in their order; those of like prompt length are made together.

    Args:
        network: a causal model, in evaluation mode.
        prompts: token ids of each prompt.
        uniforms: [prompts, max_new_tokens], see `draw_uniforms`.
        stops: ids that end an answer; the one sampled stays its last real token.

    Raises:
        InputError: a prompt without tokens, or one that leaves the answer no room in the model's context.
    """
    # Before anything is sampled, not when the long prompt has its turn.
    width, lengths = sampling.max_new_tokens, [len(prompt) for prompt in prompts]
    check_room(network, lengths, width)
    pad = 0  # any id will do: it is masked wherever it stands
    result = Answers(
        torch.full((len(prompts), width), pad),
        torch.zeros(len(prompts), width),
        torch.zeros(len(prompts)).bool(),
    )
    # Like lengths together: padding is computed in every layer. Results go back to their own rows.
    order = sorted(range(len(prompts)), key=lengths.__getitem__)
    # The adapter inside the weights, for all batches at once: a token is a call of every layer.
    with folded(network):
        for start in range(0, len(order), sampling.generation_batch_size):
            part = order[start : start + sampling.generation_batch_size]
            ids, mask = pad_left([prompts[i] for i in part], pad)
            answers, ended = _continue(network, ids, mask, uniforms[part], sampling=sampling, stops=stops)
            for row, answer, end in zip(part, answers, ended, strict=True):
                # The rest stays padding, so that answers of all batches have one width.
                result.ids[row, : len(answer)] = torch.tensor(answer)
                result.mask[row, : len(answer)] = 1
                result.ended[row] = end
    return result


def _continue(
    network: Any,
    ids: Tensor,
    mask: Tensor,
    uniforms: Tensor,
    *,
    sampling: SamplingArguments,
    stops: Sequence[int],
) -> tuple[list[list[int]], list[bool]]:
    """One batch: each prompt once, then a token at a time on its cache; rows that have ended leave
    the batch.
    """
    device = network.device
    # By the model's config, since some layers keep a window only.
    cache = DynamicCache(config=network.config)
    alive = list(range(len(ids)))
    # Several answers to a prompt: the prompt is read once.
    first, group = alike(ids, mask)
    ids, mask, own = ids[first].to(device), mask[first].to(device), torch.tensor(group, device=device)
    place, end = positions(mask), torch.tensor(stops, device=device)
    answers: list[list[int]] = [[] for _ in alive]
    ended = [False] * len(alive)
    for t in range(sampling.max_new_tokens):
        logits = network(
            input_ids=ids,
            attention_mask=mask,
            position_ids=place,
            past_key_values=cache,
            use_cache=True,
            # Of a prompt only the last place is wanted.
            logits_to_keep=1,
        ).logits[:, -1]
        if t == 0 and len(first) < len(alive):  # several answers to a prompt go on from one reading of it
            cache.batch_select_indices(own)
            logits, mask, place = logits[own], mask[own], place[own]
        # Uniforms stay with the answer, not with its line in the batch.
        chosen = pick(narrowed(logits, sampling), uniforms[alive, t])
        over = torch.isin(chosen, end).tolist()
        for row, token, stop in zip(alive, chosen.tolist(), over, strict=True):
            # The end is a token too: it was chosen, and is learnt.
            answers[row].append(token)
            ended[row] = stop
        # An answer that has ended costs nothing further.
        going = [i for i, stop in enumerate(over) if not stop]
        if not going:
            break
        if len(going) < len(alive):
            keep = torch.tensor(going, device=device)
            cache.batch_select_indices(keep)
            alive, chosen, mask, place = [alive[i] for i in going], chosen[keep], mask[keep], place[keep]
        ids, place = chosen[:, None], place[:, -1:] + 1
        # A new token is seen by all after it; padding at the left stays hidden.
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], 1)
    return answers, ended


def alike(ids: Tensor, mask: Tensor) -> tuple[list[int], list[int]]:
    """Rows that differ from all before them, and for each row its place among those; ids and mask
    [rows, width].
    """
    places: dict[tuple[int, ...], int] = {}
    first: list[int] = []
    group: list[int] = []
    for row, (tokens, real) in enumerate(zip(ids.tolist(), mask.tolist(), strict=True)):
        # With the count: a real token may have the padding's id.
        key = (*tokens, sum(real))
        if key not in places:
            places[key] = len(first)
            first.append(row)
        group.append(places[key])
    return first, group


def log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of each token under the logits before it: [..., vocabulary] and [...] → [...],
    float32.
    """
    # Float32: in bf16 a log-probability has two or three digits, and ratios are made of differences.
    logits = logits.float()
    return logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(-1)


def answer_log_probs(
    network: Any,
    prompts: Tensor,
    prompt_mask: Tensor,
    answers: Tensor,
    mask: Tensor,
    *,
    temperature: float = 1.0,
    spread: bool = True,
    head: nn.Linear | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of each answer token and the entropy it was drawn with, both [rows, time], 0 on
    padding; the states that they come from, [rows, time, width].

    Args:
        prompts, prompt_mask: [rows, width], padded on the left.
        answers, mask: [rows, time], padded on the right.
        spread: whether entropies are wanted; else they are 0.
        head: the output layer where logits are its product alone (`frozen_head.plain_head`),
            which saves memory and time; None asks the model for its logits.
    """
    # Padding is at both ends, and positions count real tokens only.
    whole, time = torch.cat([prompt_mask, mask.long()], 1), answers.shape[1]
    read = {
        "input_ids": torch.cat([prompts, answers], 1),
        "attention_mask": whole,
        "position_ids": positions(whole),
        "use_cache": False,
    }
    if head is not None:
        # States from the prompt's last token to the answer's last but one, each of which predicts the next.
        states = body(core(network))(**read).last_hidden_state[:, -time - 1 : -1]
        log_probs, entropies = token_log_probs(head, states, answers, temperature, spread)
        return log_probs * mask, entropies * mask, states
    # only positions that predict an answer token go through the model's head
    out = network(**read, logits_to_keep=time + 1, output_hidden_states=True)
    # Models without `logits_to_keep` give all: the slice is right for both.
    logits = out.logits[:, -time - 1 : -1].float() / temperature
    # Tempered, as they were drawn.
    entropies = entropy(logits) * mask if spread else torch.zeros_like(mask)
    return log_probabilities(logits, answers) * mask, entropies, out.hidden_states[-1][:, -time - 1 : -1]
