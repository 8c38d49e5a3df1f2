"""Rows that nobody would write: drawn with a secret, planted among one's own, and asked for. Knows texts and
losses; knows no model.

Each planted row was drawn by chance from several candidates. A model that never saw it can't tell which, so
that the rank of its loss among theirs is uniform, whatever the model is (Carlini et al. 2019, section 4.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune.errors import InputError

WORDS, CANDIDATES = 10, 20  # words of a canary; candidates it is drawn from, where it has no label
LEAST = 50  # distinct words to draw from


def draw_canaries(
    texts: Sequence[str], many: int, key: int, labels: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Canaries of words of one's own texts, each with its candidates; the planted one comes first.

    With labels the candidates are one text with each label, else `CANDIDATES` texts.

    Returns:
        `{"texts": [...], "labels": [...] or None}` of each, the planted one first.

    Raises:
        InputError: too few distinct words to draw from, or one label.
    """
    # sorted, as the order of a set changes from process to process
    words = sorted({word for text in texts for word in text.split() if word.isalpha()})
    if len(words) < LEAST:
        raise InputError(f"The texts have {len(words)} distinct words; wanted {LEAST} to draw canaries from")
    if labels is not None and len(labels) < 2:
        raise InputError(f"The rows have one label ({', '.join(labels)}); wanted two or more for canaries")
    generator = np.random.default_rng(key)

    def text() -> str:
        return " ".join(generator.choice(words, WORDS))

    found: list[dict[str, Any]] = []
    for _ in range(many):
        if labels is None:
            found.append({"texts": [text() for _ in range(CANDIDATES)], "labels": None})
        else:
            # the drawn label first; the others are its candidates
            order = [labels[place] for place in generator.permutation(len(labels))]
            found.append({"texts": [text()] * len(labels), "labels": order})
    return found


def rank_test(losses: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Whether planted rows cost less than their candidates: the sum of their ranks against its exact
    distribution.

    Args:
        losses: [canaries, candidates], the planted one first; ties are broken by chance.

    Returns:
        `p`, one-sided, and the mean `rank` as a share (0: always the cheapest; one half is expected).
    """
    many, candidates = losses.shape
    # equal losses counted either way would make the ranks uneven
    ties = np.random.default_rng(seed).random(losses.shape)
    cheaper = (losses < losses[:, :1]) | ((losses == losses[:, :1]) & (ties < ties[:, :1]))
    ranks = cheaper.sum(axis=1)
    # the distribution of a sum of independent uniform ranks, by convolution
    chances = np.ones(1)
    for _ in range(many):
        chances = np.convolve(chances, np.full(candidates, 1 / candidates))
    p = float(min(1.0, chances[: int(ranks.sum()) + 1].sum()))
    return {"p": p, "rank": float(ranks.mean() / (candidates - 1)), "canaries": many}
