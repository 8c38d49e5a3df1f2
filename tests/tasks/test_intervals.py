"""Intervals hold what the figures say, and are those of rows resampled one by one."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.metrics import bootstrap, classification
from finetune.tasks import multilabel, regression, tokens
from finetune.tasks.table import TASKS
from finetune.tasks.task import intervals


def answers(pairs):
    return [{"prediction": said, "gold": gold} for said, gold in pairs]


def test_sums_of_all_rows_give_the_figures_themselves():
    said = answers(
        [(["B-A", "I-A", "O"], ["B-A", "I-A", "O"]), (["B-A", "O"], ["B-A", "I-A"]), (["O"], ["B-B"])]
    )
    figures = classification.entity_figures([a["prediction"] for a in said], [a["gold"] for a in said])
    assert bootstrap.f1_figure(tokens.shared_tags(said).sum(axis=0)[None]).item() == pytest.approx(
        figures["f1"]
    )
    numbers = answers([(1.0, 2.0), (2.0, 1.5), (4.0, 4.0), (1000.0, 900.0)])
    wanted = classification.number_figures(
        np.array([[1.0], [2.0], [4.0], [1000.0]]), np.array([2.0, 1.5, 4.0, 900.0])
    )["pearson"]
    assert bootstrap.correlation(regression.moments(numbers).sum(axis=0)[None]).item() == pytest.approx(
        wanted
    )
    labels = answers([(["a", "b"], ["a"]), ([], ["c"])])
    assert bootstrap.f1_figure(multilabel.shared_labels(labels).sum(axis=0)[None]).item() == pytest.approx(
        2 * 1 / (2 + 2)
    )


def test_an_interval_is_that_of_rows_drawn_one_by_one():
    rng = np.random.default_rng(0)
    pairs = [(float(x), float(x + rng.normal())) for x in rng.normal(size=120)]
    low, high = intervals(TASKS["regression"], answers(pairs), {"pearson": 0.7})["pearson"]
    x, y = np.array(pairs).T
    drawn = [np.corrcoef(x[rows], y[rows])[0, 1] for rows in (rng.integers(0, 120, 120) for _ in range(2000))]
    assert [low, high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)


@pytest.mark.parametrize(
    ("task", "pair", "names"),
    [
        ("classification", ("pos", "pos"), {"accuracy"}),
        ("multilabel", (["a"], ["a"]), {"accuracy", "micro_f1"}),
        ("spans", ("the film", ["film"]), {"exact_match", "f1"}),
        ("spans", ("", []), {"exact_match", "f1"}),
        ("seq2seq", ("a film", "a film"), {"rougeL"}),
        ("sft", ("so it is 7", "thus #### 7"), {"answer_accuracy"}),
        ("tokens", (["NN", "VB"], ["NN", "VB"]), {"f1"}),
    ],
)
def test_what_is_right_in_all_of_three_rows_is_not_sure(task, pair, names):
    found = intervals(TASKS[task], answers([pair] * 3), dict.fromkeys(names, 1.0))
    assert found.keys() == names
    for low, high in found.values():
        # means of rows by Clopper and Pearson; a figure of sums over rows can only be resampled
        assert high == 1.0 and low in (pytest.approx(0.025 ** (1 / 3)), 1.0)
    assert any(low < 1 for low, _ in found.values()) or task == "tokens"


def test_nothing_is_said_of_figures_that_are_not_there():
    assert intervals(TASKS["sft"], answers([("a", "b")]), {"token_accuracy": 0.1}) == {}
    assert intervals(TASKS["classification"], [], {"accuracy": 0.1}) == {}
