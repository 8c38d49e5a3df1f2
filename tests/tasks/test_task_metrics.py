"""Figures of tags, numbers, sets of labels and choices, against cases counted by hand and against the
libraries.
"""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset, Features, List, Value
from scipy import stats
from seqeval.metrics import classification_report
from seqeval.scheme import IOB2
from sklearn.metrics import f1_score

from finetune.data.sources import DataArguments, Rows
from finetune.metrics import classification
from finetune.tasks import tokens


def test_entities_counted_by_hand():
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG", "O"]]
    said = [["B-PER", "I-PER", "O", "B-PER"], ["O", "B-ORG", "I-ORG"]]
    # three entities wanted, three said, one of them right in type and both ends
    figures = classification.entity_figures(said, gold)
    assert (figures["precision"], figures["recall"], figures["f1"]) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert figures["per_type"]["LOC"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "entities": 1}
    assert figures["per_type"]["PER"]["f1"] == pytest.approx(2 / 3)


def test_entities_equal_seqeval_strict():
    rng = np.random.default_rng(0)
    tags = ["O", "B-A", "I-A", "B-B", "I-B"]
    gold = [[tags[i] for i in rng.integers(0, 5, 12)] for _ in range(30)]
    said = [[tag if rng.random() < 0.8 else tags[rng.integers(0, 5)] for tag in row] for row in gold]
    report = classification_report(gold, said, mode="strict", scheme=IOB2, output_dict=True, zero_division=0)
    figures = classification.entity_figures(said, gold)
    for key, name in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
        assert figures[key] == pytest.approx(report["micro avg"][name])
        assert figures["per_type"]["A"][key] == pytest.approx(report["A"][name])


def test_an_entity_that_starts_inside_is_none():
    assert classification.entity_figures([["O", "I-PER"]], [["O", "B-PER"]])["f1"] == 0
    assert classification.entity_figures([["O"]], [["O"]]) == {
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "per_type": {},
    }


def test_tag_accuracy_leaves_unlabelled_places_out():
    logits = np.eye(3)[[[0, 1, 2], [2, 2, 0]]]
    assert classification.tag_accuracy(logits, np.array([[0, 1, -100], [0, 2, -100]])) == {"accuracy": 0.75}


def test_correlations_equal_scipys():
    rng = np.random.default_rng(0)
    gold = rng.normal(size=50).round(1)
    said = (gold + rng.normal(size=50)).round(1)
    figures = classification.number_figures(said[:, None], gold)
    assert figures["pearson"] == pytest.approx(stats.pearsonr(said, gold)[0])
    assert figures["spearman"] == pytest.approx(stats.spearmanr(said, gold)[0])
    assert classification.number_figures(np.array([[1.0], [3.0]]), np.array([2.0, 2.0])) == {
        "pearson": 0.0,
        "spearman": 0.0,
        "mse": 1.0,
        "mae": 1.0,
    }


def test_sets_of_labels_counted_by_hand():
    logits = np.array([[2.0, -1.0, 3.0], [-2.0, 0.5, -0.1], [-1.0, -1.0, -1.0]])
    gold = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    figures = classification.label_set_figures(logits, gold, ["a", "b", "c"])
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["micro_f1"] == pytest.approx(2 * 3 / (2 * 3 + 1))  # three hits, one miss, no false alarm
    assert figures["macro_f1"] == pytest.approx(f1_score(gold > 0, logits > 0, average="macro"))
    assert figures["label_accuracy"] == pytest.approx(8 / 9)


def test_a_set_of_one_label_has_the_f1_of_that_label():
    figures = classification.label_set_figures(
        np.array([[1.0], [1.0], [-1.0], [-1.0]]), np.array([[1.0], [0.0], [0.0], [0.0]]), ["a"]
    )
    assert figures["macro_f1"] == figures["micro_f1"] == pytest.approx(2 / 3) and figures["accuracy"] == 0.75


def test_choices_with_fewer_offered():
    # filled up with -1e9 in a batch, with -100 where batches are put together
    logits = np.array([[-101.0, -102.0, -1e9, -100.0], [0.0, 1.0, 5.0, 2.0]])
    assert classification.choice_figures(logits, np.array([0, 3])) == {
        "accuracy": 0.5,
        "chance": (1 / 2 + 1 / 4) / 2,
    }


def test_next_tokens_are_counted_over_all_rows():
    gold = np.array([[4, 5, -100], [6, -100, -100]])
    assert classification.token_figures(np.array([1, 1]), gold) == {"token_accuracy": pytest.approx(2 / 3)}


def test_the_commonest_tag_of_each_word_is_a_baseline():
    feature = Features({"tokens": List(Value("string")), "tags": List(Value("string"))})
    train = [
        (["Anna", "runs", "to", "Rome"], ["B-PER", "O", "O", "B-LOC"]),
        (["Rome", "wins"], ["B-ORG", "O"]),
        (["to", "Rome"], ["O", "B-LOC"]),
    ]
    held = [(["Anna", "likes", "Rome"], ["B-PER", "O", "B-LOC"]), (["Rome", "wins"], ["B-ORG", "O"])]
    parts = [
        Dataset.from_list([{"tokens": words, "tags": tags} for words, tags in rows], features=feature)
        for rows in (train, held)
    ]
    found = tokens.examine(Rows(*parts, "rows"), DataArguments("rows"))
    (one,) = tokens.baselines(found)
    # Anna and the first Rome are right, the second Rome is a place again: two of three said and wanted
    assert one["f1"] == pytest.approx(2 / 3) and one["interval"][0] <= 2 / 3 <= one["interval"][1]
