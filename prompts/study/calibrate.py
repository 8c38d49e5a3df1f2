"""Scores of labels, made fairer: `[examples, labels]` in, the same out. Knows arrays; knows no models.

A label can win because its word is likely anyway. Each function takes away another guess of how likely that
is; none looks at gold labels.
"""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax, logsumexp

CONTENT_FREE = ("N/A", "[MASK]", "")  # the inputs of Zhao et al. 2021, section 5


def contextual(scores: np.ndarray, blank: np.ndarray) -> np.ndarray:
    """Contextual calibration (Zhao et al. 2021): divide by probabilities on content-free inputs, `blank`
    [inputs, labels]."""
    # in logarithms a division is a difference; normalised first, as the paper has it
    return log_softmax(scores, axis=1) - _log_mean(log_softmax(blank, axis=1))


def domain(scores: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Domain-context calibration (Fei et al. 2023): the same, with inputs of the rows' own words, `drawn`
    [inputs, labels]."""
    # inputs are all that is different
    return contextual(scores, drawn)


def pmi(scores: np.ndarray, premise: np.ndarray) -> np.ndarray:
    """Mutual information (Holtzman et al. 2021): log p(label | input) - log p(label | premise); `premise` [1,
    labels]."""
    return scores - premise


def batch(scores: np.ndarray) -> np.ndarray:
    """Batch calibration (Zhou et al. 2024): divide by the mean probability over the unlabelled rows
    themselves."""
    own = log_softmax(scores, axis=1)
    # by columns: how likely each label is over all rows
    return own - _log_mean(own)


def _log_mean(logs: np.ndarray) -> np.ndarray:
    # the mean of probabilities, whose logarithms are given
    return logsumexp(logs, axis=0, keepdims=True) - np.log(len(logs))


def random_inputs(texts: list[str], count: int, seed: int) -> list[str]:
    """Inputs of words drawn from all texts, each about as long as the texts are on average (in-domain, and
    yet about nothing)."""
    generator = np.random.default_rng(seed)
    words = [word for text in texts for word in text.split()]
    # at least one word, and 0 texts divide nothing
    length = max(1, len(words) // max(len(texts), 1))
    return [
        # one length for all: the mean of the texts'
        " ".join(words[i] for i in generator.integers(0, len(words), length)) if words else ""
        for _ in range(count)
    ]
