"""Which rows a private step takes: each by its own chance (Poisson sampling). Knows numbers of rows; knows no
text and no model.

The accountant's bound holds for rows that are drawn by themselves, not for a shuffled epoch. A step's sample
depends on the key and the number of the step alone, so that every process draws the same one and takes its
share, and a continued run draws what the uninterrupted one would have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

Visit = tuple[int, int, bool]


@dataclass(frozen=True)
class Chance:
    """How steps are drawn.

    Attributes:
        rate: the chance of each unit in each step.
        key: what all chance follows from.
        processes: that share a step, and which one this is.
    """

    rate: float
    key: int
    processes: int = 1
    process: int = 0


def generator(key: int, step: int, purpose: int) -> np.random.Generator:
    """Chance of a step, for its sample (0) or its noise (1)."""
    # noise and sample must not follow from the same numbers
    return np.random.default_rng(np.random.SeedSequence((key, step, purpose)))


def drawn(units: int, rate: float, key: int, step: int) -> np.ndarray:
    """Numbers of the units that a step takes, each with the chance `rate`; there may be none."""
    # every process draws for all units, and takes its share below
    return np.flatnonzero(generator(key, step, 0).random(units) < rate)


class PoissonSteps(Sampler[list[Visit]]):
    """The units of each step, on this process: (unit, step, whether it counts).

    Shares are of one size, as some losses are told of all processes' rows: where a sample doesn't divide, a
    process goes through a unit that doesn't count.

    Args:
        lengths: of the units in tokens, so that units of like length stand together; [units].
        chance: how they are drawn.
        steps: of an epoch.
    """

    def __init__(self, lengths: Sequence[int], chance: Chance, steps: int) -> None:
        self.lengths, self.chance, self.steps, self.epoch = np.asarray(lengths), chance, steps, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[Visit]]:
        # numbered over all epochs: no step's chance comes twice
        for number in range(self.epoch * self.steps, (self.epoch + 1) * self.steps):
            yield self.share(number)

    def share(self, step: int) -> list[Visit]:
        """This process's part of a step's sample."""
        chance = self.chance
        chosen = drawn(len(self.lengths), chance.rate, chance.key, step)
        # round robin over sorted units: shares take like time, micro-batches little padding
        chosen = chosen[np.argsort(self.lengths[chosen], kind="stable")]
        mine = [(int(unit), step, True) for unit in chosen[chance.process :: chance.processes]]
        # ceiling less own: at most one
        missing = -(-len(chosen) // chance.processes) - len(mine)
        return mine + [(0, step, False)] * missing


class Units(TorchDataset):
    """Features by unit of privacy: all that were made of one row.

    Args:
        features: rows as they are trained on.
        owners: the row that each feature is of, [features].
        key: where a feature is told the step it is visited in, so that its noise is another each time, what
            that noise follows from besides; None where it is told nothing.
    """

    def __init__(self, features: Any, owners: Sequence[int], key: int | None = None) -> None:
        self.features, self.key = features, key
        places: dict[int, list[int]] = {}
        for place, owner in enumerate(owners):
            # in the order of rows, so that unit numbers are the same in a continued run
            places.setdefault(int(owner), []).append(place)
        self.places = list(places.values())

    def __len__(self) -> int:
        return len(self.places)

    @property
    def single(self) -> bool:
        """Whether every unit is one feature."""
        return all(len(places) == 1 for places in self.places)

    def lengths(self) -> list[int]:
        """Tokens of each unit; 0 where features don't say."""
        if "length" not in self.features.column_names:
            return [0] * len(self)
        known = self.features["length"][:]
        return [sum(known[place] for place in places) for places in self.places]

    def __getitem__(self, visit: Visit) -> tuple[list[dict[str, Any]], bool]:
        unit, step, counts = visit
        # a unit may be visited twice in an epoch, so that the step stands for its number
        told = {} if self.key is None else {"epoch": (self.key << 32) + step}
        return [self.features[place] | told for place in self.places[unit]], counts


def in_parts(collate: Callable, rows: int) -> Callable[[list], dict[str, Any]]:
    """Units of a step → micro-batches of at most so many of them, each collated, with how many count."""
    return _Parts(collate, rows)


@dataclass(frozen=True)
class _Parts:
    """A class, so that worker processes can be handed one."""

    collate: Callable
    rows: int

    def __call__(self, visited: list[tuple[list[dict[str, Any]], bool]]) -> dict[str, Any]:
        parts = []
        # never together: a part counts as a whole or not at all
        for counts in (True, False):
            units = [features for features, real in visited if real is counts]
            for start in range(0, len(units), self.rows):
                chosen = units[start : start + self.rows]
                parts.append(
                    {"batch": self.collate([one for unit in chosen for one in unit]), "units": len(chosen),
                     "counts": counts}
                )  # fmt: skip
        return {"parts": parts}
