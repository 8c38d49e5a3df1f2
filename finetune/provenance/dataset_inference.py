"""Was a model trained on these texts rather than on others of the same source? Knows tokens' costs; knows no
model.

After Maini et al. (2024): single texts tell little, many together tell more. Several measures of membership
are weighed on one half of both sets, and the other halves are compared by a test.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from finetune.errors import InputError

SHARES = (0.05, 0.1, 0.2, 0.4)
LEAST = 20  # texts of each set: ten to weigh by, ten to test on


def measures(nats: np.ndarray, text: str) -> list[float]:
    """Measures of membership of one text: mean cost, that of its dearest and cheapest tokens (Min-K% and
    Max-K%, Shi et al. 2024), cost against compressed size (Carlini et al. 2021), and the spread.

    Args:
        nats: of each token, [tokens].
    """
    rising = np.sort(nats)
    size = len(zlib.compress(text.encode()))
    # at least one token of a short text
    few = [max(1, round(share * len(nats))) for share in SHARES]
    return [
        float(nats.mean()), float(nats.sum() / size), float(nats.std()),
        *(float(rising[-count:].mean()) for count in few), *(float(rising[:count].mean()) for count in few),
    ]  # fmt: skip


def infer(suspect: np.ndarray, held_out: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Whether texts of a set look more like members than others of the same source.

    Args:
        suspect: measures of texts that may have been trained on, [texts, measures].
        held_out: of texts that can't have been.

    Returns:
        `p`, one-sided (Mann-Whitney), uniform where a model knows neither set; `auc` of the second halves.

    Raises:
        InputError: too few texts.
    """
    for name, part in (("own texts", suspect), ("held-out texts", held_out)):
        if len(part) < LEAST:
            raise InputError(f"Got {len(part)} {name}; wanted {LEAST} or more for data-set inference")
    generator = np.random.default_rng(seed)
    # weights are fitted on one half alone: tested on the same rows, p would be too small
    halves = [np.array_split(generator.permutation(part), 2) for part in (suspect, held_out)]
    (mine, mine_too), (others, others_too) = halves
    # nats, sizes and spreads in one unit before they are weighed
    scaler = StandardScaler().fit(np.concatenate([mine, others]))
    # strongly regularised: few texts and measures that say nearly the same
    weigh = LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000)
    weigh.fit(scaler.transform(np.concatenate([mine, others])), [1] * len(mine) + [0] * len(others))
    member, other = (weigh.decision_function(scaler.transform(part)) for part in (mine_too, others_too))
    found = mannwhitneyu(member, other, alternative="greater")
    return {
        "p": float(found.pvalue), "auc": float(found.statistic / (len(member) * len(other))),
        "texts": len(suspect), "held_out": len(held_out),
    }  # fmt: skip


def measured_texts(parts: Sequence[tuple[np.ndarray, str]]) -> np.ndarray:
    """(tokens' costs, text) of several texts → [texts, measures]."""
    return np.array([measures(nats, text) for nats, text in parts])
