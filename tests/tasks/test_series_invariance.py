"""A step on series is the same however its windows are dealt out, and figures are the same in batches of
any size: errors are sums and counts, and no last batch is left out.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bounds import assert_near
from gradients import relative_difference
from series_gradients import BOUND, CASES, prepared, step_gradients

from finetune.metrics.forecasts import seasonal_naive
from finetune.tasks.task import Asked
from finetune.training.options import TrainingArguments
from finetune.training.run import all_intervals
from finetune.training.trainer import by_length, make_trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return {case: step_gradients(*case, "batch", folder) for case in CASES}


@pytest.mark.parametrize(("task", "family"), CASES)
def test_accumulation_changes_no_gradient(whole, task, family, tmp_path):
    assert relative_difference(whole[task, family], step_gradients(task, family, "uneven", tmp_path)) < 1e-5


def evaluated(size: int, folder, case: tuple[str, str]):
    row, processor, network, found, features = prepared(*case)
    training = TrainingArguments(
        output_dir=str(folder), per_device_eval_batch_size=size, bf16=False, disable_tqdm=True
    )
    asked = Asked(found.rows.eval, found.columns, by_length(features["eval"]), found.labels)
    held = asked.rows.select(sorted(set(asked.features["row"][:])))
    asked = Asked(held, asked.columns, asked.features, asked.labels)
    trainer = make_trainer(
        row, network, processor, training, {"eval": features["eval"]}, labels=found.labels,
        answer=lambda kept, model: row.read(kept, asked),
    )  # fmt: skip
    figures = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}
    return figures, trainer, asked


# windows and batches are dealt out alike for all: families of one kind of layer, and of batch-bound attention
OFTEN = {
    ("forecast", "patchtst"),
    ("forecast", "dlinear"),
    ("forecast", "informer/prob"),
    ("series", "patchtst"),
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if case in OFTEN else (pytest.mark.slow,))
        for case in (*CASES, *(("forecast", family) for family in BOUND))
    ],
)
def test_figures_are_the_same_at_any_batch_size(case, tmp_path):
    wanted, _, asked = evaluated(1, tmp_path, case)
    names = {"forecast": ("mse", "mae", "loss"), "series": ("accuracy", "loss")}[case[0]]
    count = 41 if case[0] == "forecast" else 6
    assert len(asked.features) == count  # every place with 16 steps before and 4 after it
    for size in (32, 1024):  # 32 leaves a last batch of 9
        found, trainer, _ = evaluated(size, tmp_path, case)
        assert len(trainer.answers) == count
        for name in names:
            assert abs(found[name] - wanted[name]) < 1e-6, name


def test_figures_are_those_of_a_loop_over_windows(tmp_path):
    """By hand: every window's forecast beside what came, on the scale of the training rows."""
    figures, trainer, asked = evaluated(7, tmp_path, ("forecast", "dlinear"))
    _, _, network, found, _ = prepared("forecast", "dlinear")
    train, held = (
        np.stack([np.asarray(part[name]) for name in ("load", "heat")], axis=1)
        for part in (found.rows.train, found.rows.eval)
    )
    values = (held - train.mean(axis=0)) / train.std(axis=0)
    squares, absolutes = [], []
    for origin in range(16, 57):
        past = torch.tensor(values[origin - 16 : origin], dtype=torch.float32)[None]
        with torch.no_grad():
            said = network.eval()(past)["prediction_outputs"][0].numpy()
        off = said - values[origin : origin + 4]
        squares.append((off**2).mean())
        absolutes.append(np.abs(off).mean())
    assert_near([figures["mse"], figures["mae"]], [np.mean(squares), np.mean(absolutes)])
    assert_near([answer["mse"] for answer in trainer.answers], squares)
    bounds = all_intervals(trainer, asked, figures)
    for name in ("mse", "mae"):
        low, high = bounds[name]
        assert low < figures[name] < high
    details = trainer.row.details(trainer.answers, None)["per_channel"]
    assert_near((details["load"]["mse"] + details["heat"]["mse"]) / 2, np.mean(squares))


def test_the_baseline_is_scored_on_the_same_windows():
    row, _, _, found, _ = prepared("forecast", "dlinear")
    (naive,) = row.baselines(found)
    train, held = (
        np.stack([np.asarray(part[name]) for name in ("load", "heat")], axis=1)
        for part in (found.rows.train, found.rows.eval)
    )
    values = (held - train.mean(axis=0)) / train.std(axis=0)
    sums = seasonal_naive(values, np.arange(16, 57), 4, 16)  # a day of hours would begin before the window
    assert naive["name"] == "seasonal naive (16)"
    assert_near(naive["mse"], sums[..., 0].sum() / (41 * 2 * 4))
    assert naive["interval"][0] < naive["mse"] < naive["interval"][1]


def test_dealt_out_windows_are_different_where_a_model_normalises_over_them(tmp_path, caplog):
    """What the log says of batch normalisation is so."""
    from series_gradients import FAMILIES

    own = FAMILIES["patchtst"].pop("norm_type")
    try:
        one = step_gradients("forecast", "patchtst", "batch", tmp_path)
        other = step_gradients("forecast", "patchtst", "uneven", tmp_path)
    finally:
        FAMILIES["patchtst"]["norm_type"] = own
    assert relative_difference(one, other) > 1e-3
    assert "normalises over the windows of a micro-batch" in caplog.text
