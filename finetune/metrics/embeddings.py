"""Vectors of texts → how good they are. Knows arrays; knows no models and no files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

Array = np.ndarray
ALIKE = (
    0.8  # of the highest score: pairs above it count as saying the same, as 4 of 5 does in Gao et al. 2021
)


def embedding_figures(vectors: Array, scores: Array, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Figures of pairs of texts: vectors [rows, 2 or more, width], scores [rows] (not a number where there is
    none).

    Returns:
        uniformity: log of the mean of exp(-2 d²) over all pairs of first texts, lower is better;
        alignment: mean d² of the texts that belong together, lower is better (both Wang & Isola 2020);
        spearman: rank correlation of cosines and scores, where there are scores.
    """
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    # Float64: squared distances of vectors that nearly agree are differences of near numbers.
    first, second = units[:, 0].astype(np.float64), units[:, 1].astype(np.float64)
    scored = np.isfinite(scores)
    # Without a score the two texts belong together by being a pair; with one, where it is high.
    together = ~scored | (scores >= ALIKE * np.max(scores, where=scored, initial=0.0))
    distances = ((first - second) ** 2).sum(axis=1)
    figures = {"uniformity": uniformity(first)}
    if together.any() and distances.any():  # a text beside itself says nothing
        figures["alignment"] = float(distances[together].mean())
    if scored.sum() > 1:
        cosines = (first * second).sum(axis=1)[scored]
        # All cosines alike have no ranks to correlate.
        figures["spearman"] = (
            float(spearmanr(cosines, scores[scored]).statistic) if np.ptp(cosines) > 0 else 0.0
        )
    return figures


def uniformity(units: Array, part: int = 512) -> float:
    """log mean exp(-2 |x - y|²) over all pairs of different rows of `units` [rows, width]; 0 where all are
    the same.
    """
    total, rows = 0.0, len(units)
    for start in range(0, rows, part):
        # |x - y|² of vectors of length 1 is 2 - 2xy; rounding may leave less than 0.
        squared = np.maximum(2 - 2 * units[start : start + part] @ units.T, 0)
        total += float(np.exp(-2 * squared).sum())
    # Less each row beside itself, whose exp(0) is 1. All the same: the log of a tiny number, not of 0.
    return float(np.log(max(total - rows, 1e-300) / max(rows * (rows - 1), 1)))
