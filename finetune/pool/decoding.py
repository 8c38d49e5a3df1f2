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
from transformers import DynamicCache

from finetune.pool.kv_cache import KeyValues, padded
from finetune.pool.plan import Chain, Plan
from finetune.pool.prefixes import Beginning, Prefixes
from finetune.pool.sampling import Noted, Sampling, adjusted, draw, note
from finetune.pool.stacks import Stacks
from finetune.pool.virtual_tokens import seeded

LOGITS = 2**26  # numbers at most in the logits of whole prompts (256 MB): such rows are read a few at a time
Run = Callable[[Plan, Callable[[], Any]], Any]


@dataclass(eq=False)
class Row:
    """One text being written.

    Attributes:
        ended: why it ended: "stop" or "length"; None while it is written.
        text: what was written, without the tokens that may still change it.
        noted: with `logprobs`, what was noted of the prompt (with `echo`) and of each new token.
    """

    prompt: list[int]
    chain: Chain
    sampling: Sampling
    decode: Callable[[list[int]], str]
    ids: list[int] = field(default_factory=list)
    prompt_text: str = ""
    text: str = ""
    ended: str | None = None
    noted: list[Noted] = field(default_factory=list)
    _generator: torch.Generator | None = None
    _grammar: Any = None

    def choose(self, logits: Tensor) -> int:
        """The next token for logits [vocabulary]."""
        how = self.sampling
        logits = adjusted(logits, how, self.prompt, self.ids)
        # After penalties: a bias must not bring back what the grammar forbids.
        if how.grammar is not None:
            self._grammar = self._grammar or how.grammar()
            logits = self._grammar.allowed(logits)
        if how.temperature <= 0:
            return int(logits.argmax())
        # On the CPU, so that a seed gives the same text on every device.
        self._generator = self._generator or torch.Generator().manual_seed(how.seed)
        return draw(logits, how, self._generator)

    def take(self, token: int, ends: set[int]) -> str:
        """Add a token; gives back the text that is now certain and wasn't before."""
        if token in ends:
            self.ended = "stop"
        else:
            self.ids.append(token)
            self.ended = "length" if len(self.ids) >= self.sampling.max_new_tokens else None
            # Before the stop words below, which may end the text earlier.
            if self._grammar is not None and self._grammar.take(token):
                self.ended = "stop"
        # All tokens anew: a character may lie in several, and many tokenizers write a blank only between two.
        whole = self.decode(self.ids)
        stops = self.sampling.stop
        cut = min((place for place in (whole.find(s) for s in stops) if place >= 0), default=None)
        if cut is not None:
            whole, self.ended = whole[:cut], "stop"
        certain = whole if self.ended else whole[: _certain(whole, stops)]
        # Never taken back, though a later token may change earlier text: it has been sent already.
        before, self.text = self.text, certain if certain.startswith(self.text) else self.text
        return self.text[len(before) :]


