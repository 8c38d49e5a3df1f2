"""Bag of words and majority as artefacts: scikit-learn's own answers, and everything that reads a run's
folder."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bounds import assert_near

from finetune.adapters.predictor import load
from finetune.cli.parser import parse
from finetune.errors import InputError
from finetune.methods import MethodArguments
from finetune.metrics.baselines import fitted_bag_of_words
from finetune.training.baselines import check_baseline, fit_baseline

ROOT = Path(__file__).parents[2]


def run_script(name: str, *given: str) -> None:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(*parse(module.main, list(given)))


TEXTS = [
    "A good film, good!", "I loved it: a good story", "the film was awful", "awful, slow and dull",
    "Ärger über die Straße", "good story but slow", "not good", "dull story",
]  # fmt: skip
ASKED = [
    "good film",
    "film good",
    "Über die Straße",
    "!!!",
    "never seen words",
    "a I",
    "good, slow story story",
]


@pytest.mark.parametrize("classes", [2, 3])
def test_answers_are_scikit_learns(classes):
    gold = np.arange(len(TEXTS)) % classes
    fitted = fitted_bag_of_words(TEXTS, gold)
    processor, network = fit_baseline("bag_of_words", TEXTS, gold, classes)
    batch = processor(ASKED, padding=True, return_tensors="pt")
    chances = network(**batch).logits.softmax(-1)
    assert_near(chances, torch.tensor(fitted.predict_proba(ASKED)), 1e-5)
    alone = [network(**processor([text], return_tensors="pt")).logits for text in ASKED]
    assert_near(torch.cat(alone), network(**batch).logits, 1e-5)


def test_majority_says_how_common_classes_are():
    _, network = fit_baseline("majority", TEXTS, np.array([0, 0, 0, 1]), 2)
    assert_near(network(torch.tensor([[2, 2]])).logits.softmax(-1), torch.tensor([[0.75, 0.25]]), 1e-5)


@pytest.mark.parametrize("name", ["bag_of_words", "majority"])
def test_an_artefact_like_any_other(name, review_file, tmp_path):
    folder = str(tmp_path / "run")
    rows = ["--dataset_name", str(review_file)]
    run_script("train", "--model_name_or_path", name, *rows, "--output_dir", folder)
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert figures["accuracy"] > 0.9 if name == "bag_of_words" else figures["accuracy"] == 0.5
    assert "accuracy" in figures["intervals"]
    assert not list((tmp_path / "run").glob("*.pkl")) and (tmp_path / "run" / "model.safetensors").is_file()
    run_script("assess", "--artefact", folder, *rows, "--keep_trained_rows", "true")
    # where no rows are named, those that the run was evaluated on
    run_script("assess", "--artefact", folder, "--output_dir", str(tmp_path / "own"))
    own = json.loads((tmp_path / "own" / "metrics.json").read_text())
    assert (own["accuracy"], own["dataset_name"]) == (figures["accuracy"], str(review_file))
    if name == "bag_of_words":
        answers = load(folder)(["the film was great", "awful"])
        assert [answer["label"] for answer in answers] == ["pos", "neg"]


@pytest.mark.parametrize(
    ("task", "method", "message"),
    [
        ("tokens", {}, r"gives each row one class, and 'tokens' asks.*--task"),
        ("classification", {"method": "bitfit"}, r"leave out --method bitfit"),
        ("classification", {"method_kwargs": '{"r": 2}'}, r"leave out --method"),
    ],
)
def test_what_makes_no_sense_is_refused(task, method, message):
    with pytest.raises(InputError, match=message):
        check_baseline("bag_of_words", task, MethodArguments(**method))


def test_texts_without_words_are_named():
    with pytest.raises(InputError, match=r"bag_of_words can't be fitted: empty vocabulary"):
        fit_baseline("bag_of_words", ["a !", "? b"], np.array([0, 1]), 2)
