"""Baselines of scikit-learn's: what rows of one pattern give, and rows that teach nothing."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.metrics.baselines import (
    bag_of_words,
    composition,
    linear_classes,
    majority,
    nearest_neighbours,
    support_vectors,
)

LABELS = ["neg", "pos"] * 6
# two clouds that no row leaves
VECTORS = np.array([[place + 5.0 * (n % 2), place] for n, place in enumerate(np.linspace(0, 1, 12))])


@pytest.mark.parametrize("learn", [nearest_neighbours, support_vectors])
def test_clouds_apart_are_told_apart(learn):
    said = learn(VECTORS, LABELS, VECTORS[:4], LABELS[:4])
    assert said["accuracy"] == 1.0 and said["interval"][1] == 1.0
    assert learn(VECTORS, LABELS, VECTORS[:4], LABELS[1:5])["accuracy"] == 0.0
    assert learn(VECTORS[:3], ["one"] * 3, VECTORS, LABELS) is None  # a single class is no choice


def test_few_rows_have_few_neighbours():
    assert nearest_neighbours(VECTORS[:2], LABELS[:2], VECTORS, LABELS) is not None


def test_sequences_are_told_by_their_letters():
    proteins = ["AAAAV", "GGGGL", "AVAA", "GLGG"] * 3
    said = composition(proteins, LABELS, ["AAVA", "GGL"], ["neg", "pos"])
    assert said["name"] == "composition + linear" and said["accuracy"] == 1.0
    assert linear_classes("x", (VECTORS, ["one"] * 12), (VECTORS, LABELS)) is None


def test_texts_that_teach_nothing_have_no_bag_of_words():
    assert bag_of_words(["a film"] * 3, ["pos"] * 3, ["a film"], ["pos"]) is None
    assert bag_of_words(["a", "b"] * 3, LABELS[:6], ["a"], ["pos"]) is None  # no word of two letters
    assert bag_of_words(["good film", "dull story"] * 6, LABELS, ["good"], ["neg"])["accuracy"] == 1.0


def test_the_commonest_class_is_that_of_the_training_rows():
    said = majority(["pos", "pos", "neg"], ["neg", "neg", "pos"])
    assert said["name"] == "always “neg”" and said["accuracy"] == pytest.approx(1 / 3)
