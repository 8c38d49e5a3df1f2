"""scripts/train.py and scripts/sft.py on every task with tiny models, from rows in a file to the
folder that is left.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from bounds import near
from conftest import make_model, make_tokenizer
from task_gradients import COLUMNS, LABELS, kind_of, rows
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from finetune.adapters import load
from finetune.cli.parser import parse
from finetune.data.batching import BatchingArguments
from finetune.errors import InputError
from finetune.methods import attach
from finetune.tasks.options import TaskArguments
from finetune.tasks.table import settle
from finetune.training.options import TrainingArguments
from finetune.training.trainer import make_trainer

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run(script: str, *arguments: object) -> None:
    """A script's main with these arguments; flags and plain values may stand together in one text."""
    spec = importlib.util.spec_from_file_location(script, SCRIPTS / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    given = [part for one in arguments for part in (one.split() if str(one).startswith("--") else [str(one)])]
    module.main(*parse(module.main, given))


@pytest.fixture
def folder_of_rows(tmp_path) -> Path:
    folder = tmp_path / "rows"
    folder.mkdir()
    for split in ("train", "validation"):
        rows().to_parquet(str(folder / f"{split}.parquet"))
    return folder


def columns_of(task: str) -> list[str]:
    columns = COLUMNS[task]
    found = ["--text_column", columns.text, "--label_column", columns.label]
    found += ["--text_pair_column", columns.pair] if columns.pair else []
    read = {columns.text, columns.pair, columns.label}
    others = ["text", "second", "offers"] + (["words", "answers"] if task == "choice" else [])
    return [
        *found,
        "--ignore_columns",
        *(name for name in others if name not in read),
    ]


def figures(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


WANTED = {
    "pairs": ("bert", {"accuracy", "macro_f1"}),
    "multilabel": ("bert", {"micro_f1", "macro_f1"}),
    "regression": ("bert", {"pearson", "spearman", "mse"}),
    "tokens": ("bert", {"precision", "recall", "f1", "accuracy"}),
    "spans": ("bert", {"exact_match", "f1", "best_threshold"}),
    "choice": ("bert", {"accuracy", "chance"}),
}


@pytest.mark.parametrize("task", WANTED)
def test_a_task_trains_and_leaves_figures_and_predictions(task, saved, folder_of_rows, tmp_path):
    family, names = WANTED[task]
    out = tmp_path / "run"
    run(
        "train",
        "--task",
        task,
        *columns_of(task),
        "--method full",
        "--model_name_or_path",
        saved(family, AutoModel),
        "--dataset_name",
        folder_of_rows,
        "--max_length 24",
        "--output_dir",
        out,
        "--num_train_epochs 1 --save_predictions true --bf16 false",
    )
    found = figures(out)
    assert names <= found.keys() and found["loss"] > 0
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 8 and all(
        {"id", "text", "gold", "prediction", "score"} <= line.keys() for line in lines
    )
    answered(out, task, lines)
    # classifiers are assessed with intervals of their own
    if task != "pairs":
        assessed(out, folder_of_rows, found)


def answered(out: Path, task: str, lines: list[dict]) -> None:
    """`load` gives what does the task: the same answers to the same inputs."""
    inputs = [tuple(line["text"]) if COLUMNS[task].pair else line["text"] for line in lines]
    does = load(out, device="cpu")
    found = does(inputs)
    if task == "pairs":
        assert [one["label"] for one in found] == [line["prediction"] for line in lines]
        return
    assert len(found) == len(lines) == 8
    for one, line in zip(found, lines, strict=True):
        if isinstance(line["prediction"], float):
            assert near(one["prediction"], line["prediction"], 1e-4)
        else:
            assert one["prediction"] == line["prediction"] and near(one["score"], line["score"], 1e-4)
    alone = does(inputs[0])
    assert alone["prediction"] == found[0]["prediction"] or near(
        alone["prediction"], found[0]["prediction"], 1e-4
    )
    with pytest.raises(InputError, match="wanted a"):
        does([7])


def assessed(out: Path, rows_in: Path, found: dict) -> None:
    """scripts/assess.py on the same rows gives the figures and intervals of the training's end."""
    run("assess", "--artefact", out, "--dataset_name", rows_in, "--keep_trained_rows", "true")
    again = figures(out / "assessments" / "rows")
    for name, value in found.items():
        if isinstance(value, float) and name in again and name != "runtime" and "second" not in name:
            assert near(again[name], value, 1e-4), name
    assert again["rows"] == 8 and {*again["intervals"]} == {*found["intervals"]} > {"loss"}
    for name, bounds in found["intervals"].items():
        assert near(again["intervals"][name], bounds, 1e-4)
    assert (out / "assessments" / "rows" / "predictions.jsonl").is_file()


@pytest.mark.parametrize(("family", "kind"), [("t5", AutoModelForSeq2SeqLM), ("gpt2", AutoModelForCausalLM)])
def test_models_of_both_kinds_write(family, kind, saved, folder_of_rows, tmp_path, caplog):
    out = tmp_path / "run"
    run(
        "train",
        "--task seq2seq",
        *columns_of("seq2seq"),
        "--method lora",
        "--model_name_or_path",
        saved(family, kind),
        "--dataset_name",
        folder_of_rows,
        "--max_length 32 --max_target_length 8 --num_beams 2",
        "--output_dir",
        out,
        "--num_train_epochs 1 --save_predictions true --bf16 false",
        "--generation_kwargs",
        '{"length_penalty": 0.5}',
    )
    found = figures(out)
    assert {
        "rouge1",
        "rouge2",
        "rougeL",
        "bleu",
        "chrf",
        "length_ratio",
        "token_accuracy",
        "loss",
    } <= found.keys()
    assert found["bleu_signature"].startswith("nrefs:1") and "bleu_signature nrefs:1" in caplog.text
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    writer = load(out, device="cpu")
    written = writer([line["text"] for line in lines], num_beams=2, length_penalty=0.5)
    assert written == [line["prediction"] for line in lines]
    with pytest.raises(InputError, match="wanted a text"):
        writer([7])
    assessed(out, folder_of_rows, found)


def test_a_series_of_few_shot_runs_gives_mean_and_deviation(saved, review_file, tmp_path, capsys):
    out = tmp_path / "series"
    arguments = [
        "--method", "full", "--model_name_or_path", saved("bert", AutoModel), "--dataset_name", review_file,
        "--output_dir", out, "--num_train_epochs", 3, "--shots_per_class", 4, "--seeds", 2, "--bf16", "false",
        "--learning_rate", 0.01,
    ]  # fmt: skip
    run("train", *arguments)
    found = figures(out)
    one, other = (figures(out / f"seed-{n}") for n in range(2))
    assert found["seeds"] == 2 and found["loss"] == pytest.approx((one["loss"] + other["loss"]) / 2)
    assert found["deviation"]["loss"] == pytest.approx(abs(one["loss"] - other["loss"]) / 2**0.5)
    assert one["loss"] != other["loss"] and one["steps"] == 3  # eight rows a time
    assert "over 2 seeds" in capsys.readouterr().out


def test_more_shots_than_rows_are_refused(saved, review_file, tmp_path):
    with pytest.raises(InputError, match=r"--shots_per_class 99: the class '.*' has 24 rows"):
        run(
            "train", "--method full", "--model_name_or_path", saved("bert", AutoModel),
            "--dataset_name", review_file, "--output_dir", tmp_path / "run", "--shots_per_class", 99,
        )  # fmt: skip


def test_early_stopping_keeps_the_best_model(saved, review_file, tmp_path):
    out = tmp_path / "run"
    run(
        "train", "--method full", "--model_name_or_path", saved("bert", AutoModel),
        "--dataset_name", review_file, "--output_dir", out,
        "--num_train_epochs 12 --early_stopping_patience 2 --bf16 false --learning_rate 0.02",
    )  # fmt: skip
    state = json.loads(
        sorted(out.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))[-1]
        .joinpath("trainer_state.json")
        .read_text()
    )
    history = [entry["eval_accuracy"] for entry in state["log_history"] if "eval_accuracy" in entry]
    assert len(history) < 12
    assert figures(out)["accuracy"] == max(history)


def test_early_stopping_of_instructions(chats, tmp_path):
    model, data = chats
    out = tmp_path / "run"
    run(
        "sft", "--model_name_or_path", model, "--dataset_name", data, "--output_dir", out,
        "--method lora --num_train_epochs 9 --early_stopping_patience 2 --bf16 false --learning_rate 1e-12",
        "--max_length 48",
    )  # fmt: skip
    # one step an epoch; nothing is learnt after the first evaluation
    assert figures(out)["steps"] == 3
    assert load(out, device="cpu")("the film", max_new_tokens=2) is not None


def test_early_stopping_wants_evaluations(saved, review_file, tmp_path):
    with pytest.raises(InputError, match="--early_stopping_patience with --eval_strategy no"):
        run(
            "train", "--method full", "--model_name_or_path", saved("bert", AutoModel),
            "--dataset_name", review_file, "--output_dir", tmp_path / "run",
            "--early_stopping_patience 2 --eval_strategy no",
        )  # fmt: skip


CHATS = (
    "{% for m in messages %}<s> {{ m.role }} {{ m.content }} </s>{% endfor %}"
    "{% if add_generation_prompt %}<s> assistant {% endif %}"
)


@pytest.fixture
def chats(tmp_path) -> tuple[Path, Path]:
    """A folder of chats and a tiny decoder with a chat template."""
    model, data = tmp_path / "decoder", tmp_path / "chats"
    make_model("llama", AutoModelForCausalLM).save_pretrained(model)
    processor = make_tokenizer("llama")
    processor.chat_template = CHATS
    processor.save_pretrained(model)
    data.mkdir()
    for split in ("train", "validation"):
        lines = [
            {
                "messages": [
                    {"role": "user", "content": "the film " * n},
                    {"role": "assistant", "content": "good " * (n % 3 + 1)},
                ]
            }
            for n in range(1, 9)
        ]
        (data / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return model, data


def test_instructions_have_the_same_losses_packed_and_padded(chats, tmp_path):
    model, data = chats
    found = {}
    for packing in ("true", "false"):
        out = tmp_path / packing
        run(
            "sft",
            "--model_name_or_path",
            model,
            "--dataset_name",
            data,
            "--output_dir",
            out,
            "--method lora",
            f"--packing {packing}",
            "--num_train_epochs 2 --bf16 false --per_device_train_batch_size 4 --learning_rate 0.01 "
            "--max_length 48",
        )
        found[packing] = figures(out)
    assert near(found["true"]["loss"], found["false"]["loss"])
    assert found["true"]["token_accuracy"] == found["false"]["token_accuracy"]


def test_adapters_in_float32_learn_over_frozen_weights_in_bf16(chats, tmp_path):
    """The casts that are left out under autocast change nothing: the loss falls, and only adapters move."""
    model, data = chats
    losses = []
    for epochs in (1, 6):
        out = tmp_path / str(epochs)
        run(
            "sft", "--model_name_or_path", model, "--dataset_name", data, "--output_dir", out, "--method",
            "lora", "--dtype", "bfloat16",
            "--num_train_epochs", epochs, "--bf16", "true", "--learning_rate", 0.03, "--max_length", 48,
        )  # fmt: skip
        losses.append(figures(out)["loss"])
    assert losses[1] < losses[0] - 0.1


def test_instructions_are_answered(chats, tmp_path):
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
        "--method full --num_train_epochs 1 --bf16 false --write_answers true --max_new_tokens 4 "
        "--save_predictions true",
        "--max_length 48 --neftune_noise_alpha 5",
    )
    assert "rougeL" in figures(out)
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert lines[0]["gold"].startswith("good") and len(lines) == 8
    run("assess", "--artefact", out, "--dataset_name", data, "--keep_trained_rows", "true")
    again, found = figures(out / "assessments" / "chats"), figures(out)
    assert near(
        {name: again[name] for name in ("rougeL", "token_accuracy", "loss")},
        {name: found[name] for name in ("rougeL", "token_accuracy", "loss")},
        0.0001,
    )


PAIRS = [
    ("tokens", "bert", "lora"), ("tokens", "bert", "bottleneck"), ("tokens", "gpt2", "bitfit"), ("spans",
    "bert", "prompt"),
    ("spans", "bert", "prefix"), ("spans", "t5", "lora"), ("seq2seq", "t5", "prefix"), ("seq2seq", "t5",
    "prompt"),
    ("seq2seq", "t5", "ia3"), ("seq2seq", "gpt2", "prompt"), ("seq2seq", "llama", "prefix"), ("seq2seq",
    "llama", "bottleneck"),
    ("choice", "bert", "prompt"),
    ("choice", "llama", "lora"), ("regression", "bert", "linear_probe"), ("multilabel", "gpt2", "ptuning"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "family", "method"), PAIRS)
def test_a_task_goes_with_a_method(task, family, method, tmp_path):
    """Two steps change what the method trains, and evaluation reads the answers."""
    further = {"max_target_length": 8} if task == "seq2seq" else {}
    row, processor = settle(TaskArguments(task=task, **further), kind_of(family)), make_tokenizer(family)
    labels = LABELS if task in ("multilabel", "tokens") else None
    network = make_model(
        family, row.model, **(dict(row.config) | ({} if labels is None else {"num_labels": 3}))
    )
    network = attach(network, method, None, row.peft)
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    features = row.encode(rows(), COLUMNS[task], processor, 20, labels)
    training = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        bf16=False,
        learning_rate=0.05,
        warmup_steps=0,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = make_trainer(
        row,
        network,
        processor,
        training,
        {"train": features, "eval": features},
        labels=labels,
        batching=BatchingArguments(),
    )
    trainer.train()
    moved = {n for n, p in network.named_parameters() if not torch.equal(p, before[n])}
    trainable = {n for n, p in network.named_parameters() if p.requires_grad}
    assert moved and moved <= trainable


@pytest.mark.parametrize(
    ("task", "family", "method"), [("tokens", "bert", "prompt"), ("seq2seq", "t5", "linear_probe")]
)
def test_a_pair_that_cannot_work_is_refused_by_name(task, family, method):
    row = settle(TaskArguments(task=task), kind_of(family))
    with pytest.raises(InputError, match=f"The method '{method}' can't tune"):
        attach(make_model(family, row.model), method, None, row.peft)
