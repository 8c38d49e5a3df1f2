"""Several data sets in one, by weight. Knows rows alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets

from finetune.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """The rows of one data set among several, and how many times each is seen in an epoch."""

    name: str
    rows: Dataset
    weight: float = 1.0


def weighted(entries: Sequence[str]) -> dict[str, float]:
    """`["a", "b=0.3"]` → {"a": 1.0, "b": 0.3}; a name with a sign of equality that lies here is a name.

    Raises:
        InputError: a weight that is not above 0, or a name twice.
    """
    weights: dict[str, float] = {}
    for entry in entries:
        # from the right: a path may hold signs of equality
        name, sign, given = entry.rpartition("=")
        if not sign or Path(entry).expanduser().exists():
            name, given = entry, "1"
        try:
            weight = float(given)
        except ValueError:
            weight = 0.0
        if not 0 < weight < float("inf") or not name or name in weights:
            raise InputError(
                f"--dataset_name {entry} can't be read; wanted each data set once, as NAME or NAME=WEIGHT "
                "with a weight above 0"
            )
        weights[name] = weight
    return weights


def mixed(parts: Sequence[Part], seed: int) -> Dataset:
    """Rows of several data sets in one: each as many times as its weight says, a part of it as a seeded
    sample.

    Raises:
        InputError: columns of different kinds, which a layout would have made alike.
    """
    drawn = []
    for place, part in enumerate(parts):
        # 2.3: all rows twice, and a sample of three tenths
        whole, rest = divmod(part.weight, 1)
        # a generator for each part: another data set in front changes no other's sample
        order = np.random.default_rng((seed, place)).permutation(len(part.rows))
        few = order[: round(rest * len(order))]
        # in order; the trainer shuffles
        wanted = [*np.tile(np.arange(len(order)), int(whole)), *few]
        if not wanted:
            raise InputError(
                f"--dataset_name {part.name}={part.weight:g} takes none of {len(order)} rows; set a higher "
                "weight"
            )
        drawn.append(part.rows.select(wanted))
        logger.warning("%s: %d of %d rows (weight %g)", part.name, len(wanted), len(order), part.weight)
    return concatenate_datasets(drawn)
