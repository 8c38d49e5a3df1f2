"""Texts written token by token for many rows at once; rows join and leave between steps. Knows a causal model
and its cache.

A row's tokens do not depend on who else is in the batch: padding is masked, positions count a row's own
tokens, and each row draws from a generator of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from finetune.pool.mixing import Chain, Plan
from finetune.pool.virtual_tokens import seeded


@dataclass
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: the smallest set of tokens with this much probability is drawn from (Holtzman et al. 2020).
        top_k: as many of the likeliest tokens are drawn from; 0 for all.
        stop: the text ends before any of these.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(eq=False)
class Row:
    """One text being written.

    Attributes:
        ended: why it ended: "stop" or "length"; None while it is written.
        text: what was written, without the tokens that may still change it.
    """

    prompt: list[int]
    chain: Chain
    sampling: Sampling
    decode: Callable[[list[int]], str]
    ids: list[int] = field(default_factory=list)
    text: str = ""
    ended: str | None = None
    generator: torch.Generator | None = None

    def choose(self, logits: Tensor) -> int:
        """The next token for logits [vocabulary]."""
        how = self.sampling
        if how.temperature <= 0:
            return int(logits.argmax())
        self.generator = self.generator or torch.Generator().manual_seed(how.seed)
        values, order = (logits.float().cpu() / how.temperature).sort(descending=True)
        chances = values.softmax(-1)
        outside = chances.cumsum(-1) - chances >= how.top_p
        if how.top_k:
            outside[how.top_k :] = True
        outside[0] = False
        chances = chances.masked_fill(outside, 0.0)
        return int(order[torch.multinomial(chances, 1, generator=self.generator)])

    def take(self, token: int, ends: set[int]) -> str:
        """Add a token; gives back the text that is now certain and wasn't before."""
        if token in ends:
            self.ended = "stop"
        else:
            self.ids.append(token)
            self.ended = "length" if len(self.ids) >= self.sampling.max_new_tokens else None
        whole = self.decode(self.ids)
        cut = min(
            (place for place in (whole.find(s) for s in self.sampling.stop) if place >= 0), default=None
        )
        if cut is not None:
            whole, self.ended = whole[:cut], "stop"
        certain = whole if self.ended else whole[: _certain(whole, self.sampling.stop)]
        before, self.text = self.text, certain if certain.startswith(self.text) else self.text
        return self.text[len(before) :]


def _certain(text: str, stops: Sequence[str]) -> int:
    """How much of a text no later token can take back: not half a character, not what may begin a stop
    word."""
    end = len(text.rstrip("\ufffd"))
    for stop in stops:
        for size in range(min(len(stop) - 1, end), 0, -1):
            if text[:end].endswith(stop[:size]):
                end -= size
                break
    return end


class Writing:
    """A batch of texts in the making.

    Args:
        network: a causal model.
        run: (plan, function) → what the function gives, run on the model while the plan stands.
        ends: ids of the tokens that end a text.
    """

    def __init__(self, network: Any, run: Callable[[Plan, Callable[[], Any]], Any], ends: set[int]) -> None:
        self.network, self.run, self.ends = network, run, ends
        self.rows: list[Row] = []
        self._cache: DynamicCache | None = None
        self._mask = torch.zeros(0, 0, dtype=torch.long)
        self._plan: Plan | None = None
        self._last_only = (
            {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(network.forward).parameters else {}
        )

    def join(self, rows: Sequence[Row]) -> list[tuple[Row, str]]:
        """Read the prompts of new rows and write their first tokens."""
        longest = max(len(row.prompt) for row in rows)
        ids = torch.tensor([[0] * (longest - len(row.prompt)) + row.prompt for row in rows])
        mask = torch.tensor([[0] * (longest - len(row.prompt)) + [1] * len(row.prompt) for row in rows])
        virtuals = [row.chain[0].virtual if row.chain else None for row in rows]
        cache = seeded(virtuals) if any(virtuals) else DynamicCache()
        if any(virtuals):
            before = torch.arange(
                cache.get_seq_length(), 0, -1
            )  # distance of each place to where the texts begin
            lengths = torch.tensor([virtual.length if virtual else 0 for virtual in virtuals])
            mask = torch.cat([(before <= lengths[:, None]).long(), mask], dim=1)
        logits = self._forward(Plan([row.chain for row in rows]), ids, mask, cache)
        self._cache = cache if self._cache is None else _joined(self._cache, cache)
        width = max(mask.shape[1], self._mask.shape[1])
        self._mask = torch.cat([F.pad(m, (width - m.shape[1], 0)) for m in (self._mask, mask) if len(m)])
        self.rows += rows
        self._plan = None
        return self._take(list(rows), logits)

    def step(self) -> list[tuple[Row, str]]:
        """One more token for every row. Gives back each row with the text that became certain; ended rows
        leave the batch."""
        assert self._cache is not None
        self._plan = self._plan or Plan([row.chain for row in self.rows])
        ids = torch.tensor([[row.ids[-1]] for row in self.rows])
        self._mask = F.pad(self._mask, (0, 1), value=1)
        return self._take(list(self.rows), self._forward(self._plan, ids, self._mask, self._cache))

    def leave(self, rows: Sequence[Row]) -> None:
        """Rows that nobody waits for any more."""
        for row in rows:
            row.ended = row.ended or "stop"
        self._shrink()

    def _forward(self, plan: Plan, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        device = self.network.device
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        options = {"past_key_values": cache, "use_cache": True} | self._last_only
        return self.run(plan, lambda: self.network(**inputs, **options).logits[:, -1])

    def _take(self, rows: list[Row], logits: Tensor) -> list[tuple[Row, str]]:
        likeliest = logits.argmax(-1).tolist()
        pieces = []
        for row, best, line in zip(rows, likeliest, logits, strict=True):
            pieces.append(
                (row, row.take(best if row.sampling.temperature <= 0 else row.choose(line), self.ends))
            )
        self._shrink()
        return pieces

    def _shrink(self) -> None:
        keep = [index for index, row in enumerate(self.rows) if row.ended is None]
        if len(keep) == len(self.rows):
            return
        self.rows, self._plan = [self.rows[index] for index in keep], None
        if not keep:
            self._cache, self._mask = None, self._mask[:0, :0]
            return
        assert self._cache is not None
        self._mask = self._mask[keep]
        start = int(self._mask.argmax(1).min())  # padding that only the rows that left needed
        chosen = torch.tensor(keep, device=self.network.device)
        cache = DynamicCache()
        for index, layer in enumerate(self._cache.layers):
            cache.update(layer.keys[chosen, :, start:], layer.values[chosen, :, start:], index)
        self._cache, self._mask = cache, self._mask[:, start:]


def _joined(one: DynamicCache, other: DynamicCache) -> DynamicCache:
    """Two caches as one batch; the shorter is filled on the left, where the mask hides it."""
    width, cache = max(one.get_seq_length(), other.get_seq_length()), DynamicCache()
    for index, (a, b) in enumerate(zip(one.layers, other.layers, strict=True)):
        keys = torch.cat([F.pad(t, (0, 0, width - t.shape[2], 0)) for t in (a.keys, b.keys)])
        values = torch.cat([F.pad(t, (0, 0, width - t.shape[2], 0)) for t in (a.values, b.values)])
        cache.update(keys, values, index)
    return cache
