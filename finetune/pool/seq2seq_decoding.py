"""Texts written by an encoder-decoder for many rows at once: `Writing` for models that read first. Knows such
a model and its cache.

Rows that join together stay together: each such group has read its sources and writes from its own beginning,
    so that a row's
tokens do not depend on who joined before or after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from finetune.pool.decoding import Row, taken
from finetune.pool.plan import Plan


@dataclass(eq=False)
class Group:
    """Rows that joined at one time.

    Attributes:
        read: what the encoder made of the sources [rows, time, width]; `mask` [rows, time] hides padding.
    """

    rows: list[Row]
    read: Tensor
    mask: Tensor
    plan: Plan
    cache: EncoderDecoderCache

    def keep(self, places: list[int]) -> None:
        """Go on with some rows alone."""
        chosen = torch.tensor(places, device=self.read.device)
        self.rows = [self.rows[place] for place in places]
        self.read, self.mask = self.read[chosen], self.mask[chosen]
        # Both caches: the decoder's own, and what it keeps of the sources.
        self.cache.batch_select_indices(chosen)
        self.plan = Plan([row.chain for row in self.rows])


class Rewriting:
    """Texts in the making.

    Args:
        network: an encoder-decoder with its head.
        run: (plan, function) → what the function gives, run on the model while the plan stands.
        ends: ids of the tokens that end a text.
    """

    def __init__(self, network: Any, run: Callable[[Plan, Callable[[], Any]], Any], ends: set[int]) -> None:
        self.network, self.run, self.ends = network, run, ends
        self.groups: list[Group] = []

    @property
    def rows(self) -> list[Row]:
        """All rows that are being written."""
        return [row for group in self.groups for row in group.rows]

    def join(self, rows: Sequence[Row]) -> list[tuple[Row, str]]:
        """Read the sources of new rows and write their first tokens."""
        # Nothing is to be written: no source need be read.
        done = [row for row in rows if row.sampling.max_new_tokens == 0]
        for row in done:
            row.ended = "length"
        rows = [row for row in rows if row.ended is None]
        return [(row, "") for row in done] + (self._begin(rows) if rows else [])

    def _begin(self, rows: list[Row]) -> list[tuple[Row, str]]:
        longest = max(len(row.prompt) for row in rows)
        ids = torch.tensor(
            [row.prompt + [0] * (longest - len(row.prompt)) for row in rows], device=self.network.device
        )
        mask = torch.tensor(
            [[1] * len(row.prompt) + [0] * (longest - len(row.prompt)) for row in rows],
            device=self.network.device,
        )
        plan = Plan([row.chain for row in rows])
        read = self.run(
            plan, lambda: self.network.get_encoder()(input_ids=ids, attention_mask=mask)["last_hidden_state"]
        )
        self.groups.append(Group(rows, read, mask, plan, EncoderDecoderCache(DynamicCache(), DynamicCache())))
        return self._go(self.groups[-1])

    def step(self) -> list[tuple[Row, str]]:
        """One more token for every row. Gives back each row with the text that became certain; ended rows
        leave."""
        return [piece for group in list(self.groups) for piece in self._go(group)]

    def leave(self, rows: Sequence[Row]) -> None:
        """Rows that nobody waits for any more."""
        for row in rows:
            row.ended = row.ended or "stop"
        self._shrink()

    def _go(self, group: Group) -> list[tuple[Row, str]]:
        settings = self.network.generation_config
        start, first = settings.decoder_start_token_id, group.cache.get_seq_length() == 0
        if start is None:
            start = self.network.config.decoder_start_token_id
        # the forced first token is written by nobody, and stands in no row's text
        ids = torch.tensor(
            [[row.ids[-1] if row.ids else start] for row in group.rows], device=self.network.device
        )
        # mBART's language token: the decoder must have read it, though nobody chose it.
        if first and settings.forced_bos_token_id is not None:
            ids = torch.cat([ids, torch.full_like(ids, settings.forced_bos_token_id)], dim=1)
        options = {
            "encoder_outputs": (group.read,),
            "attention_mask": group.mask,
            "past_key_values": group.cache,
            "use_cache": True,
        }
        logits = self.run(group.plan, lambda: self.network(decoder_input_ids=ids, **options).logits[:, -1])
        pieces = taken(list(group.rows), logits, self.ends)
        self._shrink()
        return pieces

    def _shrink(self) -> None:
        for group in self.groups:
            places = [place for place, row in enumerate(group.rows) if row.ended is None]
            # Selecting copies all caches: only where some go and some stay.
            if 0 < len(places) < len(group.rows):
                group.keep(places)
            elif not places:
                group.rows = []
        self.groups = [group for group in self.groups if group.rows]
