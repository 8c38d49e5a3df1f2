"""Figures against scikit-learn and by eye; intervals against resampled rows."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from finetune.metrics import bootstrap, classification

GOLD = np.array([0, 0, 0, 1, 1, 2])
LOGITS = np.eye(3)[[0, 0, 1, 1, 0, 2]]


def test_labels_by_eye():
    figures = classification.class_figures(LOGITS, GOLD, ["a", "b", "c"])
    assert figures["accuracy"] == figures["micro_f1"] == pytest.approx(4 / 6)
    assert figures["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)


def test_classes_and_confusion():
    predicted = LOGITS.argmax(-1)
    assert classification.class_confusion(predicted, GOLD, ["a", "b", "c"]) == [
        [2, 1, 0],
        [1, 1, 0],
        [0, 0, 1],
    ]
    one = classification.per_class(predicted, GOLD, ["a", "b", "c"])["a"]
    assert one == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "rows": 3})


def test_a_class_without_rows_counts_in_macro_f1():
    figures = classification.class_figures(np.eye(3)[[0, 1]], np.array([0, 1]), ["a", "b", "c"])
    assert figures["macro_f1"] == pytest.approx(2 / 3)


def test_interval_of_a_mean_is_that_of_theory():
    values = np.random.default_rng(0).random(400) < 0.8
    low, high = bootstrap.interval(values)
    half = 1.96 * np.sqrt(values.mean() * (1 - values.mean()) / 400)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.006)
    assert bootstrap.interval(values) == (low, high)  # seeded


def test_macro_f1_interval_is_that_of_resampled_rows():
    generator = np.random.default_rng(1)
    gold = generator.integers(0, 3, 150)
    predicted = np.where(generator.random(150) < 0.7, gold, generator.integers(0, 3, 150))
    drawn = [generator.integers(0, 150, 150) for _ in range(400)]
    resampled = [
        f1_score(gold[i], predicted[i], average="macro", labels=[0, 1, 2], zero_division=0) for i in drawn
    ]
    found = bootstrap.macro_f1_interval(predicted, gold, 3)
    assert found == pytest.approx(tuple(np.quantile(resampled, [0.025, 0.975])), abs=0.02)


def test_draws_add_up():
    counts = bootstrap.draws(7, 50, 0)
    assert counts.shape == (50, 7)
    assert (counts.sum(axis=1) == 7).all()
