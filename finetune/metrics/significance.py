"""Two sets of answers to the same rows: how sure is a figure, is one better, or is it chance? Knows arrays;
knows no models.

One procedure gives both p and interval of a difference, so that they never disagree; Holm's correction (1979)
holds the share of false verdicts of a whole family of tests, and widens the intervals with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import beta, binomtest, norm, t

from finetune.metrics.measure import Measure

LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """What two sets of answers to the same rows say.

    Attributes:
        difference: figure of the first less that of the second; low, high: its interval at `level`.
        only_first, only_second: rows that the first, or the second, alone has right, or better.
        p: two-sided, of the test that `test` names; adjusted by Holm where several were made.
        level: of chance, which the verdict and the interval share.
    """

    difference: float
    low: float
    high: float
    only_first: int
    only_second: int
    p: float
    test: str = "McNemar, exact"
    level: float = LEVEL
    adjusted: float | None = None
    error: float = 0.0  # of the difference, where the test goes by it
    rows: int = 0

    @property
    def is_significant(self) -> bool:
        return self.low > 0 or self.high < 0

    def in_words(self) -> str:
        """The verdict as a person says it."""
        p = self.p if self.adjusted is None else self.adjusted
        if not self.is_significant:
            return f"not significant (p = {p:.2g})"
        return f"{'better' if self.difference > 0 else 'worse'} (p = {p:.2g})"

    def at(self, level: float) -> Comparison:
        """The same with the interval at another level."""
        low, high = _bounds(self, level)
        return replace(self, low=low, high=high, level=level)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p that both are right equally often (McNemar 1947, with the binomial distribution)."""
    discordant = only_first + only_second
    return 1.0 if discordant == 0 else float(binomtest(only_first, discordant, 0.5).pvalue)


def _bounds(found: Comparison, level: float) -> tuple[float, float]:
    """The interval that excludes 0 just where the test's p is below `level`."""
    if found.test == "McNemar, exact":
        one, other = found.only_first, found.only_second
        many = one + other
        if many == 0:  # what could be there and not have been seen in so many rows
            # What could be there and not have been seen: the share whose chance of no sight is `level`.
            unseen = 1 - level ** (1 / max(found.rows, 1))
            return -unseen, unseen
        # Clopper and Pearson's interval of the share among rows that one alone has right
        low = float(beta.ppf(level / 2, one, other + 1)) if one else 0.0
        high = float(beta.ppf(1 - level / 2, one + 1, other)) if other else 1.0
        return (2 * low - 1) * many / found.rows, (2 * high - 1) * many / found.rows
    wide = (
        t.ppf(1 - level / 2, found.rows - 1)
        if found.test == "paired t" and found.rows > 1
        else norm.ppf(1 - level / 2)
    )
    return found.difference - wide * found.error, found.difference + wide * found.error


def compare(first: Measure, second: Measure, drawn: np.ndarray) -> Comparison:
    """One figure of two sets of answers to the same rows → whether the difference is more than chance.

    Right or wrong by McNemar's exact test, means by the paired t-test, other figures by the bootstrap's
    standard error.

    Args:
        drawn: bootstrap samples [samples, rows], as metrics.draws gives them; many pairs can share them.

    Raises:
        ValueError: answers to different numbers of rows, or to none.
    """
    rows = len(first.counts)
    if rows != len(second.counts) or not rows:
        raise ValueError(
            f"Got answers to {rows} and {len(second.counts)} rows; wanted the same rows, and one at least"
        )
    difference, one, other = first.value - second.value, 0, 0
    if first.is_mean and second.is_mean:
        each = first.each - second.each
        one, other = int((each > 0).sum()), int((each < 0).sum())
    # Right or wrong: the exact test needs no normal distribution.
    if first.is_binary and second.is_binary:
        found = Comparison(difference, 0, 0, one, other, mcnemar(one, other), rows=rows)
        return found.at(LEVEL)
    if first.is_mean and second.is_mean:
        test, error = "paired t", float(each.std(ddof=1) / np.sqrt(rows)) if rows > 1 else float("inf")
        apart = abs(difference) / error if error > 0 else (np.inf if difference else 0.0)
        p = float(2 * t.sf(apart, rows - 1)) if rows > 1 else 1.0
    else:
        test, error = "bootstrap", float(np.std(first.values(drawn) - second.values(drawn), ddof=1))
        # A figure of sums has no score a row; its error is that of the samples, drawn alike for both.
        apart = abs(difference) / error if error > 0 else (np.inf if difference else 0.0)
        p = float(2 * norm.sf(apart))
    return Comparison(difference, 0, 0, one, other, p, test, LEVEL, None, error, rows).at(LEVEL)


def holm(found: Sequence[Comparison], level: float = LEVEL) -> list[Comparison]:
    """A family of comparisons with p adjusted for their number (Holm 1979), and intervals as wide as the
    verdicts need."""
    order = sorted(range(len(found)), key=lambda i: found[i].p)
    made: dict[int, Comparison] = {}
    reached, stopped = 0.0, None
    for rank, index in enumerate(order):
        # The smallest p against the strictest share; the rest against what is left (Holm).
        share = level / (len(found) - rank)
        # Once one isn't significant none after it is, whatever its own share says.
        if stopped is None and found[index].p >= share:
            stopped = share
        # Never below one before: the order of p stays.
        reached = max(reached, min(1.0, found[index].p * (len(found) - rank)))
        made[index] = replace(found[index].at(stopped or share), adjusted=reached)
    return [made[index] for index in range(len(found))]


def rows_needed(first: Measure, second: Measure, size: float, power: float = 0.8) -> int:
    """Rows on which a difference of this size would be found with this power, from how far the two differ row
    by row.

    Of right and wrong, the variance of the difference is the share of rows that one alone has right (Connor
    1987).
    """
    each = first.each - second.each if first.is_mean and second.is_mean else None
    # A quarter: the variance of right and wrong where both are as many.
    spread = float(each.var()) if each is not None and len(each) else 0.25
    spread = max(spread, size * (1 - size), 1e-6)  # the difference itself needs rows that differ
    wide = norm.ppf(1 - LEVEL / 2) + norm.ppf(power)
    return int(np.ceil(wide**2 * spread / size**2))