def _certain(text: str, stops: Sequence[str]) -> int:
    """How much of a text no later token can take back: not half a character, nor what may begin a stop
    word."""
    # The mark of half a character: the bytes of an emoji come in several tokens.
    end = len(text.rstrip("\ufffd"))
    for stop in stops:
        # The longest beginning of the stop word first; a shorter one is part of it.
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
        prefixes: beginnings that were read before; None reads every prompt whole.
    """

    def __init__(self, network: Any, run: Run, ends: set[int], prefixes: Prefixes | None = None) -> None:
        self.network, self.run, self.ends = network, run, ends
        self.rows: list[Row] = []
        self._prefixes = prefixes or Prefixes(0)
        self._cache = KeyValues()
        self._plan: Plan | None = None
        self._stacks = Stacks()
        # Some families compute all places' logits: on a long prompt the largest tensor of all.
        last = "logits_to_keep" in inspect.signature(network.forward).parameters
        self._last_only = {"logits_to_keep": 1} if last else {}

    def join(self, rows: Sequence[Row]) -> list[tuple[Row, str]]:
        """Read the prompts of new rows and write their first tokens."""
        pieces = []
        for part in self._parts(rows):
            pieces += self._read(part)
        return pieces

    def step(self) -> list[tuple[Row, str]]:
        """One more token for every row. Gives back each row with the text that became certain; ended rows
        leave the batch."""
        # Kept from step to step; when rows come or go, the next one takes over what its adapters' weights
        # stand in.
        self._plan = self._plan or Plan([row.chain for row in self.rows], self._stacks)
        self._cache.reserve()
        ids = torch.tensor([[row.ids[-1]] for row in self.rows])
        inputs = (ids, self._cache.mask(1), self._cache.lengths()[:, None])
        logits = self._forward(self._plan, *inputs, self._cache, further=self._last_only)[:, -1]
        self._cache.advance()
        return self._take(list(self.rows), logits)

    def leave(self, rows: Sequence[Row]) -> None:
        """Rows that nobody waits for any more."""
        for row in rows:
            row.ended = row.ended or "stop"
        self._shrink()

    def _parts(self, rows: Sequence[Row]) -> list[list[Row]]:
        """Rows to read together: all at once, but for those whose prompts' logits are wanted."""
        # Of most prompts only the last place's logits are made, so that all can be read in one call.
        parts = [part for part in ([row for row in rows if not row.sampling.echo],) if part]
        vocabulary, part = self.network.config.get_text_config().vocab_size, list[Row]()
        # Sorted by length, so that padding is small and the newest row is the part's longest.
        for row in sorted((row for row in rows if row.sampling.echo), key=lambda row: len(row.prompt)):
            if part and (len(part) + 1) * len(row.prompt) * vocabulary > LOGITS:
                parts.append(part)
                part = []
            part.append(row)
        return [*parts, part] if part else parts

    def _read(self, rows: list[Row]) -> list[tuple[Row, str]]:
        # `_parts` never puts rows with and without echo together.
        echo = rows[0].sampling.echo
        unique: dict[Any, int] = {}  # equal prompts (several answers to one) are read once
        which = [unique.setdefault((row.chain, tuple(row.prompt)), len(unique)) for row in rows]
        own = [rows[which.index(place)] for place in range(len(unique))]
        before = [self._before(row, echo) for row in own]
        lefts = [past.tokens if isinstance(past, Beginning) else 0 for past in before]
        ids, mask = padded([row.prompt[left:] for row, left in zip(own, lefts, strict=True)])
        cache = seeded(before) if any(before) else DynamicCache()
        # Kept beginnings have different lengths; they stand at the right, against the texts.
        if any(before):
            distance = torch.arange(cache.get_seq_length(), 0, -1)  # of each place to where the texts begin
            lengths = torch.tensor([past.length if past else 0 for past in before])
            mask = torch.cat([(distance <= lengths[:, None]).long(), mask], dim=1)
        # Padding before a row's first token would count from -1. Cut, since what is in the cache has its own.
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        # Newcomers to an empty batch are the batch of its first step.
        stacks = None if self.rows else self._stacks
        plan, options = Plan([row.chain for row in own], stacks), {} if echo else self._last_only
        # A prompt whose own tokens are to be noted needs the logits of all its places.
        logits = self._forward(plan, ids, mask, positions, cache, further=options)
        self._keep(own, cache, mask, lefts)
        for row, place in zip(rows, which, strict=True) if echo else ():
            _note_prompt(row, logits[place])
        return self._first(rows, which, logits[:, -1], cache, mask)

    def _first(
        self, rows: list[Row], which: list[int], logits: Tensor, cache: DynamicCache, mask: Tensor
    ) -> list[tuple[Row, str]]:
        """Rows that have been read join those that are being written."""
        done = [row for row in rows if row.sampling.max_new_tokens == 0]
        for row in done:
            row.ended = "length"
        going = [(row, place) for row, place in zip(rows, which, strict=True) if row.ended is None]
        pieces = [(row, "") for row in done]
        if going:
            self._cache.place(cache, mask, [place for _, place in going])
            self.rows += [row for row, _ in going]
            self._plan = None
            pieces += self._take([row for row, _ in going], logits[[place for _, place in going]])
        return pieces

    def _before(self, row: Row, whole: bool) -> Any:
        """What stands before the part of a prompt that is still to be read."""
        # A prompt with echo is read whole: what was kept are keys and values, from which no logits come.
        known = None if whole else self._prefixes.find(row.chain, row.prompt)
        return known or (row.chain[0].virtual if row.chain else None)

    def _keep(self, rows: list[Row], cache: DynamicCache, mask: Tensor, lefts: list[int]) -> None:
        for index, row in enumerate(rows):
            tokens = self._prefixes.worth(row.chain, row.prompt)
            if tokens <= lefts[index]:
                continue
            places = mask[index].nonzero()[:, 0]
            # All that stands, less the prompt, is made-up tokens; they are kept with the text, before it.
            length = len(places) - len(row.prompt) + tokens
            chosen = places[:length].to(cache.layers[0].keys.device)
            past = [
                # A copy: a view would hold the whole batch's keys as long as the beginning is kept.
                (layer.keys[index].index_select(1, chosen), layer.values[index].index_select(1, chosen))
                for layer in cache.layers
            ]
            self._prefixes.keep(row.chain, row.prompt, Beginning(tokens, length, past))

    def _forward(
        self, plan: Plan, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any, *, further: dict[str, Any]
    ) -> Tensor:
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        inputs = {name: tensor.to(self.network.device) for name, tensor in inputs.items()}
        options = {"past_key_values": cache, "use_cache": True} | further
        return self.run(plan, lambda: self.network(**inputs, **options).logits)

    def _take(self, rows: list[Row], logits: Tensor) -> list[tuple[Row, str]]:
        pieces = taken(rows, logits, self.ends)
        self._shrink()
        return pieces

    def _shrink(self) -> None:
        gone = [index for index, row in enumerate(self.rows) if row.ended is not None]
        if gone:
            self.rows, self._plan = [self.rows[index] for index in self._cache.take_out(gone)], None


def taken(rows: Sequence[Row], logits: Tensor, ends: set[int]) -> list[tuple[Row, str]]:
    """The next token of each row for logits [rows, vocabulary], taken; with the text that became certain."""
    # One argmax over the batch and one transfer; asking row by row would wait for the device each time.
    likeliest, pieces = logits.argmax(-1).tolist(), []
    for row, best, line in zip(rows, likeliest, logits, strict=True):
        token = best if row.sampling.plain else row.choose(line)
        if row.sampling.logprobs is not None and token not in ends:
            row.noted += note([token], line[None], row.sampling.logprobs)
        pieces.append((row, row.take(token, ends)))
    return pieces


def _note_prompt(row: Row, logits: Tensor) -> None:
    """What the model said of a prompt's own tokens, for logits [time, vocabulary] of which the last ones are
    its."""
    most = row.sampling.logprobs or 0
    # The logits at each place are of the token after it: one earlier, and the last is of the first new token.
    own = logits[-len(row.prompt) : -1] if len(row.prompt) > 1 else logits[:0]
    row.noted = [Noted(row.prompt[0], None, []), *(note(row.prompt[1:], own, most) if len(own) else [])]
