"""Several prompts' scores → one: `[prompts, examples, labels]` in, `[examples, labels]` out. Knows arrays;
knows no models."""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax, logsumexp


def mean(scores: np.ndarray) -> np.ndarray:
    """Log of the mean probability over prompts."""
    return weighted_mean(scores, np.ones(len(scores)))


def weighted_mean(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Log of the weighted mean probability; weights [prompts] of 0 or more, for instance accuracies on a few
    labelled rows."""
    weights = np.asarray(weights, dtype=np.float64)
    if not ((weights >= 0).all() and weights.sum() > 0):  # so asked, a weight that is no number is refused
        raise ValueError(f"Got weights {weights.tolist()}; wanted numbers of 0 or more, not all 0")
    # [prompts] → [prompts, 1, 1], over rows and labels
    share = (weights / weights.sum())[:, None, None]
    # a weight of 0 has a logarithm of -inf, which is meant
    with np.errstate(divide="ignore"):
        return logsumexp(log_softmax(scores, axis=2) + np.log(share), axis=0)


def vote(scores: np.ndarray) -> np.ndarray:
    """Number of prompts that name each label; the mean probability, below 1, parts equal numbers."""
    named = np.eye(scores.shape[2])[scores.argmax(axis=2)].sum(axis=0)
    # below 1, so that it decides between equal numbers of votes and nothing else
    return named + 0.5 * np.exp(mean(scores))
