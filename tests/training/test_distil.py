"""A student learns from a teacher's logits: the loss by eye, exact over any batches; refusals by name."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from bounds import assert_near
from conftest import make_model, make_tokenizer, write_reviews
from safetensors.torch import load_file
from test_train import train
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from finetune.adapters import load
from finetune.errors import InputError
from finetune.training.distil import DistilArguments, soft_cross_entropy, taught_by


def test_the_loss_by_eye():
    # the teacher says 3 : 1 and the student 1 : 1: 0.75 ln 1.5 + 0.25 ln 0.5
    taught, said = torch.tensor([[3.0, 1.0]]).log(), torch.tensor([[1.0, 1.0]]).log()
    wanted = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()
    assert_near(soft_cross_entropy(said, taught, torch.tensor([0]), 1.0), wanted[None])
    # at temperature 2 the odds are their roots, and the whole counts four times
    cool = soft_cross_entropy(said, 2 * taught, torch.tensor([0]), 2.0)
    assert_near(cool, 4 * wanted[None])
    assert_near(soft_cross_entropy(taught, taught, torch.tensor([1]), 3.0), torch.zeros(1))


def test_gradients_keep_their_size_at_any_temperature():
    """Of logits far below the temperature it is (z - v) / classes, whatever the temperature (section 2.1)."""
    taught = torch.randn(5, 4) * 0.01
    taught -= taught.mean(-1, keepdim=True)
    for temperature in (1.0, 5.0, 50.0):
        said = torch.zeros(5, 4, requires_grad=True)
        soft_cross_entropy(said, taught, torch.zeros(5, dtype=torch.long), temperature).sum().backward()
        assert_near(said.grad, -taught / 4, 0.03)


def test_places_without_label_count_for_nothing():
    said, taught = torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    labels = torch.tensor([[1, -100, 2], [-100, -100, 4]])
    found = soft_cross_entropy(said, taught, labels, 2.0)
    each = [
        soft_cross_entropy(said[:, place], taught[:, place], labels[:, place].clamp(min=0), 2.0)
        for place in range(3)
    ]
    assert_near(found, torch.stack([each[0][0] + each[2][0], each[2][1]]))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    make_model("bert", AutoModelForSequenceClassification, seed=1).save_pretrained(folder / "model")
    make_tokenizer("bert").save_pretrained(folder / "model")
    rows = write_reviews(folder / "rows")
    return train(folder / "model", rows, folder / "run", "--method", "full", "--num_train_epochs", "8")


def test_a_student_learns_what_its_teacher_says(saved, review_file, tmp_path, teacher):
    """Of the teacher alone: with the labels turned round in the student's file it still learns the teacher's
    answers, and comes nearer to its logits than by the labels."""
    turned = tmp_path / "turned"
    turned.mkdir()
    for split in ("train", "test"):
        rows = [json.loads(line) for line in (review_file / f"{split}.jsonl").read_text().splitlines()]
        for row in rows:
            row["label"] = {"neg": "pos", "pos": "neg"}[row["label"]]
        (turned / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = saved("bert", AutoModelForSequenceClassification)
    student = train(
        source, turned, tmp_path / "student", "--method", "full", "--num_train_epochs", "8",
        "--teacher", str(teacher), "--distil_weight", "1",
    )  # fmt: skip
    texts = ["the film was great", "awful story", "it is a great actor", "the awful film"]
    theirs, mine = load(teacher), load(student)
    assert [a["label"] for a in mine(texts)] == [a["label"] for a in theirs(texts)]
    assert json.loads((student / "metrics.json").read_text())["accuracy"] < 0.3  # the labels are turned round


@pytest.mark.parametrize("weight", ["1", "0.4"])
def test_steps_are_the_same_in_any_batches(saved, review_file, tmp_path, teacher, weight):
    source = saved("bert", AutoModelForSequenceClassification)
    options = ("--method", "full", "--max_steps", "3", "--teacher", str(teacher), "--distil_weight", weight)
    whole = train(source, review_file, tmp_path / "whole", *options)
    parts = train(
        source, review_file, tmp_path / "parts", *options, "--per_device_train_batch_size", "2",
        "--gradient_accumulation_steps", "4",
    )  # fmt: skip
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, parts))
    assert_near(second, first, 1e-3)
    plain = load_file(train(source, review_file, tmp_path / "plain", *options[:4]) / "model.safetensors")
    assert any(not torch.allclose(plain[name], first[name], atol=1e-4) for name in first)


def test_a_language_model_learns_its_teachers_tokens(saved, tmp_path):
    rows = tmp_path / "texts"
    rows.mkdir()
    lines = [{"prompt": "the film", "completion": " was great and it was fine"}] * 6
    for split in ("train", "test"):
        (rows / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = ("--task", "sft", "--method", "full", "--max_target_length", "8")
    big = train(saved("llama", AutoModelForCausalLM, seed=1), rows, tmp_path / "teacher", *options)
    small = saved("llama", AutoModelForCausalLM)
    further = ("--keep_layers", "1", "--teacher", str(big), "--distil_temperature", "3")
    run = train(small, rows, tmp_path / "student", *options, *further)
    assert json.loads((run / "config.json").read_text())["num_hidden_layers"] == 1
    other = saved("gpt2", AutoModelForCausalLM)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["loved"], tokenizer["model"]["vocab"]["hated"] = (
        tokenizer["model"]["vocab"]["hated"], tokenizer["model"]["vocab"]["loved"],
    )  # fmt: skip
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="has another tokenizer than the student"):
        train(other, rows, tmp_path / "no", *options, "--teacher", str(big))


def test_what_cannot_teach_is_named(saved, review_file, tmp_path, teacher):
    source = saved("bert", AutoModelForSequenceClassification)
    with pytest.raises(InputError, match="is no artefact"):
        train(source, review_file, tmp_path / "a", "--teacher", str(tmp_path / "nowhere"))
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    (other / "labels.json").write_text('["bad", "good"]')
    with pytest.raises(InputError, match="tells bad, good apart, and the rows have neg, pos"):
        train(source, review_file, tmp_path / "b", "--teacher", str(other))
    assert not (tmp_path / "b").exists()  # refused before the folder is made
    with pytest.raises(InputError, match="--teacher with --epsilon"):
        taught_by(lambda *given: torch.zeros(1), DistilArguments("x"), {"mechanism": None})
    for given, said in (
        ({"distil_temperature": 0.0, "teacher": "x"}, "wanted a number above 0"),
        ({"distil_temperature": float("inf"), "teacher": "x"}, "wanted a number above 0"),
        ({"distil_weight": 0.0, "teacher": "x"}, "wanted a share above 0"),
        ({"distil_temperature": 4.0}, "is for a --teacher"),
    ):
        with pytest.raises(InputError, match=said):
            DistilArguments(**given)
