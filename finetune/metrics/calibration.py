"""How far stated probabilities can be believed. Knows arrays; knows no models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def reliability(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> list[dict[str, float]]:
    """Rows by the probability that was stated for their answer: how often each group was right.

    Bins of equal width over [0, 1] (Guo et al. 2017, section 2); empty ones are left out.

    Args:
        confidence: probability of the answer that was given, one a row, in [0, 1].
        right: whether it was right.

    Returns:
        One mapping a bin: low and high edge, rows, mean confidence, share that was right.

    Raises:
        ValueError: no rows, another number of answers than of confidences, or one outside [0, 1].
    """
    # Float64, so that the edges of bins are where they are said to be.
    stated, hits = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if not len(stated) or len(stated) != len(hits):
        raise ValueError(
            f"Got {len(stated)} probabilities and {len(hits)} answers; wanted as many, at least one"
        )
    if stated.min() < 0 or stated.max() > 1:
        raise ValueError(f"Probabilities go from {stated.min()} to {stated.max()}; wanted 0 to 1")
    place = np.minimum((stated * bins).astype(int), bins - 1)  # a probability of 1 belongs to the last bin
    return [
        {
            "low": bin_ / bins,
            "high": (bin_ + 1) / bins,
            "rows": int((place == bin_).sum()),
            "confidence": float(stated[place == bin_].mean()),
            "right": float(hits[place == bin_].mean()),
        }
        for bin_ in sorted(set(place.tolist()))
    ]


def expected_calibration_error(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> float:
    """Mean distance between stated and observed shares, weighted by rows (Naeini et al. 2015; Guo et al.
    2017, eq. 3).
    """
    found = reliability(confidence, right, bins)
    total = sum(one["rows"] for one in found)
    return sum(one["rows"] * abs(one["confidence"] - one["right"]) for one in found) / total
