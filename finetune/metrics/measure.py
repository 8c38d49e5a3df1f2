"""Rows → what is summed over them, and the figure of the sums: what is resampled and compared. Knows arrays;
knows no models.

A figure that follows from sums over rows is resampled by one matrix product: `drawn` [samples, rows] says how
often each row is in each bootstrap sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from finetune.metrics import bootstrap

Array = np.ndarray


@dataclass(frozen=True)
class Measure:
    """One figure of some rows' answers.

    Attributes:
        counts: what is summed, [rows, sums].
        figure: sums [samples, sums] → [samples].
        is_mean: the figure is the mean of the first column.
    """

    counts: Array
    figure: Callable[[Array], Array]
    is_mean: bool = False

    @cached_property
    def value(self) -> float:
        """Over all rows, once each."""
        return float(self.figure(self.counts.sum(axis=0, keepdims=True))[0])

    def values(self, drawn: Array) -> Array:
        """Of bootstrap samples, drawn [samples, rows] → [samples]."""
        return self.figure(drawn @ self.counts)

    def interval(self, drawn: Array, level: float = 0.95) -> tuple[float, float]:
        """Percentile interval (Efron & Tibshirani 1993, chapter 13).

        Where all rows are right, or all wrong, see `bootstrap.alike_interval`.
        """
        if self.is_binary and (found := bootstrap.alike_interval(self.each, level)):
            return found
        low, high = np.quantile(self.values(drawn), [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def of(self, rows: Array) -> Measure:
        """The same of some of the rows, by their numbers."""
        return Measure(self.counts[rows], self.figure, self.is_mean)

    @property
    def each(self) -> Array:
        """The score of each row, where the figure is their mean."""
        return self.counts[:, 0]

    @property
    def is_binary(self) -> bool:
        """Whether each row is right or wrong, and the figure the share that is right."""
        return self.is_mean and bool(np.isin(self.each, (0.0, 1.0)).all())


def mean_of(scores: Array) -> Measure:
    """The mean of a score of each row."""
    scores = np.asarray(scores, dtype=np.float64)
    return Measure(np.stack([scores, np.ones_like(scores)], axis=1), bootstrap.mean_figure, is_mean=True)
