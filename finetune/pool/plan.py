"""Which adapters each row of a batch goes through. Knows tensors; knows no model, files, texts or threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from finetune.adapters.weights import Adapter
from finetune.pool.stacks import Places, Side, Stack, Stacks, make_places
from finetune.pool.virtual_tokens import VirtualTokens


@dataclass(eq=False)
class Ready:
    """An adapter laid out for use: its tensors in the base's type, under the names that the base gives its
    layers.

    Attributes:
        heads: task's heads by name; the last of a chain that has one counts.
        parts: modules in place of the base's own, by name.
        virtual: made-up tokens that stand before each text.
        ratios: DoRA's length of each row over that of the changed weight [out].
        trained_for: its row of TASKS, where its folder says.
        reader: what brings its inputs into the model's form, where they are no texts.
        alone: a network of its own (see finetune.pool.alone), where it can't be mixed.
        below: adapters that it was trained on top of, lowest first; they go through the batch with it.
    """

    adapter: Adapter
    ratios: dict[str, Tensor] = field(default_factory=dict)
    heads: dict[str, nn.Module] = field(default_factory=dict)
    parts: dict[str, nn.Module] = field(default_factory=dict)
    virtual: VirtualTokens | None = None
    labels: list[str] | None = None
    trained_for: str | None = None
    max_length: int | None = None
    alone: Any = None
    reader: Any = None
    below: Chain = ()

    def size(self) -> int:
        """Bytes that it holds beside the base."""
        own = self.adapter.size() + (self.alone.bytes if self.alone else 0)
        return own + sum(ready.size() for ready in self.below)

    def beyond_sums(self, name: str) -> bool:
        """Whether it does more to a layer than add a low-rank change to its output."""
        # DoRA's changes are among these: they rescale the whole output of their rows, so that they can't be
        # one more summand.
        own = self.adapter
        return name in self.parts or any(
            name in those for those in (own.scales, own.shifts, own.layers, self.ratios)
        )

    @property
    def task(self) -> str | None:
        return self.adapter.config.get("task_type")


Chain = tuple[Ready, ...]


class Plan:
    """Which chain of adapters each row of a batch goes through; rows without any stay the base's.

    A plan holds its adapters: one that is taken out of a pool meanwhile still answers the batch it was asked
    for.

    Args:
        rows: the chain of each.
        stacks: where weights of the batch's plan before this one stand, which this one takes over; that one
            is of no use any more.
    """

    def __init__(self, rows: Sequence[Chain], stacks: Stacks | None = None) -> None:
        self.rows = list(rows)
        places: dict[Chain, list[int]] = {}
        for index, chain in enumerate(rows):
            places.setdefault(chain, []).append(index)
        # Rows of one chain together: what can't be stacked runs once a chain and not once a row. A single
        # chain takes all there is, so that a layer which folds the batch needs no row told from another.
        self.groups: list[tuple[Chain, Any]] = [
            (chain, torch.tensor(indices) if len(places) > 1 else slice(None))
            for chain, indices in places.items()
        ]
        # A row stands here twice where its chain holds an adapter twice: then its change counts twice.
        self._rows_of: dict[Ready, list[int]] = {}
        for index, chain in enumerate(rows):
            for ready in chain:
                self._rows_of.setdefault(ready, []).append(index)
        self._stacks = stacks or Stacks()
        self._sums: dict[str, list[Side] | list[Stack]] = {}
        self._beyond: dict[str, list[tuple[Chain, Any]]] = {}
        self._places: dict[tuple[tuple[Ready, ...], torch.device], Places] = {}

    def sums(self, name: str) -> list[Side] | list[Stack]:
        """Low-rank changes that are added to a layer's output."""
        if name not in self._sums:
            self._sums[name] = self._side(name) if len(self.groups) == 1 else self._stacked(name)
        return self._sums[name]

    def beyond_sums(self, name: str) -> list[tuple[Chain, Any]]:
        """Chains that do anything else to a layer, and their rows."""
        # Asked once a layer and not once a step: of plain LoRA there is nothing, and looking for it among
        # 32 adapters would take as long as some of the products.
        if name not in self._beyond:
            self._beyond[name] = [
                (chain, rows)
                for chain, rows in self.groups
                if any(ready.beyond_sums(name) for ready in chain)
            ]
        return self._beyond[name]

    def _side(self, name: str) -> list[Side]:
        """Of a single chain, however many rows a layer makes of the batch."""
        pairs = [_pair(ready, name) for ready in self.rows[0] if _has(ready, name)]
        if len(pairs) == 1:
            # Its own tensors, without a copy.
            return [Side(*pairs[0])]
        return [
            Side(torch.cat([down for down, _ in pairs]), torch.cat([up for _, up in pairs], dim=1))
        ] if pairs else []  # fmt: skip

    def _stacked(self, name: str) -> list[Stack]:
        pairs = {ready: _pair(ready, name) for ready in self._rows_of if _has(ready, name)}
        return [
            Stack(down, up, self._places_of(order, down.device))
            for down, up, order in self._stacks.of(name, pairs, self._rows_of)
        ]

    def _places_of(self, order: tuple[Ready, ...], device: torch.device) -> Places:
        # Most layers have the same adapters in the same order. Where the weights are: from the CPU each
        # layer of each step would copy them again, and wait for the card.
        key = (order, device)
        if key not in self._places:
            self._places[key] = make_places([self._rows_of[ready] for ready in order], device)
        return self._places[key]


def _has(ready: Ready, name: str) -> bool:
    return name in ready.adapter.factors and name not in ready.ratios


def _pair(ready: Ready, name: str) -> tuple[Tensor, Tensor]:
    factors = ready.adapter.factors[name]
    return factors.down, factors.up
