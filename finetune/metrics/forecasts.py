"""Errors of forecasts → figures. Knows arrays; knows no models.

Errors are summed and counted in float64 over all windows: a mean over batches would depend on their size, and
leave the last, smaller one out or count it too much.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def forecast_figures(sums: Array, values: int) -> dict[str, float]:
    """Mean squared and mean absolute error over all windows, steps and channels.

    Args:
        sums: squared and absolute errors of each window and channel, summed over its steps, [windows,
            channels, 2].
        values: numbers of a window that each sum is of, a channel (the horizon).
    """
    # Each sum is over a horizon; the mean is over all numbers.
    whole = sums.astype(np.float64).sum(axis=(0, 1)) / (sums.shape[0] * sums.shape[1] * values)
    return {"mse": float(whole[0]), "mae": float(whole[1])}


def seasonal_naive(values: Array, origins: Array, horizon: int, season: int) -> Array:
    """What stood a season before, repeated over the horizon: the sums of its errors, [windows, channels, 2].

    Args:
        values: [time, channels].
        origins: rows that forecasts begin at, [windows]; each has a season before it.
    """
    # Places in the season before the origin, which comes again as often as the horizon wants.
    back = np.arange(horizon) % season - season
    sums = np.empty((len(origins), values.shape[1], 2))
    for start in range(0, len(origins), 256):  # a few windows at a time, which are copies here
        part = np.asarray(origins[start : start + 256])[:, None]
        off = values[part + np.arange(horizon)].astype(np.float64) - values[part + back]
        sums[start : start + 256] = np.stack([(off**2).sum(axis=1), np.abs(off).sum(axis=1)], axis=-1)
    return sums
