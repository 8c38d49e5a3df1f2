"""Recurrent models and TextCNN as a user trains them: from a family's name to a folder that apps load."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from bounds import assert_near
from conftest import CONFIGS, WORDS, make_tokenizer
from transformers import AutoModelForCausalLM

from finetune.adapters import load
from finetune.cli.parser import parse
from finetune.errors import InputError
from finetune.models.scratch import ScratchArguments
from finetune.pool.pool import AdapterPool

ROOT = Path(__file__).parents[2]
SIZES = "embedding_size=16,hidden_size=16,dropout=0.0"


def run(name: str, *given: object) -> None:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(*parse(module.main, [str(one) for one in given]))


def scratch(family: str, tmp_path: Path, overrides: str = SIZES, tokenizer: str = "bert") -> list[object]:
    make_tokenizer(tokenizer).save_pretrained(tmp_path / "tokenizer")
    return [
        "--from_config", family, "--config_overrides", overrides, "--tokenizer_name", tmp_path / "tokenizer",
        "--output_dir", tmp_path / "run", "--max_length", 24, "--learning_rate", 0.01, "--bf16", "false",
        "--save_strategy", "no", "--eval_strategy", "no", "--disable_tqdm", "true",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("lstm", SIZES + ",bidirectional=true,merge=sum,pooling=max"),
        ("textcnn", '{"embedding_size": 16, "filters": 16, "widths": [1], "dropout": 0.0}'),
    ],
)
def test_a_classifier_from_scratch(family, overrides, review_file, tmp_path):
    vectors = tmp_path / "vectors.txt"
    drawn = [(word, torch.randn(16).tolist()) for word in WORDS]
    vectors.write_text("\n".join(f"{word} {' '.join(map(str, values))}" for word, values in drawn))
    options = scratch(family, tmp_path, overrides)
    run("train", *options, "--method", "full", "--dataset_name", review_file, "--num_train_epochs", 12,
        "--embeddings", vectors)  # fmt: skip
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert figures["accuracy"] > 0.85
    first, second = (load(tmp_path / "run").logits(["the film was great", "awful"]) for _ in range(2))
    assert_near(first, second, 1e-6)
    assert first.argmax(-1).tolist() == [1, 0]
    run("assess", "--artefact", tmp_path / "run", "--dataset_name", review_file)
    probe = ["--model_name_or_path", tmp_path / "run", "--dataset_name", review_file, "--max_steps", 1]
    with pytest.raises(InputError, match=r"'lora' can't tune.*no linear layers inside"):
        run("train", *probe, "--output_dir", tmp_path / "lora", "--method", "lora")


def test_a_seq2seq_from_scratch_writes(tmp_path):
    lines = [{"source": f"{a} {b}", "target": f"{b} {a}"} for a in WORDS[:3] for b in WORDS[3:6]]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = scratch("gru_seq2seq", tmp_path, SIZES + ",attention=dot,merge=sum", "bart")
    options[options.index(0.01)] = 0.03
    run("train", *options, "--task", "seq2seq", "--method", "full", "--dataset_name", tmp_path,
        "--num_train_epochs", 120, "--per_device_train_batch_size", 25, "--num_beams", 2,
        "--max_target_length", 6, "--metrics", "word_error_rate")  # fmt: skip
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert figures["word_error_rate"] < 0.1
    assert load(tmp_path / "run")("the actor", num_beams=3) == "actor the"


def test_a_language_model_from_scratch_writes(tmp_path):
    (tmp_path / "train.jsonl").write_text(
        "\n".join(json.dumps({"text": "the film was good and it was great"}) for _ in range(16))
    )
    options = scratch("lstm", tmp_path, SIZES, "gpt2")
    run("pretrain", *options, "--objective", "clm", "--dataset_name", tmp_path, "--num_train_epochs", 120,
        "--eval_split", "train")  # fmt: skip
    write = load(tmp_path / "run")
    assert write("the film", max_new_tokens=4) == "was good and it"
    assert write(["the", "the film was good"], max_new_tokens=2) == ["film was", "and it"]


def test_what_can_not_be_is_said(review_file, tmp_path):
    rows = ["--dataset_name", review_file, "--method", "full"]
    with pytest.raises(InputError, match="merge is 'product'; wanted one of"):
        run("train", *scratch("lstm", tmp_path, "bidirectional=true,merge=product"), *rows)
    with pytest.raises(InputError, match="would see the token that it has to predict"):
        run("pretrain", *scratch("lstm", tmp_path, "bidirectional=true", "gpt2"), "--objective", "clm",
            "--dataset_name", review_file)  # fmt: skip
    assert ScratchArguments(embeddings="y").idle().startswith("--embeddings without --from_config")
    (tmp_path / "three.txt").write_text("film 1 2 3\n")
    with pytest.raises(InputError, match=r"vectors of 3 numbers and the model takes 16.*embedding_size=3"):
        run("train", *scratch("lstm", tmp_path), *rows, "--embeddings", tmp_path / "three.txt")
    with pytest.raises(InputError, match=r"--from_config lstm has no tokenizer.*finetune tokenizer"):
        options = scratch("lstm", tmp_path)
        del options[4:6]
        run("train", *options, *rows)


def test_a_recurrent_base_is_refused_by_a_pool(tmp_path):
    AutoModelForCausalLM.from_config(CONFIGS["gru_lm"]).save_pretrained(tmp_path)
    make_tokenizer("gpt2").save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"is a recurrent model.*finetune.adapters.load"):
        AdapterPool(str(tmp_path))
