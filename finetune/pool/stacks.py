"""Low-rank changes of many adapters, put side by side so that a few products serve all rows. Knows tensors;
knows no model, no files and no texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Places:
    """Which row of the batch stands where in a product over adapters, each with as many places as the
    fullest.

    Attributes:
        rows: [adapters * places] the row that is read at each place; spare ones read some row again.
        kept: the places that aren't spare; None where none is.
        targets: the rows that the kept places are added to.
    """

    rows: Tensor
    kept: Tensor | None
    targets: Tensor


def make_places(rows: Sequence[Sequence[int]], device: torch.device | None = None) -> Places:
    """The places, on a device, of adapters that change these rows of the batch each (a row twice: changed
    twice)."""
    width = max(map(len, rows))
    filled = torch.tensor(
        [[*own, *own[:1] * (width - len(own))] for own in rows], device=device
    ).flatten()  # fmt: skip
    if all(len(own) == width for own in rows):
        return Places(filled, None, filled)
    kept = torch.tensor([width * i + j for i, own in enumerate(rows) for j in range(len(own))], device=device)
    return Places(filled, kept, filled[kept])


def low_rank(inputs: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """Changes of a linear layer's output for inputs [..., in], or of an embedding's for ids; down [ranks, in]
    and up [out, ranks]."""
    inner = F.linear(inputs, down) if inputs.is_floating_point() else F.embedding(inputs, down.T)
    return F.linear(inner, up)


@dataclass
class Side:
    """Changes of one layer that every row sees: down [ranks, in], up [out, ranks]."""

    down: Tensor
    up: Tensor

    def added(self, output: Tensor, inputs: Tensor) -> Tensor:
        """See `Stack.added`."""
        return output + low_rank(inputs, self.down, self.up)


@dataclass
class Stack:
    """Changes of one layer by several adapters of one rank.

    Attributes:
        down: [adapters, rank, in].
        up: [adapters, rank, out], LoRA's scaling already in it.
    """

    down: Tensor
    up: Tensor
    places: Places

    def added(self, output: Tensor, inputs: Tensor) -> Tensor:
        """A layer's output [rows, ..., out] and each row's change, for inputs [rows, ..., in] or, of an
        embedding, ids [rows, time]."""
        count, own = len(self.down), inputs.index_select(0, self.places.rows.to(inputs.device))
        if inputs.is_floating_point():
            # Each adapter's weights are read once, whatever rows it has: at one token a row that reading is
            # what a step waits for, and a product of all rows with all adapters would compute much more.
            inner = torch.bmm(own.reshape(count, -1, own.shape[-1]), self.down.transpose(1, 2))
        else:
            which = torch.arange(count, device=inputs.device)[:, None]
            inner = self.down.transpose(1, 2)[which, own.reshape(count, -1)]
        change = torch.bmm(inner, self.up).view(len(own), *output.shape[1:])
        if self.places.kept is not None:
            change = change.index_select(0, self.places.kept.to(change.device))
        return output.index_add(0, self.places.targets.to(output.device), change)


Pair = tuple[Tensor, Tensor]  # down [rank, in], up [out, rank]


class Slots:
    """Room for adapters' weights on one layer. Who stays from batch to batch is not copied again, so that a
    row which comes or goes costs one adapter's weights and not all."""

    def __init__(self) -> None:
        self.held: list[Any] = []
        self.down = self.up = torch.empty(0)

    def hold(self, wanted: dict[Any, Pair]) -> tuple[Tensor, Tensor]:
        """Weights of these adapters and no others, in the order of `held`: down [adapters, rank, in], up
        [adapters, rank, out]. What was handed out before is overwritten."""
        free = [slot for slot, one in enumerate(self.held) if one not in wanted]
        here = set(self.held)
        self._make_room(len(wanted), *next(iter(wanted.values())))
        for one, (down, up) in wanted.items():
            if one not in here:
                # Newcomers into the gaps first: then mostly nobody has to move.
                slot = free.pop(0) if free else len(self.held)
                self.held[slot : slot + 1] = [one]
                self.down[slot], self.up[slot] = down, up.T
        # From behind, so that the last one, which is moved into a gap, is never one that goes too.
        for slot in reversed(free):
            last = self.held.pop()
            if slot < len(self.held):
                self.held[slot] = last
                self.down[slot], self.up[slot] = self.down[len(self.held)], self.up[len(self.held)]
        return self.down[: len(wanted)], self.up[: len(wanted)]

    def _make_room(self, count: int, down: Tensor, up: Tensor) -> None:
        room, filled, before = len(self.down), len(self.held), (self.down, self.up)
        if count <= room:
            return
        # By half where it grows, since adapters come one by one.
        room = max(count, room * 3 // 2)
        self.down, self.up = down.new_empty(room, *down.shape), up.new_empty(room, *up.T.shape)
        if filled:
            self.down[:filled], self.up[:filled] = before[0][:filled], before[1][:filled]


class Stacks:
    """Slots of one batch whose rows come and go, by layer."""

    def __init__(self) -> None:
        self._slots: dict[str, dict[tuple[int, int], Slots]] = {}

    def of(
        self, name: str, pairs: dict[Any, Pair], rows: dict[Any, list[int]]
    ) -> Iterator[tuple[Tensor, Tensor, tuple[Any, ...]]]:
        """Weights of these adapters on a layer, a few tensors: down [adapters, rank, in], up [adapters, rank,
        out], and whose they are in which order."""
        groups: dict[tuple[int, int], dict[Any, Pair]] = {}
        for one, pair in pairs.items():
            # Of one rank, since they share a tensor; and about equally many rows (less than twice as many),
            # so that more places are filled than spare.
            groups.setdefault((len(pair[0]), len(rows[one]).bit_length()), {})[one] = pair
        # Slots that nobody needs any more go: they hold weights.
        known = self._slots.get(name, {})
        self._slots[name] = {key: known.get(key) or Slots() for key in groups}
        for key, wanted in groups.items():
            slots = self._slots[name][key]
            yield *slots.hold(wanted), tuple(slots.held)
