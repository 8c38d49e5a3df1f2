"""What users mistype, and runs that stop at odd places: said before training, nothing ignored,
nothing lost.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_train_tasks import chats, figures, run  # noqa: F401
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, TrainerCallback

from finetune.cli.parser import parse_into
from finetune.errors import InputError
from finetune.training import trainer as trainers
from finetune.training.options import TrainingArguments, settled

QUIET = "--method full --bf16 false --max_length 32 --num_train_epochs 1"


def settings(**given: object) -> TrainingArguments:
    return TrainingArguments(output_dir="x", bf16=False, **given)


@pytest.mark.parametrize(
    ("given", "patience", "metric", "greater"),
    [
        ({}, 2, "f1", True),
        ({"load_best_model_at_end": True}, None, "f1", True),
        ({"save_strategy": "best"}, None, "f1", True),
        ({"load_best_model_at_end": True, "metric_for_best_model": "loss"}, None, "loss", False),
        ({"metric_for_best_model": "eval_mse"}, 2, "eval_mse", False),
        ({"metric_for_best_model": "perplexity"}, 2, "perplexity", False),
        ({"metric_for_best_model": "accuracy"}, 2, "accuracy", True),
        ({"metric_for_best_model": "length_ratio", "greater_is_better": False}, 2, "length_ratio", False),
    ],
)
def test_the_best_model_is_told_by_the_figure_that_was_named(given, patience, metric, greater):
    for found in (
        settled(settings(**given), 1e-3, "f1", patience),
        settled(settled(settings(**given), 1e-3, "f1", patience), 1.0, "f1"),
    ):
        assert (found.metric_for_best_model, found.greater_is_better) == (metric, greater)
    assert settled(settings(), 1e-3, "f1").metric_for_best_model is None
    assert settled(settings(load_best_model_at_end=True), 1e-3, "loss").greater_is_better is False


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataloader_drop_last", True),
        ("train_sampling_strategy", "sequential"),
        ("auto_find_batch_size", True),
    ],
)
def test_options_of_other_loaders_are_none_here(name, value, tmp_path):
    with pytest.raises(InputError, match=f"--{name} has no effect here"):
        parse_into([TrainingArguments], [f"--{name}", str(value), "--output_dir", "x"])
    recipe = tmp_path / "arguments.yaml"  # of an earlier version, which listed them all
    recipe.write_text(f"{name}: {json.dumps(vars(TrainingArguments)[name])}\noutput_dir: x\n")
    (found,) = parse_into([TrainingArguments], ["--config", str(recipe)])
    assert found.output_dir == "x"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_steps": 0}, "wanted 1 or more, or none"),
        ({"seed": 2**32}, "wanted a number below 4294967296"),
        ({"fsdp": "full_shard"}, "this is one"),
        ({"report_to": "wandb"}, "requires wandb to be installed"),
    ],
)
def test_options_that_cannot_work_here_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        settings(**given)


def test_a_figure_that_is_not_there_is_said_before_the_training(saved, review_file, tmp_path):
    common = (
        "--model_name_or_path",
        saved("bert", AutoModel),
        "--dataset_name",
        review_file,
        "--output_dir",
        tmp_path / "run",
    )
    with pytest.raises(
        InputError, match=r"No figure 'acuracy' .* there are: loss, accuracy, .*--metric_for_best_model"
    ):
        run(
            "train",
            QUIET,
            *common,
            "--early_stopping_patience 1 --metric_for_best_model acuracy --logging_steps 1",
        )
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    with pytest.raises(InputError, match="Got --early_stopping_patience 0; wanted 1 or more"):
        run("train", QUIET, *common, "--early_stopping_patience 0")


@pytest.fixture
def texts(tmp_path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for split in ("train", "validation"):
        lines = [{"source": "the film was " * n, "target": "good " * n} for n in range(1, 9)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ('{"lenght_penalty": 1}', "Generation knows no lenght_penalty"),
        ('{"num_return_sequences": 2, "num_beams": 2}', "one text for each source"),
        ('{"num_beams": "two"}', "a number for num_beams"),
    ],
)
def test_ways_to_write_that_cannot_be_are_said_before_the_training(given, message, saved, texts, tmp_path):
    model = (
        "--model_name_or_path",
        saved("t5", AutoModelForSeq2SeqLM),
        "--dataset_name",
        texts,
        "--output_dir",
        tmp_path / "run",
    )
    with pytest.raises(InputError, match=message):
        run("train", "--task seq2seq", QUIET, *model, "--max_target_length 8", "--generation_kwargs", given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("family", "kind", "most"), [("gpt2", AutoModelForCausalLM, 50), ("bart", AutoModelForSeq2SeqLM, 80)]
)
def test_texts_beyond_the_positions_cannot_be_written(family, kind, most, saved, texts, tmp_path):
    model = (
        "--model_name_or_path",
        saved(family, kind),
        "--dataset_name",
        texts,
        "--output_dir",
        tmp_path / "run",
    )
    with pytest.raises(InputError, match=f"{most} new ones take .* positions and the model has 64"):
        run("train", "--task seq2seq", QUIET, *model, "--max_length 64 --max_target_length", most)
    assert not (tmp_path / "run").exists()


def test_a_line_has_room_for_itself_and_not_for_all_of_its_row(saved, tmp_path):
    rows = {
        "source": "the film was " * 15,
        "target": "good " * 30,
        "choices": ["it was good " * 5] * 3,
        "answer": 1,
    }
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join([json.dumps(rows)] * 4))
    for task, family, kind, most in (
        ("seq2seq", "bart", AutoModelForSeq2SeqLM, "--max_target_length 40 --ignore_columns choices"),
        ("choice", "bert", AutoModel, "--text_column source --ignore_columns target"),
    ):
        run(
            "train", "--task", task, QUIET, most, "--model_name_or_path", saved(family, kind),
            "--dataset_name", tmp_path,
            "--data_files", "train=train.jsonl", "validation=validation.jsonl", "--output_dir",
            tmp_path / task, "--max_length 64",
        )  # fmt: skip
        assert figures(tmp_path / task)["steps"] == 1


def test_texts_that_hold_an_end_token_are_refused_where_the_end_is_read(saved, tmp_path):
    for split in ("train", "validation"):
        lines = [{"text": "good </s> film" if n % 3 else "bad", "label": n % 2} for n in range(12)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    files = ("--dataset_name", tmp_path, "--data_files", "train=train.jsonl", "validation=validation.jsonl")
    with pytest.raises(InputError, match="8 texts hold the model's own end token"):
        run(
            "train",
            QUIET,
            *files,
            "--model_name_or_path",
            saved("t5", AutoModel),
            "--output_dir",
            tmp_path / "run",
        )


@pytest.mark.parametrize("method", ["prompt", "prefix", "ptuning"])
def test_tokens_in_front_of_a_row_want_rows_of_their_own(method, chats, tmp_path):  # noqa: F811
    model, data = chats
    common = (
        "--model_name_or_path",
        model,
        "--dataset_name",
        data,
        "--output_dir",
        tmp_path / "run",
        "--bf16 false --max_length 40",
    )
    with pytest.raises(InputError, match=f"'{method}' puts tokens of its own .*--packing false"):
        run("sft", *common, "--method", method)
    run("sft", *common, "--method", method, "--packing false --num_train_epochs 1")


def test_instructions_want_a_decoder_and_something_to_save(saved, review_file, chats, tmp_path):  # noqa: F811
    model, data = chats
    common = ("--dataset_name", data, "--output_dir", tmp_path / "run", QUIET)
    for script in (("sft",), ("train", "--task sft")):
        with pytest.raises(InputError, match="wants a decoder, not an encoder"):
            run(*script, "--model_name_or_path", saved("bert", AutoModel), *common)
    with pytest.raises(InputError, match="--save_predictions has nothing to save.*--write_answers"):
        run("sft", "--model_name_or_path", model, *common, "--save_predictions true")


def test_rows_without_anything_to_learn_are_not_asked(chats, tmp_path):  # noqa: F811
    model, data = chats
    out = tmp_path / "run"
    run(
        "train", "--task sft", "--model_name_or_path", model, "--dataset_name", data, "--output_dir", out,
        QUIET,
        "--max_length 16 --max_target_length 4 --save_predictions true",
    )  # fmt: skip
    lines = (out / "predictions.jsonl").read_text().splitlines()
    assert 0 < len(lines) < 8
    assert all(json.loads(line)["gold"].startswith("good") for line in lines)


def test_arguments_of_instructions_are_a_recipe(chats, tmp_path):  # noqa: F811
    model, data = chats
    out = tmp_path / "run"
    run(
        "sft",
        "--model_name_or_path",
        model,
        "--dataset_name",
        data,
        "--output_dir",
        out,
        QUIET,
        "--max_length 48",
    )
    run("sft", "--config", out / "arguments.yaml", "--output_dir", tmp_path / "again")
    assert figures(tmp_path / "again")["loss"] == figures(out)["loss"]


def test_a_series_never_takes_the_figures_of_another(saved, review_file, tmp_path):
    series = tmp_path / "series"
    common = [
        "--model_name_or_path",
        saved("bert", AutoModel),
        "--dataset_name",
        review_file,
        QUIET,
        "--seeds 2",
    ]
    run("train", *common, "--output_dir", series)
    before = figures(series)
    run("train", *common, "--output_dir", series)
    assert figures(series) == before
    with pytest.raises(
        InputError, match=r"seed-0 holds a finished run of another series \(learning_rate: .*--output_dir"
    ):
        run("train", *common, "--output_dir", series, "--learning_rate 0.5")
    assert figures(series) == before
    run("train", *common[:-1], "--output_dir", tmp_path / "one")
    with pytest.raises(InputError, match="holds a single run"):
        run("train", *common, "--output_dir", tmp_path / "one")


def stopped_at(step: int) -> type[trainers.ExactTrainer]:
    """A trainer that is killed right after a checkpoint."""

    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise KeyboardInterrupt

    class Stopped(trainers.ExactTrainer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.add_callback(Stop())

    return Stopped


def test_a_run_that_was_killed_at_its_very_end_saves_its_predictions(
    saved, review_file, tmp_path, monkeypatch
):
    common = [
        "--model_name_or_path",
        saved("bert", AutoModel),
        "--dataset_name",
        review_file,
        QUIET,
        "--save_predictions true",
    ]
    run("train", *common, "--output_dir", tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(trainers, "ExactTrainer", stopped_at(3))
        with pytest.raises(KeyboardInterrupt):
            run("train", *common, "--output_dir", tmp_path / "killed")
    run("train", *common, "--output_dir", tmp_path / "killed")
    one, other = (tmp_path / name / "predictions.jsonl" for name in ("whole", "killed"))
    assert one.read_text() == other.read_text() != ""
    assert figures(tmp_path / "whole")["intervals"] == figures(tmp_path / "killed")["intervals"]


def test_a_resumed_run_stops_as_early_as_one_that_was_not_killed(saved, review_file, tmp_path, monkeypatch):
    common = ["--model_name_or_path", saved("bert", AutoModel), "--dataset_name", review_file,
    "--method full --bf16 false",
              "--num_train_epochs 9 --learning_rate 1e-6 --early_stopping_patience 3",
              "--save_total_limit 20"]  # fmt: skip
    run("train", *common, "--output_dir", tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(trainers, "ExactTrainer", stopped_at(9))
        with pytest.raises(KeyboardInterrupt):
            run("train", *common, "--output_dir", tmp_path / "killed")
    run("train", *common, "--output_dir", tmp_path / "killed")
    assert figures(tmp_path / "killed")["steps"] == figures(tmp_path / "whole")["steps"] == 12
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)
