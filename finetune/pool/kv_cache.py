"""Keys and values of texts in the making: rows come and go without moving the others. Knows tensors and
transformers' cache; knows no adapters and no texts.

All rows end at the same place, so that one step writes one column. A row that joins is put into a free line,
a row that leaves has the last line moved into its own: neither touches anyone else's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin

ROOM = 64  # columns and lines are made ready in these steps at least


class Lines(CacheLayerMixin):
    """One layer: [lines, heads, columns, width], written in place."""

    is_sliding = False

    def __init__(self, owner: KeyValues) -> None:
        super().__init__()
        self.owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: rows are put in by `KeyValues.place`."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Write the states [rows, heads, new, width] behind what there is; gives back all that counts."""
        owner, new = self.owner, key_states.shape[2]
        columns = slice(owner.end, owner.end + new)
        found = []
        for whole, states in ((self.keys, key_states), (self.values, value_states)):
            assert whole is not None
            # In place: concatenating, as transformers' own cache does, copies all keys of all rows for each
            # token.
            whole[: owner.rows, :, columns] = states
            # A view that begins where the longest row does, so that what ended rows have left in front costs
            # nothing.
            found.append(whole[: owner.rows, :, owner.start : owner.end + new])
        return tuple(found)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        # An offset of nothing: the columns in front are cut from the view, so that the mask begins there too.
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.owner.end - self.owner.start

    def get_max_length(self) -> int:
        # No end: it grows. Transformers reads -1 so.
        return -1


class KeyValues(Cache):
    """What a causal model keeps of each row.

    Attributes:
        firsts: where each row begins; it ends at `end`, as all do.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.firsts: list[int] = []
        self.end = 0

    @property
    def rows(self) -> int:
        return len(self.firsts)

    @property
    def start(self) -> int:
        """The first column that any row needs."""
        return min(self.firsts, default=self.end)

    def mask(self, more: int) -> Tensor:
        """Which columns each row sees [rows, columns], with so many new ones at the end."""
        places = torch.arange(self.start, self.end + more)
        return (places >= torch.tensor(self.firsts)[:, None]).long()

    def lengths(self) -> Tensor:
        """How many columns each row has [rows]."""
        return self.end - torch.tensor(self.firsts)

    def place(self, cache: DynamicCache, mask: Tensor, which: Sequence[int]) -> None:
        """Put rows behind those that are here.

        Args:
            mask: [rows of the cache, columns], 1 where a row's own tokens are, wherever they stand.
            which: the row of the cache that each new row starts from; one may start several.
        """
        # Places and not a slice: a prompt read with others may have padding before or between its own tokens.
        chosen = [mask[row].nonzero()[:, 0] for row in range(len(mask))]
        longest = max(len(chosen[row]) for row in which)
        # Nobody is there whom a new end could move.
        if not self.rows:
            self.end = longest
        # A newcomer longer than all that are here moves the common end to the right; shorter ones end there
        # as they are.
        self._make_room(cache, self.rows + len(which), max(0, longest - self.end))
        for layer, fresh in zip(self.layers, cache.layers, strict=True):
            for line, row in enumerate(which, self.rows):
                places, own = chosen[row].to(fresh.keys.device), slice(self.end - len(chosen[row]), self.end)
                layer.keys[line, :, own] = fresh.keys[row].index_select(1, places)
                layer.values[line, :, own] = fresh.values[row].index_select(1, places)
        self.firsts += [self.end - len(chosen[row]) for row in which]

    def take_out(self, gone: Sequence[int]) -> list[int]:
        """Rows leave; gives back which earlier row now stands in each line."""
        order = list(range(self.rows))
        # From behind, so that the line that is moved into a gap is never one that leaves too.
        for line in sorted(gone, reverse=True):
            last = order.pop()
            if line < len(order):
                for layer in self.layers:
                    # The last line fills the gap: one row is copied, where closing up would move all behind
                    # it.
                    layer.keys[line, :, self.start : self.end] = layer.keys[
                        len(order), :, self.start : self.end
                    ]
                    layer.values[line, :, self.start : self.end] = (
                        layer.values[len(order), :, self.start : self.end]
                    )  # fmt: skip
                order[line] = last
                self.firsts[line] = self.firsts[-1]
            self.firsts.pop()
        return order

    def advance(self) -> None:
        """A step has written one column in every layer."""
        self.end += 1

    def reserve(self) -> None:
        """See that the next step's column is there."""
        if self.layers and self.end >= self.layers[0].keys.shape[2]:
            # Shifted to the front first: ended rows leave empty columns there, which the new ones may take.
            self._move(-self.start, self.rows, self.end - self.start + ROOM)

    def _make_room(self, like: DynamicCache, lines: int, more: int) -> None:
        if not self.layers:
            for fresh in like.layers:
                layer = Lines(self)
                shape = (0, fresh.keys.shape[1], 0)
                layer.keys = fresh.keys.new_zeros(*shape, fresh.keys.shape[3])
                layer.values = fresh.values.new_zeros(*shape, fresh.values.shape[3])
                layer.is_initialized = True
                self.layers.append(layer)
        room = self.layers[0].keys.shape
        if lines > room[0] or more or self.end > room[2]:
            self._move(more, lines, self.end + more)

    def _move(self, shift: int, lines: int, columns: int) -> None:
        """New tensors with room for more, what there is shifted; they grow by half, so that this is rare."""
        start, end = self.start, self.end
        room = self.layers[0].keys.shape
        lines = lines if lines <= room[0] else max(lines, room[0] * 3 // 2)
        # Rounded up, since allocators and kernels reuse a shape that comes again.
        columns = -(-max(columns * 5 // 4, columns + 1) // ROOM) * ROOM
        for layer in self.layers:
            for name in ("keys", "values"):
                old = getattr(layer, name)
                fresh = old.new_zeros(max(lines, room[0]), old.shape[1], columns, old.shape[3])
                fresh[: self.rows, :, start + shift : end + shift] = old[: self.rows, :, start:end]
                setattr(layer, name, fresh)
        self.firsts = [first + shift for first in self.firsts]
        self.end += shift


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Tokens filled on the left, and the mask of what counts, both [rows, longest]."""
    longest = max(map(len, rows))
    # Left, so that all prompts end at one place and the last logits are every row's own.
    ids = torch.stack([F.pad(torch.tensor(row, dtype=torch.long), (longest - len(row), 0)) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask
