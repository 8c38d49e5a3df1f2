"""Errors of forecasts by hand, and intervals of what is near in time."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.metrics import bootstrap, forecasts


def test_errors_by_hand():
    sums = np.array(
        [[[4.0, 2.0], [0.0, 0.0]], [[1.0, 1.0], [9.0, 3.0]]]
    )  # two windows, two channels, a step each
    assert forecasts.forecast_figures(sums, 1) == {"mse": 3.5, "mae": 1.5}


def test_a_season_that_repeats_is_foretold():
    wave = np.tile([1.0, 5.0, 2.0], 10)[:, None]
    origins = np.arange(3, 24)
    assert (forecasts.seasonal_naive(wave, origins, 6, 3) == 0).all()
    sums = forecasts.seasonal_naive(np.arange(30.0)[:, None], origins, 4, 3)
    assert sums[0, 0].tolist() == [
        9 * 3 + 36,
        3 * 3 + 6,
    ]  # 3 too low, and 6 once the season comes round again


def test_blocks_are_neighbours_and_add_up():
    counts = bootstrap.block_draws(10, 200, 0, 4)
    assert counts.shape == (200, 10) and (counts.sum(axis=1) == 12).all()
    once = bootstrap.block_draws(10, 50, 1, 10)
    assert (once == 1).all()  # one block that goes round
    singles = bootstrap.block_draws(7, 50, 0, 1)
    assert (singles == bootstrap.draws(7, 50, 0)).all()
    runs = bootstrap.block_draws(9, 300, 2, 3)
    alone = [line for line in runs if (line > 0).sum() == 3]  # the same block thrice
    assert all(
        (np.roll(line, -int(np.argmax((line > 0) & (np.roll(line, 1) == 0))))[:3] == 3).all()
        for line in alone
    )


def test_an_interval_of_what_depends_on_its_neighbours_is_as_wide_as_it_should_be():
    """A moving average of noise: its mean's deviation is that of the noise, whose steps are independent."""
    rng = np.random.default_rng(0)
    width, rows = 50, 4000
    noise = rng.normal(size=rows + width)
    smooth = np.convolve(noise, np.ones(width), "valid")[:rows]
    counts = np.stack([smooth, np.ones(rows)], axis=1)
    half = 1.96 * width / np.sqrt(rows)
    low, high = bootstrap.bootstrap(counts, bootstrap.mean_figure, block=200)
    assert high - low == pytest.approx(2 * half, rel=0.25)
    narrow = bootstrap.bootstrap(counts, bootstrap.mean_figure)
    assert narrow[1] - narrow[0] < 0.3 * half * 2
