"""Made-up tokens in front of a text (prefix tuning, prompt tuning, p-tuning): what a folder holds → what a
model is given.

A decoder has read them before the text comes: they are keys and values of every layer. An encoder is given
the embeddings of prompt and p-tuning. Knows PEFT's shapes and models; knows no other adapters and no
requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from finetune.adapters.weights import Unmixable
from finetune.errors import InputError

VIRTUAL_KINDS = ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING")


@dataclass(eq=False)
class VirtualTokens:
    """Tokens in front of every text of an adapter.

    Attributes:
        past: keys and values of each layer, [heads, length, width of a head] each; None where embeddings go
            in.
        embeddings: [length, width].
    """

    length: int
    past: list[tuple[Tensor, Tensor]] | None = None
    embeddings: Tensor | None = None

    def before(self, inputs: dict[str, Tensor], network: Any) -> dict[str, Any]:
        """A model's inputs [rows, time] with these tokens in front of every row."""
        rows = len(inputs["input_ids"])
        # Rows are padded on the right, so that these may stand in front of all.
        mask = {"attention_mask": F.pad(inputs["attention_mask"], (self.length, 0), value=1)}
        if self.past is not None:
            return inputs | mask | {"past_key_values": seeded([self] * rows)}
        assert self.embeddings is not None
        embedded = network.get_input_embeddings()(inputs["input_ids"])
        whole = {"inputs_embeds": torch.cat([self.embeddings.expand(rows, -1, -1), embedded], dim=1)}
        # Models of pairs know segments: made-up tokens belong to the first.
        types = {k: F.pad(v, (self.length, 0)) for k, v in inputs.items() if k == "token_type_ids"}
        return whole | mask | types


def make_virtual_tokens(
    kind: str, config: dict[str, Any], prompt: Tensor | None, network: Any
) -> VirtualTokens:
    """The tokens of a folder, tried on one token of text.

    Args:
        prompt: as PEFT saves it: embeddings [length, width], or for prefix tuning [length, 2 · layers · heads
            · width of a head].
        network: the base; no plan may stand on it.

    Raises:
        InputError: an encoder-decoder, or tokens of another base's shape.
    """
    if network.config.is_encoder_decoder:
        raise Unmixable(
            f"{kind} on an encoder-decoder can't be mixed with other adapters; use it alone, by PEFT"
        )
    if prompt is None:
        raise InputError(f"There are no tokens in this {kind} adapter; save it again by PEFT")
    said = config.get("num_virtual_tokens", len(prompt))
    if len(prompt) != said:
        raise InputError(f"Its options say {said} made-up tokens, and its weights have {len(prompt)}")
    if kind == "PREFIX_TUNING":
        layers, heads = config["num_layers"], config["num_attention_heads"]
        # PEFT's order: for each layer its keys, then its values.
        parts = prompt.view(len(prompt), 2 * layers, heads, -1).permute(1, 2, 0, 3)
        virtual = VirtualTokens(len(prompt), [(parts[2 * i], parts[2 * i + 1]) for i in range(layers)])
    else:
        virtual = VirtualTokens(len(prompt), _read_first(prompt, network), prompt)
    # One try at adding: a base of another width or depth is refused here and not in somebody's request.
    one = torch.zeros(1, 1, dtype=torch.long, device=network.device)
    network.base_model(**virtual.before({"input_ids": one, "attention_mask": one + 1}, network))
    return virtual


def _read_first(prompt: Tensor, network: Any) -> list[tuple[Tensor, Tensor]] | None:
    """What a decoder keeps of the tokens; None for an encoder."""
    # A base that gives no cache back is an encoder; its architecture's name wouldn't tell.
    cache = network.base_model(inputs_embeds=prompt[None], use_cache=True).get("past_key_values")
    return None if cache is None else [(layer.keys[0], layer.values[0]) for layer in cache.layers]


def seeded(virtuals: Sequence[VirtualTokens | None]) -> DynamicCache:
    """A cache that holds what stands before each row; shorter ones are filled on the left, where a mask must
    hide it."""
    cache, first = DynamicCache(), next(virtual for virtual in virtuals if virtual is not None)
    longest = max(virtual.length for virtual in virtuals if virtual is not None)
    assert first.past is not None
    for index, shapes in enumerate(first.past):
        both = []
        for which, like in enumerate(shapes):
            # A row without any has an empty beginning, filled up like the short ones.
            empty = like.new_zeros(like.shape[0], 0, like.shape[2])
            parts = [
                empty if virtual is None or virtual.past is None else virtual.past[index][which]
                for virtual in virtuals
            ]
            # Heads × time × width: time is the last but one, padded before.
            both.append(torch.stack([F.pad(part, (0, 0, longest - part.shape[1], 0)) for part in parts]))
        cache.update(both[0], both[1], index)
    return cache
