"""The best of n answers: which it is, and how far choosing it leads from the policy that wrote them. Knows
scores alone.

Beirami et al. 2024, Theoretical guarantees on the best-of-n alignment policy
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


def favourite(texts: Sequence[str], scores: Sequence[float]) -> str:
    """The answer with the highest score, the first of equals; one without text or without a score
    only where all are so.
    """

    def rank(place: int) -> tuple[bool, float]:
        # A score of NaN compares with nothing, and `max` would take whatever came first.
        known = not math.isnan(scores[place])
        return bool(texts[place].strip()) and known, scores[place] if known else -math.inf

    return texts[max(range(len(texts)), key=rank)]


def best_of_n_kl(shares: Sequence[float], n: int) -> float:
    """KL of the best of n to the policy, in nats, where scores take some values with these probabilities, the
    lowest first.

    The best is of a value with probability b^n - a^n, where a and b are the shares below it and up to it, and
    among equals
    each is as likely as under the policy: KL = Σ (b^n - a^n) log((b^n - a^n) / (b - a)). With ever finer
    values it grows to log n - (n - 1) / n, the formula for scores that never tie, which is an upper bound
    where they do.

    Raises:
        ValueError: shares that don't sum to 1.
    """
    if not math.isclose(sum(shares), 1, abs_tol=1e-9):
        raise ValueError(f"Shares sum to {sum(shares)}; wanted 1")
    total, below = 0.0, 0.0
    for share in shares:
        if share > 0:
            # Best of n independent draws: all at or below this value, less all below it.
            chosen = (below + share) ** n - below**n
            # Values that no draw can choose within a float's precision (share^n is 0) add nothing.
            total += chosen * math.log(chosen / share) if chosen > 0 else 0.0
        below += share
    return total


def kl_of_scores(scores: Sequence[float], n: int) -> float:
    """The same for one prompt, of which answers were drawn and scored.

    Where no two tie, the formula for scores without ties; else values have the shares that they have here,
    which is exact as far as these are.
    """
    # NaN is unequal to itself, so that two unscored answers would count as two values.
    counts = Counter(-math.inf if math.isnan(score) else score for score in scores)
    # No tie among them: the scale is taken as continuous, on which none would ever tie.
    if max(counts.values(), default=1) == 1:
        return math.log(n) - (n - 1) / n
    return best_of_n_kl([counts[score] / len(scores) for score in sorted(counts)], n)
