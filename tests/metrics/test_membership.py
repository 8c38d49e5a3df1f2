"""How well members are told from others: figures by hand, intervals that cover, scores that find."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from finetune.metrics.membership import (
    auc,
    auc_interval,
    edit_distance,
    exposure,
    least_likely,
    likelihood_ratios,
    logit_of_loss,
    told_apart,
    true_positives,
)


def test_auc_by_hand_and_as_scikit_learn_has_it():
    assert auc(np.array([2.0, 3.0]), np.array([1.0, 2.0])) == (1 + 0.5 + 1 + 1) / 4
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 9, 40).astype(float), rng.integers(0, 7, 60).astype(float)
    wanted = roc_auc_score([1] * 40 + [0] * 60, np.concatenate([members, others]))
    assert auc(members, others) == pytest.approx(wanted)


def test_true_positives_allow_a_share_of_false_ones():
    others = np.arange(100.0)
    members = np.array([97.5, 98.5, 99.5, 3.0])
    assert true_positives(members, others, 0.01) == 0.5  # above 98: one of a hundred others is, 99
    assert true_positives(members, others, 0.0) == 0.25
    assert true_positives(members, others[:50], 0.01) == 0.75


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_intervals_cover(shift):
    rng = np.random.default_rng(1)
    wanted = 0.5 * math.erfc(-shift / 2)  # of two normals of one deviation
    inside = 0
    for _ in range(300):
        low, high = auc_interval(rng.normal(shift, 1, 60), rng.normal(0, 1, 80))
        inside += low <= wanted <= high
    assert 0.91 < inside / 300 < 0.99


def test_all_above_all_is_no_certainty():
    low, high = auc_interval(np.ones(30), np.zeros(30))
    assert low == pytest.approx(0.9) and high == 1.0
    found = told_apart(np.ones(200), np.zeros(200), samples=50)
    assert found["auc"] == found["tpr"] == 1.0 and found["tpr_interval"] == [1.0, 1.0]


def test_likelihood_ratios_find_what_a_bare_loss_does_not():
    """Rows that are hard or easy for everybody, a little easier for who was trained on them."""
    rng = np.random.default_rng(2)
    rows, shadows = 400, 8
    hardness = rng.normal(0, 3, rows)
    inside = np.argsort(rng.random((shadows, rows)), axis=0) < shadows // 2
    member = np.arange(rows) < rows // 2

    def losses(known: np.ndarray) -> np.ndarray:
        return np.log1p(np.exp(-(hardness + 1.5 * known + rng.normal(0, 0.5, known.shape))))

    own = losses(member)
    scores = likelihood_ratios(own, losses(inside), inside)
    assert auc(scores[member], scores[~member]) > 0.95
    assert auc(-own[member], -own[~member]) < 0.75
    unknown = losses(np.zeros(rows, dtype=bool))
    assert auc(*np.split(likelihood_ratios(unknown, losses(inside), inside), 2)) == pytest.approx(
        0.5, abs=0.1
    )


def test_logits_of_losses():
    assert logit_of_loss(np.array([math.log(2)])) == pytest.approx([0.0])
    assert np.isfinite(logit_of_loss(np.array([0.0, 50.0]))).all()


def test_the_least_likely_items_count():
    found = least_likely([np.array([1.0, 5.0, 2.0, 4.0, 3.0]), np.array([7.0])], share=0.4)
    assert found.tolist() == [-4.5, -7.0]


def test_exposure_is_the_rank_in_bits():
    candidates = np.arange(1.0, 1024.0)
    assert exposure(0.5, candidates) == 10.0  # first of 1024
    assert exposure(2000.0, candidates) == 0.0
    assert exposure(512.5, candidates) == pytest.approx(1.0, abs=0.01)


def test_edit_distance_by_hand():
    pairs = (("kitten", "sitting"), ("", "abc"), ("abc", "abc"), ("ab", "ba"))
    assert [edit_distance(*pair) for pair in pairs] == [3, 3, 0, 2]
