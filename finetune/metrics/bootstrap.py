"""Answers, or figures a row → 95 % intervals. Knows arrays; knows no task and no model.

A figure that is a function of sums over rows (a mean, F1, a correlation) is resampled by multinomial draws:
every bootstrap sample of rows is a line of weights, and one matrix product gives the sums of all samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray
Counts = Callable[[Sequence[dict[str, Any]]], Array]  # answers → what is summed, [rows, sums]
Figure = Callable[[Array], Array]  # sums of each sample, [samples, sums] → [samples]


def draws(rows: int, samples: int, seed: int) -> Array:
    """How often each row is in each bootstrap sample: [samples, rows], every line adding up to `rows`.

    One multinomial draw instead of resampled rows: figures that are sums over rows become one matrix product.
    """
    return np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=samples)


def block_draws(rows: int, samples: int, seed: int, block: int) -> Array:
    """The same where rows come in blocks of neighbours: what is near in time errs alike, and rows drawn one
    by one would make an interval too narrow.

    Blocks begin anywhere and go on at the first row behind the last (the circular block bootstrap, Politis &
    Romano 1992); every line adds up to the least multiple of `block` that is no less than `rows`.
    """
    # A block longer than the series would draw one row twice in a block.
    block = min(block, rows)
    # Where blocks begin; as many as cover the rows, rounded up.
    begun = np.random.default_rng(seed).multinomial(-(-rows // block), np.full(rows, 1 / rows), size=samples)
    # Behind the last row the first ones follow, so that all rows are in equally many blocks.
    sums = np.concatenate([begun[:, rows - block + 1 :], begun], axis=1).cumsum(axis=1)
    # A row is drawn as often as blocks begin at it or up to block - 1 rows before.
    return sums[:, block - 1 :] - np.pad(sums[:, : rows - 1], ((0, 0), (1, 0)))


def bootstrap(
    counts: Array, figure: Figure, samples: int = 2000, seed: int = 0, block: int = 1
) -> tuple[float, float]:
    """95 % percentile interval of `figure` over resampled rows (Efron & Tibshirani 1993, chapter 13).

    Args:
        counts: what is summed of each row, [rows, sums].
        block: rows that are drawn together, where neighbours depend on each other.
    """
    if figure is mean_figure and (counts[:, 1] == 1).all() and (found := alike_interval(counts[:, 0])):
        return found
    rows = len(counts)
    step = max(1, min(samples, 20_000_000 // max(rows, 1)))  # draws in parts of bounded memory
    starts = range(0, samples, step)

    def drawn(size: int, own: int) -> Array:
        return draws(rows, size, own) if block == 1 else block_draws(rows, size, own, block)

    # A seed a part: parts of one seed would all be the same samples.
    sums = [drawn(min(step, samples - start), seed + start) @ counts for start in starts]
    low, high = np.quantile(figure(np.concatenate(sums)), [0.025, 0.975])
    return float(low), float(high)


def alike_interval(values: Array, level: float = 0.95) -> tuple[float, float] | None:
    """The interval of a share where all rows are right, or all wrong: resampling would show no doubt of it,
    so that the other end is Clopper and Pearson's. None where rows differ, or hold other values.
    """
    if not len(values) or values[0] not in (0, 1) or (values != values[0]).any():
        return None
    # At half the level, since the interval has two ends: what could be there and not have been seen.
    unseen = 1 - ((1 - level) / 2) ** (1 / len(values))
    return (0.0, unseen) if values[0] == 0 else (1 - unseen, 1.0)


def interval(values: Array, samples: int = 2000, seed: int = 0, block: int = 1) -> tuple[float, float]:
    """The interval of the mean of `values` [rows]; see `bootstrap`."""
    each_one = np.asarray(values, dtype=np.float64)
    # The row itself beside its value: a mean is a quotient of two sums.
    return bootstrap(np.stack([each_one, np.ones_like(each_one)], axis=1), mean_figure, samples, seed, block)


def macro_f1_interval(
    predicted: Array, gold: Array, classes: int, samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The interval of macro-F1; predicted and gold [rows]."""
    return bootstrap(class_counts(predicted, gold, classes), macro_f1, samples, seed)


def class_counts(predicted: Array, gold: Array, classes: int) -> Array:
    """Of each row and class, whether it is said and right, and how often it is said or there: [rows, 2 ×
    classes].
    """
    one_hot = np.eye(classes)
    hits = one_hot[gold] * (predicted == gold)[:, None]
    return np.concatenate([hits, one_hot[predicted] + one_hot[gold]], axis=1)


def mean_figure(sums: Array) -> Array:
    """[samples, 2]: sum and number of rows."""
    return sums[:, 0] / sums[:, 1]


def f1_figure(sums: Array) -> Array:
    """[samples, 3]: right ones, those said, those there are."""
    both = sums[:, 1] + sums[:, 2]
    # Neither said nor there: 0 by convention, as scikit-learn has it.
    return np.divide(2 * sums[:, 0], both, out=np.zeros(len(sums)), where=both > 0)


def macro_f1(sums: Array) -> Array:
    """[samples, 2 × classes] of `class_counts`: the mean of the classes' F1."""
    hits, both = np.split(sums, 2, axis=1)
    return np.divide(2 * hits, both, out=np.zeros_like(both), where=both > 0).mean(axis=1)


def correlation(sums: Array) -> Array:
    """[samples, 6]: rows, x, y, xy, xx, yy; 0 where either side is constant."""
    count, x, y, xy, xx, yy = sums.T
    # By sums alone, so that samples are one matrix product. Rounding may leave a spread just below 0.
    spread = (count * xx - x**2) * (count * yy - y**2)
    return np.divide(
        count * xy - x * y, np.sqrt(np.maximum(spread, 0)), out=np.zeros(len(sums)), where=spread > 0
    )


def each(score: Callable[[dict[str, Any]], float]) -> Counts:
    """The score of each answer, and that it is one."""
    return lambda answers: np.array([[score(answer), 1.0] for answer in answers])
