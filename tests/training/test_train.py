"""scripts/train.py as a user runs it, on tiny models: artefact, app, resume, refusals."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, TrainerCallback

from finetune.adapters import load
from finetune.adapters.assess import AssessArguments, assess_task
from finetune.artefacts.folder import read_artefact
from finetune.cli.parser import parse
from finetune.data.sources import DataArguments
from finetune.errors import InputError
from finetune.pool.pool import AdapterPool
from finetune.training import trainer as trainers

ROOT = Path(__file__).parents[2]


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(model: Path, data: Path, folder: Path, *further: str) -> list[str]:
    common = (
        f"--model_name_or_path {model} --dataset_name {data} --output_dir {folder} --max_length 16 "
        "--num_train_epochs 2 "
    )
    common += "--per_device_train_batch_size 8 --learning_rate 1e-2 --bf16 false --disable_tqdm true"
    return [*common.split(), *further]


def train(*given: str | Path) -> Path:
    main = script("train").main
    main(*parse(main, arguments(*given)))
    return Path(given[2])


def test_a_pooler_that_the_base_lacks_comes_with_the_adapter(saved, review_file, tmp_path):
    run = train(saved("bert", AutoModelForMaskedLM), review_file, tmp_path / "run", "--method", "lora")
    weights = load_file(run / "adapter_model.safetensors")
    assert any("pooler.dense.weight" in name for name in weights)
    first, second = (
        load(run).logits(["the film was great", "awful"]) for _ in range(2)
    )  # drawn anew each time, and replaced
    torch.testing.assert_close(first, second)
    pool = AdapterPool(yaml.safe_load((run / "arguments.yaml").read_text())["model_name_or_path"])
    pool.add("x", run)
    torch.testing.assert_close(torch.stack(pool.logits(["the film was great", "awful"], ["x", "x"])), first)
    again = train(
        saved("bert", AutoModelForSequenceClassification), review_file, tmp_path / "other", "--method", "lora"
    )
    assert not any("pooler" in name for name in load_file(again / "adapter_model.safetensors"))


@pytest.fixture
def tiny(saved):
    return saved("bert", AutoModelForSequenceClassification)


def test_trained_saved_used(tiny, review_file, tmp_path):
    run = train(tiny, review_file, tmp_path / "run", "--method", "lora", "--num_train_epochs", "16")
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["accuracy"] > 0.8
    assert {"loss", "macro_f1", "seconds", "peak_memory_mb", "trainable"} <= set(metrics)
    assert metrics["processor_seconds"] > 0
    assert json.loads((run / "labels.json").read_text()) == ["neg", "pos"]
    assert (run / "adapter_model.safetensors").is_file()
    classifier = load(run)
    answer = classifier("the film was great")
    assert answer["label"] == "pos"
    assert 0.5 < answer["probability"] <= 1
    assert [a["label"] for a in classifier(["the film was great", "the film was awful"])] == ["pos", "neg"]
    assert classifier([]) == []
    asked = AssessArguments(per_device_eval_batch_size=5, keep_trained_rows=True)
    figures = assess_task(read_artefact(run), DataArguments(str(review_file)), asked)
    assert figures["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    assert figures["accuracy"] == metrics["accuracy"]
    low, high = figures["intervals"]["accuracy"]
    assert low <= figures["accuracy"] <= high
    again = yaml.safe_load((run / "arguments.yaml").read_text())
    assert (again["method"], again["learning_rate"], again["max_length"]) == ("lora", 1e-2, 16)


def test_arguments_are_a_recipe(tiny, review_file, tmp_path):
    run = train(tiny, review_file, tmp_path / "run", "--method", "linear_probe")
    main = script("train").main
    main(*parse(main, ["--config", str(run / "arguments.yaml"), "--output_dir", str(tmp_path / "again")]))
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (run, tmp_path / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


class Stop(TrainerCallback):
    """As if the job had been killed right after a checkpoint."""

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == 6:
            raise KeyboardInterrupt


def test_killed_and_started_again_gives_the_same_weights(tiny, review_file, tmp_path, monkeypatch):
    options = ("--method", "full", "--save_strategy", "steps", "--save_steps", "3", "--save_total_limit", "5")
    whole = train(tiny, review_file, tmp_path / "whole", *options)

    class Interrupted(trainers.ExactTrainer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.add_callback(Stop())

    with monkeypatch.context() as patch:
        patch.setattr(trainers, "ExactTrainer", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tiny, review_file, tmp_path / "killed", *options)
    (tmp_path / "killed" / "checkpoint-9").mkdir()  # and one that was being written
    with pytest.raises(InputError, match="unfinished"):
        load(tmp_path / "killed")
    resumed = train(tiny, review_file, tmp_path / "killed", *options)
    one, other = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_nothing_is_overwritten(tiny, review_file, tmp_path):
    run = train(tiny, review_file, tmp_path / "run", "--method", "bitfit")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(InputError, match="already holds a finished run"):
        train(tiny, review_file, run, "--method", "bitfit")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_loss_that_is_no_number_stops_the_run(tiny, review_file, tmp_path):
    with pytest.raises(InputError, match=r"The loss is (nan|inf) at step \d+ on the training rows \["):
        train(
            tiny,
            review_file,
            tmp_path / "run",
            "--method",
            "full",
            "--learning_rate",
            "1e30",
            "--max_grad_norm",
            "0",
            "--optim",
            "sgd",
        )
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--task", "clasification"), "Unknown task 'clasification'"),
        (("--method", "lorra"), "Unknown method 'lorra'"),
        (("--model_name_or_path", "no/such-model"), "Cannot load the model 'no/such-model'"),
        (("--text_column", "review"), "No column 'review'"),
        (("--tokens_per_batch", "3"), "--tokens_per_batch 3 is below the longest"),
        (("--dtype", "float8"), "Unknown dtype 'float8'"),
    ],
)
def test_bad_input_stops_before_anything_is_written(tiny, review_file, tmp_path, options, complaint):
    with pytest.raises(InputError, match=complaint):
        train(tiny, review_file, tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


def test_empty_texts_and_pairs_are_refused_by_the_classifier(tiny, review_file, tmp_path):
    classifier = load(train(tiny, review_file, tmp_path / "run", "--method", "linear_probe"))
    for bad, complaint in (
        ("  ", "is an empty text"),
        (("a", "b"), "wanted one text"),
        ([3], "wanted one text"),
    ):
        with pytest.raises(InputError, match=complaint):
            classifier(bad)


def test_several_processes_asked_for_and_one_started(tiny, review_file, tmp_path, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(InputError, match="Several processes were asked for and one was started"):
        train(tiny, review_file, tmp_path / "run")


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (("--per_device_train_batch_size", "0"), "wanted 1 or more"),
        (("--gradient_accumulation_steps", "0"), "wanted 1 or more"),
        (("--seed", "-1"), "wanted 0 or more"),
        (("--learning_rate", "nan"), "wanted a number above 0"),
        (("--label_smoothing_factor", "2"), "a share below 1"),
        (("--report_to", "nowhere"), "nowhere is not supported"),
        (("--max_length", "2"), "no room for a text beside 2 special tokens"),
        (("--max_length", "0"), "wanted 1 or more"),
    ],
)
def test_options_out_of_range_are_refused(further, message, tiny, review_file, tmp_path):
    with pytest.raises(InputError, match=message):
        train(tiny, review_file, tmp_path / "run", *further)
    assert not (tmp_path / "run").exists()


def test_texts_beyond_the_models_positions_are_refused(tiny, review_file, tmp_path):
    lines = [json.dumps({"text": "film " * 90, "label": label}) for label in ("neg", "pos")]
    (review_file / "train.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"92 tokens and the model has room for 64; set --max_length 64"):
        train(tiny, review_file, tmp_path / "run", "--max_length", "100")
    with pytest.raises(InputError, match=r"room for 44"):
        train(tiny, review_file, tmp_path / "run", "--max_length", "64", "--method", "prompt")


def test_a_file_where_the_folder_should_be_is_left_alone(tiny, review_file, tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(InputError, match=r"taken is a file; set --output_dir"):
        train(tiny, review_file, tmp_path / "taken")
    with pytest.raises(InputError, match="Can't make the output folder"):
        train(tiny, review_file, Path("/proc/none/x"))


def test_a_head_for_other_classes_gives_way(saved, review_file, tmp_path):
    rows = [{"text": f"the film was {word}", "label": word} for word in ("good", "bad", "fine", "dull")]
    (review_file / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (review_file / "test.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    run = train(
        saved("bert", AutoModelForSequenceClassification), review_file, tmp_path / "run", "--method", "full"
    )
    assert load(run).logits(["the film was dull"]).shape == (1, 4)


@pytest.mark.parametrize(
    "file", sorted((ROOT / "scripts" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem
)
def test_accelerate_reads_its_files(file):
    config = load_config_from_file(str(file))  # stops at a key that it doesn't know
    assert config.num_processes == {"one_cpu": 1, "one_gpu": 1, "two_cpus": 2, "machines": 16}.get(
        file.stem, 8
    )
