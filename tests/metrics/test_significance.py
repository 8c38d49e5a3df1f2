"""Figures with intervals, and tests between answers: by eye, and beside scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import f1_score, matthews_corrcoef

from finetune.metrics import bootstrap
from finetune.metrics.bootstrap import draws
from finetune.metrics.significance import compare, holm, mcnemar
from prompts.study.measures import Measure, mean_of, of_labels


@pytest.mark.parametrize(("one", "other"), [(12, 3), (5, 5), (0, 0), (1, 9)])
def test_mcnemar_is_scipys_binomial_test(one: int, other: int) -> None:
    expected = binomtest(one, one + other, 0.5).pvalue if one + other else 1.0
    assert mcnemar(one, other) == pytest.approx(expected)


def binary(*parts: tuple[bool, int]) -> Measure:
    return mean_of(np.array([value for value, times in parts for _ in range(times)]))


def test_comparisons_say_it_in_words() -> None:
    drawn = draws(100, 2000, 0)
    first, second = binary((True, 60), (False, 40)), binary((True, 58), (False, 42))
    near = compare(first, second, drawn)
    assert near.difference == pytest.approx(0.02) and (near.only_first, near.only_second) == (2, 0)
    assert near.in_words().startswith("not significant (p = 0.5)") and near.low <= 0.02 <= near.high
    none = binary((False, 100))
    assert compare(first, none, drawn).in_words().startswith("better")
    assert compare(none, first, drawn).in_words().startswith("worse")
    with pytest.raises(ValueError, match="wanted the same rows"):
        compare(first, binary((True, 5)), drawn)


@pytest.mark.parametrize("kind", ["binary", "mean", "macro_f1"])
def test_interval_and_verdict_never_disagree(kind: str) -> None:
    generator = np.random.default_rng(0)
    drawn = draws(60, 500, 0)
    found = []
    for _ in range(60):
        gold, lift = generator.integers(0, 2, 60), generator.random() * 0.4
        said = [np.where(generator.random(60) < share, gold, 1 - gold) for share in (0.5 + lift, 0.5)]
        if kind == "binary":
            pair = [mean_of(one == gold) for one in said]
        elif kind == "mean":
            pair = [mean_of((one == gold) * 0.7 + generator.random(60) * 0.3) for one in said]
        else:
            pair = [of_labels(one, gold, 2)["macro_f1"] for one in said]
        found.append(compare(pair[0], pair[1], drawn))
    for one in found:
        assert (one.low > 0 or one.high < 0) == (one.p < 0.05) == one.is_significant
        assert one.low <= one.difference <= one.high
    corrected = holm(found)
    assert {one.is_significant for one in corrected} == {True, False}
    for before, after in zip(found, corrected, strict=True):
        # type: ignore[operator]
        assert (after.adjusted < 0.05) == after.is_significant and after.adjusted >= before.p
        assert after.low <= before.low and after.high >= before.high


def test_figures_of_labels_are_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    gold, said = generator.integers(0, 3, 200), generator.integers(0, 3, 200)
    found = of_labels(said, gold, 3)
    assert found["accuracy"].value == pytest.approx((gold == said).mean())
    assert found["macro_f1"].value == pytest.approx(f1_score(gold, said, average="macro"))
    assert found["matthews"].value == pytest.approx(matthews_corrcoef(gold, said))
    rows = generator.integers(0, 200, 200)  # one bootstrap sample, by its counts
    drawn = np.bincount(rows, minlength=200)[None]
    assert found["matthews"].values(drawn)[0] == pytest.approx(matthews_corrcoef(gold[rows], said[rows]))
    assert found["macro_f1"].values(drawn)[0] == pytest.approx(
        f1_score(gold[rows], said[rows], average="macro")
    )
    silent = said.copy()
    silent[:50] = -1  # no answer is a wrong one
    assert of_labels(silent, gold, 3)["accuracy"].value == pytest.approx((gold == silent).mean())
    assert of_labels(silent, gold, 3)["matthews"].value == pytest.approx(
        matthews_corrcoef(gold, silent), abs=0.02
    )


@pytest.mark.parametrize(
    ("right", "wanted"), [(1.0, (0.025 ** (1 / 34), 1.0)), (0.0, (0.0, 1 - 0.025 ** (1 / 34)))]
)
def test_rows_that_are_all_alike_leave_a_doubt(right, wanted):
    rows = np.full(34, right)
    assert bootstrap.interval(rows) == pytest.approx(wanted)
    assert mean_of(rows).interval(bootstrap.draws(34, 100, 0)) == pytest.approx(wanted)
    # other means than a share have none to add
    assert bootstrap.interval(rows + 2) == (right + 2, right + 2)
    assert bootstrap.alike_interval(np.array([1.0, 0.0])) is None
