"""A step is the same however its rows are dealt out: as one batch, accumulated, to two processes or to two
shards, for every task, every objective and PPO.
"""

from __future__ import annotations

import json
from pathlib import Path

import objective_gradients
import private_steps
import pytest
import series_gradients
import task_gradients
from bounds import assert_near, near
from conftest import make_model, make_tokenizer, write_reviews
from covering import covering
from gradients import relative_difference, written
from safetensors.torch import load_file
from test_ppo_trainer import learner, sampled, steps
from test_train import arguments, train
from transformers import AutoModelForSequenceClassification
from two_processes import launched

TASKS, OBJECTIVES = task_gradients.CASES, tuple(objective_gradients.FAMILIES)
# A convolution over thousands of samples sums them in another order for another number of rows.
ROUNDING = {"wav2vec2": 5e-5}


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    rows, model = write_reviews(folder / "rows"), folder / "model"
    make_model("bert", AutoModelForSequenceClassification).save_pretrained(model)
    make_tokenizer("bert").save_pretrained(model)
    half = ("--method", "lora", "--per_device_train_batch_size", "4")
    return launched(folder, arguments(model, rows, folder / "run", *half))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    return {case: task_gradients.step_gradients(*case, "batch", folder) for case in TASKS}


@pytest.fixture(scope="module")
def objectives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objectives")
    return {name: objective_gradients.step_gradients(name, "batch", folder) for name in OBJECTIVES}


@pytest.mark.parametrize(
    ("task", "family", "split"), covering([(*case, s) for case in TASKS for s in ("accumulation", "uneven")])
)
def test_accumulation_changes_no_gradient_of_a_task(tasks, task, family, split, tmp_path):
    parts = task_gradients.step_gradients(task, family, split, tmp_path)
    assert relative_difference(tasks[task, family], parts) < ROUNDING.get(family, 1e-5)


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "contrastive"])
@pytest.mark.parametrize("split", ["accumulation", "uneven"])
def test_accumulation_changes_no_gradient_of_an_objective(objectives, objective, split, tmp_path):
    """But for `contrastive`, whose negatives are the micro-batch: there accumulation is another objective."""
    parts = objective_gradients.step_gradients(objective, split, tmp_path)
    assert relative_difference(objectives[objective], parts) < 1e-5


@pytest.mark.parametrize(("task", "family"), TASKS)
def test_two_processes_change_no_gradient_of_a_task(tasks, two, task, family):
    found = written(two / "task_gradients")[f"{task}/{family}"]
    assert relative_difference(tasks[task, family], found) < ROUNDING.get(family, 1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_processes_change_no_gradient_of_an_objective(objectives, two, objective):
    found = written(two / "objective_gradients")[objective]
    assert relative_difference(objectives[objective], found) < 1e-5


@pytest.mark.parametrize("case", private_steps.TWO, ids="-".join)
def test_two_processes_make_one_private_step(two, case, tmp_path):
    alone = private_steps.on_processes(case, "batch", tmp_path)
    both = written(two / "private_steps")["/".join(case)]
    alone.pop("loss"), both.pop("loss")  # each process tells the loss of its own rows
    assert relative_difference(alone, both) < 1e-6


def test_two_processes_stopped_and_continued_give_ppo_s_updates_of_one(two):
    subject = learner()
    figures = steps(subject, 3)[-1]
    there = load_file(two / "two_learners" / "checkpoint-3" / "trained.safetensors")
    assert_near(there, subject.trained(), 2e-4)
    assert json.loads((two / "two_learners" / "answers").read_text()) == sampled(learner())
    assert near(float((two / "two_learners" / "reward").read_text()), figures["reward"])


def test_shards_are_put_together_saved_and_written_with(two):
    """FSDP2 over gloo: gradients and weights of a model in two shards are those of the whole one."""
    apart = json.loads((two / "two_shards" / "apart.json").read_text())
    assert apart
    assert max(apart.values()) < 1e-5, apart


@pytest.mark.parametrize(("task", "family"), series_gradients.CASES)
def test_two_processes_change_no_gradient_of_a_series(two, task, family, tmp_path):
    found = written(two / "series_gradients")[f"{task}/{family}"]
    assert relative_difference(series_gradients.step_gradients(task, family, "batch", tmp_path), found) < 1e-5


def test_two_processes_train_as_one(two, tmp_path):
    """By `accelerate launch` and this project's file for it."""
    one = train(two / "model", two / "rows", tmp_path / "one", "--method", "lora")
    assert "2 processes" in (two / "said").read_text()
    ours, theirs = (json.loads((run / "metrics.json").read_text()) for run in (one, two / "run"))
    assert ours["steps"] == theirs["steps"]
    assert theirs["accuracy"] == ours["accuracy"]
    assert near(theirs["loss"], ours["loss"], 1e-4)


def test_processes_of_prompts_know_of_each_other(two):
    assert "gives the same bytes" in (two / "said").read_text()
    assert {"0 of 2", "1 of 2"} <= {file.name for file in two.iterdir()}
