"""Scores of members and of others → how well one is told from the other. Knows arrays; knows no model.

A score is higher for what looks like a training row. Attacks: the loss (Yeom et al. 2018), the loss beside a
reference's (Watson et al. 2022; Mireshghallah et al. 2022), likelihood ratios of shadow models (LiRA, Carlini
et al. 2022), the least likely tokens (Min-K%, Shi et al. 2024). Exposure of canaries: Carlini et al. 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Array = np.ndarray
SAMPLES = 1000


def auc(members: Array, others: Array) -> float:
    """Chance that a member scores above another row, ties counted half (Mann & Whitney 1947)."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, members, "left")
    upto = np.searchsorted(ordered, members, "right")
    # Those below and those up to it: the mean of the two counts ties half.
    return float((below + upto).mean() / (2 * len(others)))


def true_positives(members: Array, others: Array, rate: float = 0.01) -> float:
    """Share of the members that score above all but a share `rate` of the others."""
    # A rounding must not take away the last allowed one.
    allowed = math.floor(rate * len(others) + 1e-9)
    # The strictest threshold that lets no more through.
    threshold = np.sort(others)[len(others) - 1 - allowed]
    return float((members > threshold).mean())


def told_apart(members: Array, others: Array, samples: int = SAMPLES, seed: int = 0) -> dict[str, object]:
    """AUC and true-positive rate at 1 % false positives, with 95 % intervals.

    The rate's is of members and others drawn again (Efron & Tibshirani 1993, chapter 13). The AUC's is from
    its own variance (DeLong et al. 1988), and where every member is above every other, which has none, from
    below by the rule of three.

    Args:
        members: [members], others: [others].
    """
    rng = np.random.default_rng(seed)
    rates = [
        true_positives(rng.choice(members, len(members)), rng.choice(others, len(others)))
        for _ in range(samples)
    ]
    low, high = np.quantile(rates, [0.025, 0.975])
    found = auc(members, others)
    return {
        "auc": found, "auc_interval": list(auc_interval(members, others)),
        "tpr": true_positives(members, others), "tpr_interval": [float(low), float(high)],
        "members": len(members), "others": len(others),
    }  # fmt: skip


def auc_interval(members: Array, others: Array, deviations: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of the AUC, or one of other `deviations` (DeLong et al. 1988, equations 4 to 6)."""
    found, few = auc(members, others), min(len(members), len(others))
    # A single row has no variance.
    if few < 2:
        return 0.0, 1.0
    of_members = placements(members, others)
    of_others = 1 - placements(others, members)
    variance = of_members.var(ddof=1) / len(members) + of_others.var(ddof=1) / len(others)
    # No spread seen: with none of n, up to 3 / n could be (rule of three).
    half = max(deviations * math.sqrt(variance), 0.0 if 0 < found < 1 else 3 / few)
    return max(0.0, found - half), min(1.0, found + half)


def placements(values: Array, among: Array) -> Array:
    """Share of `among` below each value, ties counted half, [values]."""
    ordered = np.sort(among)
    both = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return both / (2 * len(among))


def logit_of_loss(losses: Array) -> Array:
    """log(p / (1 - p)) of the chance p = exp(-loss), which is nearly normal (Carlini et al. 2022, section
    4)."""
    # A loss of 0 is a chance of 1, whose logit is infinite.
    kept = np.maximum(losses, 1e-7)
    # log(1 - exp(-x)) by expm1, which is exact near 0.
    return -kept - np.log(-np.expm1(-kept))


def likelihood_ratios(losses: Array, shadows: Array, inside: Array) -> Array:
    """LiRA's score of each row: how much likelier its loss is under shadow models that were trained on it.

    With few shadows each row has its own means and all rows share one deviation of each kind (Carlini et al.
    2022, section 6.3).

    Args:
        losses: of the model that is attacked, [rows].
        shadows: [shadows, rows].
        inside: whether a shadow was trained on a row, [shadows, rows]; every row both with and without.
    """
    own, values = logit_of_loss(losses), logit_of_loss(shadows)
    score = np.zeros(len(losses))
    for part, sign in ((inside, 1.0), (~inside, -1.0)):
        count = part.sum(0)
        mean = np.where(part, values, 0.0).sum(0) / count
        spread = np.where(part, (values - mean) ** 2, 0.0)
        # One degree goes with each row's own mean.
        free = max(int((count - 1).clip(min=0).sum()), 1)
        # All alike: any deviation will do, since nothing differs.
        deviation = math.sqrt(spread.sum() / free) or 1.0
        score += sign * (-0.5 * ((own - mean) / deviation) ** 2 - math.log(deviation))
    return score


def least_likely(item_losses: Sequence[Array], share: float = 0.2) -> Array:
    """Min-K%: the mean log-probability of each row's least likely items, [rows] (Shi et al. 2024, equation
    2).

    Args:
        item_losses: nats of each token of each row.
        share: of a row's items; one at least.
    """
    # At the end of the sorted losses are the largest, which are the least likely; one at least.
    return np.array([-np.sort(one)[-max(1, round(share * len(one))) :].mean() for one in item_losses])


def exposure(loss: float, candidates: Array) -> float:
    """Bits by which a secret is likelier than chance: log2 of all candidates over its rank among them
    (Carlini et al. 2019, definition 5, by sampling).

    Args:
        candidates: losses of secrets that were never shown.
    """
    # 1 is the likeliest; candidates that tie don't come before it.
    rank = 1 + int((candidates < loss).sum())
    return math.log2(len(candidates) + 1) - math.log2(rank)


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """Fewest insertions, deletions and substitutions from one to the other (Levenshtein 1966)."""
    line = list(range(len(other) + 1))
    for place, item in enumerate(one, 1):
        corner, line[0] = line[0], place
        for column, wanted in enumerate(other, 1):
            # What stood above and to the left is overwritten just here.
            corner, line[column] = (
                line[column],
                min(line[column] + 1, line[column - 1] + 1, corner + (item != wanted)),
            )
    return line[-1]
