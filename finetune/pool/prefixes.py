"""Beginnings that prompts share (system prompts, examples), read once and kept as keys and values. Knows
tokens and tensors; knows no models.

Nothing is kept for prompts that stand alone: only where a second prompt begins as an earlier one did is the
common part worth its memory.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SHORTEST = 32  # tokens that are worth keeping
REMEMBERED = 64  # prompts that a new one is compared with

Key = tuple[weakref.ref, ...]  # a beginning lives no longer than its adapters


@dataclass(eq=False)
class Beginning:
    """Keys and values [heads, length, width] of each layer; `tokens` of the text, `length` with made-up
    ones."""

    tokens: int
    length: int
    past: list[tuple[Tensor, Tensor]]

    def size(self) -> int:
        return sum(t.numel() * t.element_size() for pair in self.past for t in pair)


class Prefixes:
    """Least recently used beginnings go first. Safe to ask from several threads.

    Args:
        limit: bytes of keys and values; 0 keeps none.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.hits = limit, 0
        self._turn = threading.Lock()
        self._kept: OrderedDict[tuple[Key, tuple[int, ...]], Beginning] = OrderedDict()
        # A ring: comparing a prompt with all that ever came would grow with the server's age.
        self._seen: deque[tuple[Key, torch.Tensor]] = deque(maxlen=REMEMBERED)

    def find(self, chain: Sequence[object], prompt: Sequence[int]) -> Beginning | None:
        """The longest kept beginning of a prompt, at least one token of which is left to read."""
        # Weakly, or a beginning would keep an adapter's tensors that has been removed.
        key = tuple(map(weakref.ref, chain))
        with self._turn:
            fitting = [
                tokens
                for known, tokens in self._kept
                if known == key and len(tokens) < len(prompt) and tuple(prompt[: len(tokens)]) == tokens
            ]
            if not fitting:
                return None
            best = max(fitting, key=len)
            self._kept.move_to_end((key, best))
            self.hits += 1
            return self._kept[key, best]

    def worth(self, chain: Sequence[object], prompt: Sequence[int]) -> int:
        """How many tokens of a prompt to keep: as many as an earlier one began with; 0 for none."""
        if not self.limit:
            return 0
        # As a tensor: prompts of thousands of tokens are compared in one step, not by a loop.
        key, mine = tuple(map(weakref.ref, chain)), torch.tensor(prompt)
        with self._turn:
            common = max((_shared(mine, other) for known, other in self._seen if known == key), default=0)
            self._seen.append((key, mine))
            starts = [t for k, t in self._kept if k == key and tuple(prompt[: len(t)]) == t]
        kept = max(map(len, starts), default=0)
        # A beginning a few tokens longer than what is kept would cost its memory again for nearly nothing.
        return common if common >= SHORTEST and common >= kept + SHORTEST // 2 else 0

    def keep(self, chain: Sequence[object], prompt: Sequence[int], beginning: Beginning) -> None:
        """Keep a beginning, and let go what was not used for longest."""
        key = tuple(map(weakref.ref, chain))
        with self._turn:
            self._kept[key, tuple(prompt[: beginning.tokens])] = beginning
            # Here and not by callback: a weak reference dies in whatever thread, with or without the lock.
            for dead in [k for k in self._kept if any(ref() is None for ref in k[0])]:
                del self._kept[dead]
            while self._kept and sum(one.size() for one in self._kept.values()) > self.limit:
                self._kept.popitem(last=False)


def _shared(one: Tensor, other: Tensor) -> int:
    """How many tokens two prompts have in common from the beginning; the first's last one isn't counted."""
    # The last token must be left to read.
    size = min(len(one) - 1, len(other))
    differs = (one[:size] != other[:size]).nonzero()
    return int(differs[0]) if len(differs) else size
