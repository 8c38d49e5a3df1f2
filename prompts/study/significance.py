"""Prompts on the same rows: how sure is a figure, is one better than another, or is it chance? Knows arrays;
knows no models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from finetune.metrics.bootstrap import draws


@dataclass(frozen=True)
class Comparison:
    """What two sets of answers to the same rows say.

    Attributes:
        difference: accuracy of the first less that of the second; low, high: its 95 % bootstrap interval.
        only_first, only_second: rows that one of them alone has right.
        p: of McNemar's exact test.
    """

    difference: float
    low: float
    high: float
    only_first: int
    only_second: int
    p: float

    def in_words(self, level: float = 0.05) -> str:
        """The verdict as a person says it."""
        if self.p >= level:
            return f"not significant (p = {self.p:.2g})"
        return f"{'better' if self.difference > 0 else 'worse'} (p = {self.p:.2g})"


def intervals(
    predicted: np.ndarray, gold: np.ndarray, classes: int, drawn: np.ndarray
) -> dict[str, tuple[float, float]]:
    """95 % percentile bootstrap intervals of accuracy and macro-F1; predicted, gold [rows], drawn [samples,
    rows].

    One draw serves all prompts of a study, which makes their intervals comparable, and quick.
    """
    one_hot = np.eye(classes)
    hits = drawn @ (one_hot[gold] * (predicted == gold)[:, None])  # [samples, classes]
    both = drawn @ (one_hot[predicted] + one_hot[gold])
    f1 = np.divide(2 * hits, both, out=np.zeros_like(both), where=both > 0).mean(axis=1)
    values = {"accuracy": hits.sum(axis=1) / len(gold), "macro_f1": f1}
    found = {name: np.quantile(value, [0.025, 0.975]) for name, value in values.items()}
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p that both are right equally often (McNemar 1947, with the binomial distribution)."""
    discordant = only_first + only_second
    return 1.0 if discordant == 0 else float(binomtest(only_first, discordant, 0.5).pvalue)


def compare(first: np.ndarray, second: np.ndarray, drawn: np.ndarray | None = None) -> Comparison:
    """Right or wrong on the same rows, bool [rows] each → whether the difference is more than chance.

    Args:
        drawn: bootstrap samples [samples, rows], as metrics.draws gives them; many pairs can share them.

    Raises:
        ValueError: answers to different numbers of rows, or to none.
    """
    if first.shape != second.shape or not len(first):
        raise ValueError(
            f"Got answers to {len(first)} and {len(second)} rows; wanted the same rows, and one at least"
        )
    difference = first.astype(np.float64) - second.astype(np.float64)
    means = (draws(len(first), 2000, 0) if drawn is None else drawn) @ difference / len(first)
    low, high = np.quantile(means, [0.025, 0.975])
    one, other = int((first & ~second).sum()), int((second & ~first).sum())
    return Comparison(float(difference.mean()), float(low), float(high), one, other, mcnemar(one, other))
