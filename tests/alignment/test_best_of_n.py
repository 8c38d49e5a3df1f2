"""The best of n and its distance from the policy: against sums over all cases, and against the
formula where nothing ties.
"""

from __future__ import annotations

import itertools
import math

import pytest

from finetune.alignment.best_of_n import best_of_n_kl, favourite, kl_of_scores


def counted(shares: list[float], n: int) -> float:
    """The same from all draws of n values: the best of each, and the KL of its distribution."""
    best = [0.0] * len(shares)
    for draw in itertools.product(range(len(shares)), repeat=n):
        best[max(draw)] += math.prod(shares[value] for value in draw)
    return sum(b * math.log(b / p) for b, p in zip(best, shares, strict=True) if b > 0)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("shares", [[0.9, 0.1], [0.5, 0.5], [0.2, 0.3, 0.1, 0.4], [1.0]])
def test_kl_where_scores_tie(shares, n):
    assert best_of_n_kl(shares, n) == pytest.approx(counted(shares, n), abs=1e-12)


def test_zero_and_one_at_two():
    assert best_of_n_kl([0.9, 0.1], 2) == pytest.approx(0.037, abs=5e-4)
    assert math.log(2) - 1 / 2 == pytest.approx(
        0.193, abs=5e-4
    )  # what the formula for scores without ties says


def test_finer_values_lead_to_the_formula():
    assert best_of_n_kl([1e-4] * 10**4, 4) == pytest.approx(math.log(4) - 3 / 4, abs=1e-3)


def test_kl_of_drawn_scores():
    assert kl_of_scores([0.1, 0.7], 2) == pytest.approx(math.log(2) - 1 / 2)
    assert kl_of_scores([0.0, 0.0], 2) == 0
    assert kl_of_scores([0.0, 1.0, 0.0, 0.0], 4) == pytest.approx(counted([0.75, 0.25], 4))


def test_shares_sum_to_one():
    with pytest.raises(ValueError, match="wanted 1"):
        best_of_n_kl([0.5, 0.4], 2)


@pytest.mark.parametrize("offset", [-100.0, -6.0, 0.0, 1.0, 50.0])
def test_an_empty_answer_is_no_favourite(offset):
    assert favourite(["", "a", "b"], [offset + 9, offset, offset + 1]) == "b"
    assert favourite(["a", "b", "c"], [math.nan, offset, offset]) == "b"
    assert favourite(["", ""], [math.nan, math.nan]) == ""
