"""What tells series apart without a trained network: random kernels and the nearest neighbour under time
warping. Knows arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from finetune.metrics.bootstrap import interval

Array = np.ndarray
KERNELS = np.array(list(combinations(range(9), 3)))  # places of the weight 2 among nine; the others are -1
FEATURES = 9996  # as the paper has: 119 for each of the 84 kernels


def random_kernels(
    train: Array, train_labels: Sequence[str], asked: Array, gold: Sequence[str], seed: int = 0
) -> dict[str, object]:
    """Accuracy of ridge regression over shares of positive values under random dilated kernels (MiniRocket,
    Dempster et al. 2021; several channels are summed over a random few of them, as in its authors' code).

    Args:
        train, asked: [rows, channels, time], all as long; each channel is brought to mean 0 and deviation 1
        by
            itself.
    """
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # Each series by itself: level and scale are no shape.
    train, asked = (_unit(values) for values in (train, asked))
    bank = _Bank(train, np.random.default_rng(seed))
    # Ten strengths, of which the ridge chooses by leaving rows out, without further training.
    model = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=np.logspace(-3, 3, 10)))
    model.fit(bank.features(train), train_labels)
    said = np.concatenate([model.predict(bank.features(part)) for part in _parts(asked)])
    return _scored("random kernels", said, gold)


class _Bank:
    """Kernels of length 9 with their dilations, channels, and biases drawn from training rows."""

    def __init__(self, train: Array, rng: np.random.Generator) -> None:
        rows, channels, time = train.shape
        # The widest kernel, 9 places apart, still fits the series.
        most = max(0, int(np.log2(max(1, (time - 1) / 8))))
        steps = np.unique(2 ** np.linspace(0, most, min(32, most + 1) if most else 1)).astype(int)
        self.dilations = np.unique(steps)
        count = max(1, FEATURES // (len(KERNELS) * len(self.dilations)))
        # Multiples of the golden ratio, which fill (0, 1) evenly however many there are.
        shares = (np.arange(1, count + 1) * (np.sqrt(5) + 1) / 2) % 1  # evenly spread, in no order
        width = len(self.dilations), len(KERNELS)
        sizes = 2 ** rng.uniform(0, np.log2(min(channels, 9) + 1), width)
        self.chosen = [
            [rng.choice(channels, min(channels, int(size)), replace=False) for size in line] for line in sizes
        ]
        self.biases = np.empty((*width, count))
        for place, values in self._responses(train[rng.integers(rows, size=min(rows, 32))]):
            # Quantiles of one training row's own responses: biases lie where values are.
            self.biases[place] = np.quantile(values[rng.integers(len(values))], shares)

    def _responses(self, values: Array):
        """((dilation, kernel), what the kernel gives at each step [rows, time]) of all of them."""
        beyond = 4 * self.dilations[-1]
        padded = np.pad(values, ((0, 0), (0, 0), (beyond, beyond)))
        time = values.shape[-1]
        for first, dilation in enumerate(self.dilations):
            starts = beyond + (np.arange(9) - 4) * dilation
            shifted = np.stack([padded[..., start : start + time] for start in starts])
            # -1 at all nine and +3 more at three makes 2 there.
            whole = -shifted.sum(axis=0)
            for second, places in enumerate(KERNELS):
                own = self.chosen[first][second]
                three = shifted[places][:, :, own].sum(axis=0)
                yield (first, second), (whole[:, own] + 3 * three).sum(axis=1)

    def features(self, values: Array) -> Array:
        """Share of steps at which each kernel gives more than each of its biases, [rows, features]."""
        found = [
            (response[:, None, :] > self.biases[place][None, :, None]).mean(axis=-1)
            for place, response in self._responses(values)
        ]
        return np.concatenate(found, axis=1)


def nearest_under_warping(
    train: Array, train_labels: Sequence[str], asked: Array, gold: Sequence[str], band: float = 1.0
) -> dict[str, object]:
    """Accuracy of the class of the nearest training row under dynamic time warping (Sakoe & Chiba 1978), all
    channels warped together.

    Args:
        train, asked: [rows, channels, time], all as long.
        band: share of the time that steps may be moved by.
    """
    found = [distance.argmin(axis=1) for distance in (warped(part, train, band) for part in _parts(asked))]
    labels = np.asarray(train_labels)
    return _scored("1 nearest neighbour (DTW)", labels[np.concatenate(found)], gold)


def warped(ones: Array, others: Array, band: float = 1.0) -> Array:
    """Squared distance of each of `ones` [n, channels, time] to each of `others` [m, channels, time] along
    the best
    path: [n, m].
    """
    time, wide = ones.shape[-1], max(1, int(np.ceil(band * ones.shape[-1])))
    far = np.full((len(ones), len(others)), np.inf)
    # The path begins in the corner: nothing else before the first step costs 0.
    before = [np.zeros_like(far), *[far] * time]
    for i in range(time):
        row = [far] * (time + 1)
        for j in range(max(0, i - wide), min(time, i + wide + 1)):
            cost = ((ones[:, None, :, i] - others[None, :, :, j]) ** 2).sum(axis=-1)
            # A step on in one, in both or in the other.
            row[j + 1] = cost + np.minimum(np.minimum(before[j], before[j + 1]), row[j])
        before = row
    return before[time]


def _unit(values: Array) -> Array:
    spread = values.std(axis=-1, keepdims=True)
    # A constant channel stays at 0.
    return (values - values.mean(axis=-1, keepdims=True)) / np.where(spread > 0, spread, 1)


def _parts(values: Array) -> list[Array]:
    """A few rows at a time."""
    return [values[start : start + 128] for start in range(0, len(values), 128)]


def _scored(name: str, said: Array, gold: Sequence[str]) -> dict[str, object]:
    right = np.array([one == wanted for one, wanted in zip(said, gold, strict=True)])
    return {"name": name, "accuracy": float(right.mean()), "interval": interval(right)}
