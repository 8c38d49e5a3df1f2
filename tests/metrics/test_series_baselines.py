"""Series told apart without a network: time warping by hand, random kernels on what they should tell."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.metrics.series_baselines import nearest_under_warping, random_kernels, warped


def slow_warp(one, other, band=None):
    """Sakoe & Chiba's recursion, cell by cell."""
    time = one.shape[-1]
    cost = np.full((time + 1, time + 1), np.inf)
    cost[0, 0] = 0
    for i in range(1, time + 1):
        for j in range(1, time + 1):
            if band is None or abs(i - j) <= band:
                step = ((one[:, i - 1] - other[:, j - 1]) ** 2).sum()
                cost[i, j] = step + min(cost[i - 1, j], cost[i, j - 1], cost[i - 1, j - 1])
    return cost[time, time]


@pytest.mark.parametrize(("band", "steps"), [(1.0, None), (0.25, 3)])
def test_warping_is_that_of_the_recursion(band, steps):
    rng = np.random.default_rng(0)
    ones, others = rng.normal(size=(3, 2, 12)), rng.normal(size=(4, 2, 12))
    found = warped(ones, others, band)
    wanted = [[slow_warp(one, other, steps) for other in others] for one in ones]
    assert found == pytest.approx(np.array(wanted))


def bumps(count: int, seed: int):
    """A bump somewhere in noise, wide or narrow, by class; no fixed place tells it."""
    rng = np.random.default_rng(seed)
    time, labels = np.arange(40), ["wide" if n % 2 else "narrow" for n in range(count)]
    places, widths = rng.uniform(8, 32, count), [5.0 if label == "wide" else 1.5 for label in labels]
    return np.stack([
        np.exp(-(((time - place) / width) ** 2))[None] + rng.normal(0, 0.05, (1, 40))
        for place, width in zip(places, widths, strict=True)
    ]), labels  # fmt: skip


def test_both_tell_shapes_wherever_they_stand():
    (train, labels), (asked, gold) = bumps(30, 0), bumps(60, 1)
    for baseline in (random_kernels, nearest_under_warping):
        found = baseline(train, labels, asked, gold)
        assert found["accuracy"] > 0.9 and found["interval"][0] <= found["accuracy"] <= found["interval"][1]


def test_kernels_sum_over_channels_and_take_short_and_constant_series():
    (train, labels), (asked, gold) = bumps(30, 0), bumps(40, 1)
    beside = [np.concatenate([part, np.ones_like(part)], axis=1) for part in (train, asked)]
    assert random_kernels(beside[0], labels, beside[1], gold)["accuracy"] > 0.85
    assert random_kernels(train[..., :5], labels, asked[..., :5], gold)["accuracy"] >= 0.3
