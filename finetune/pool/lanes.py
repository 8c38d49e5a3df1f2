"""Batches of texts side by side: one of all rows that mix, and one for each adapter that runs by itself.
Knows how rows are written; knows no folders and no texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from finetune.pool.decoding import Row, Writing
from finetune.pool.plan import Plan
from finetune.pool.prefixes import Prefixes
from finetune.pool.seq2seq_decoding import Rewriting


class Lanes:
    """Texts in the making, whatever their adapters.

    Args:
        network: the base, a causal model or an encoder-decoder with its head.
        run: (plan, function) → what the function gives, run on the model while the plan stands.
        ends: ids of the tokens that end a text.
        prefixes: beginnings that were read before.
    """

    def __init__(
        self,
        network: Any,
        run: Callable[[Plan | None, Callable[[], Any]], Any],
        ends: set[int],
        prefixes: Prefixes,
    ) -> None:
        self.network, self.run, self.ends, self.prefixes = network, run, ends, prefixes
        self._lanes: dict[Any, Writing | Rewriting] = {}

    @property
    def rows(self) -> list[Row]:
        """All rows that are being written."""
        return [row for lane in self._lanes.values() for row in lane.rows]

    def join(self, rows: Sequence[Row]) -> list[tuple[Row, str]]:
        """Read the prompts of new rows and write their first tokens."""
        groups: dict[Any, list[Row]] = {}
        for row in rows:
            # An adapter that runs alone stands alone in its chain, so that the first says it all.
            groups.setdefault(row.chain[0].alone if row.chain else None, []).append(row)
        pieces = []
        for alone, own in groups.items():
            if alone not in self._lanes:
                self._lanes[alone] = self._made(alone)
            pieces += self._lanes[alone].join(own)
        return self._tidied(pieces)

    def step(self) -> list[tuple[Row, str]]:
        """One more token for every row. Gives back each row with the text that became certain; ended rows
        leave."""
        return self._tidied([piece for lane in list(self._lanes.values()) for piece in lane.step()])

    def leave(self, rows: Sequence[Row]) -> None:
        """Rows that nobody waits for any more."""
        for lane in self._lanes.values():
            lane.leave([row for row in rows if row in lane.rows])
        self._tidied([])

    def _made(self, alone: Any) -> Writing | Rewriting:
        network = self.network if alone is None else alone.network
        # a network of its own has its adapter inside: there is nothing for a plan to say
        run = self.run if alone is None else lambda _, function: self.run(None, function)
        if network.config.is_encoder_decoder:
            return Rewriting(network, run, self.ends)
        return Writing(network, run, self.ends, self.prefixes)

    def _tidied(self, pieces: list[tuple[Row, str]]) -> list[tuple[Row, str]]:
        """Empty lanes go, so that an adapter that was taken out isn't held."""
        self._lanes = {alone: lane for alone, lane in self._lanes.items() if lane.rows}
        return pieces
