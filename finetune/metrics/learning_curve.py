"""Scores at several numbers of labels → a curve, and what further labels would likely bring. Knows arrays;
knows no models.

An error falls with the number of labels n about as a power of it, a · n^-b (Hestness et al. 2017; Cortes et
al. 1994): a straight line in logarithms, which is fitted anew to each bootstrap sample of rows and seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from finetune.metrics.bootstrap import alike_interval

Array = np.ndarray
LEAST_GAIN = 0.001  # of accuracy, that is worth a word
QUANTILES = (0.025, 0.5, 0.975)
LEAST_SIZES = 3  # a line through two points knows no doubt


@dataclass(frozen=True)
class Forecast:
    """What `more` labels would likely add to accuracy.

    Attributes:
        gain, low, high: median and 95 % interval over bootstrap samples.
        exponent: median of b.
        since: number of labels from which the end of the curve is looked at.
        rise, rise_low, rise_high: what accuracy gained from there to the largest number, and its interval.
    """

    labels: int
    more: int
    gain: float
    low: float
    high: float
    exponent: float
    since: int
    rise: float
    rise_low: float
    rise_high: float

    @property
    def is_likely(self) -> bool:
        """Whether the curve still rises at its end, so that its law may be carried on."""
        # The fit alone would promise a gain after any steep beginning, and it can't tell a fall at all.
        return self.low > LEAST_GAIN and self.rise_low > 0


def resampled_means(scores: Array, samples: int, seed: int) -> Array:
    """Mean of scores [seeds, rows] in bootstrap samples of rows and of seeds, [samples].

    The same `seed` draws the same rows, so that two curves, or two sizes of one, are resampled together.
    """
    rows = drawn(scores.shape[1], samples, seed)
    # Another stream than the rows', or both draws would go together.
    seeds = drawn(scores.shape[0], samples, (seed, scores.shape[0]))
    return ((rows @ scores.T) * seeds).sum(1) / scores.shape[1] / scores.shape[0]


@lru_cache(4)  # a page asks for the same rows once a point
def drawn(count: int, samples: int, seed: int | tuple[int, int]) -> Array:
    """How often each of `count` is in each bootstrap sample, [samples, count]."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), samples).astype(float)


def interval_of_means(scores: Array, samples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of scores [seeds, rows], rows and seeds resampled."""
    # the rows alone: seeds that all say the same of them are no further rows
    if (scores == scores[:1]).all() and (found := alike_interval(scores[0])):
        return found
    low, high = np.quantile(resampled_means(scores, samples, seed), [0.025, 0.975])
    return float(low), float(high)


def power_law(sizes: Array, errors: Array) -> tuple[float, float]:
    """a and b of error = a · n^-b by least squares in logarithms, b at least 0: labels do no harm.

    Args:
        sizes: [sizes], ascending.
        errors: [sizes], above 0.
    """
    x, y = np.log(np.asarray(sizes, dtype=float)), np.log(np.asarray(errors, dtype=float))
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    b = max(-slope, 0.0)
    # By the mean point, through which the line goes also where its slope was raised to 0.
    return float(np.exp(y.mean() + b * x.mean())), b


def outlook(scores: Mapping[int, Array], more: int, samples: int = 1000, seed: int = 0) -> Forecast | None:
    """What `more` labels beyond the largest number would add; None for fewer than three sizes.

    Args:
        scores: number of labels → right or wrong, [seeds, rows].
    """
    sizes = sorted(scores)
    if len(sizes) < LEAST_SIZES:
        return None
    rows = scores[sizes[0]].shape[1]
    # no error seen in so many rows is no error below one in twice as many
    # The same seed at every size, so that a sample's errors are of the same rows.
    errors = np.stack(
        [np.maximum(1 - resampled_means(scores[size], samples, seed), 0.5 / rows) for size in sizes]
    )
    gains, exponents = [], []
    for column in errors.T:
        a, b = power_law(np.array(sizes), column)
        gains.append(a * (sizes[-1] ** -b - (sizes[-1] + more) ** -b))
        exponents.append(b)
    # nothing brings more than what is wrong at the largest number
    left = 1 - float(scores[sizes[-1]].mean())
    low, middle, high = np.quantile(np.minimum(gains, left), QUANTILES)
    # Over the last fourfold at least: neighbouring sizes differ by less than their noise.
    since = max((place for place, size in enumerate(sizes) if size <= sizes[-1] / 4), default=0)
    fallen, rise, risen = np.quantile(errors[since] - errors[-1], QUANTILES)
    return Forecast(
        sizes[-1], more, float(middle), float(low), float(high), float(np.median(exponents)),
        sizes[since], float(rise), float(fallen), float(risen),
    )  # fmt: skip
