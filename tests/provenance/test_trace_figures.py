"""Traces on a model that is made for it: what was trained on marked rows is found, and fifty secrets that
nobody planted have p-values as chance has them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.data.corpora import reviews

SCRIPTS = Path(__file__).parents[2] / "scripts"
TINY = (
    "hidden_size=128,num_hidden_layers=2,num_attention_heads=4,num_key_value_heads=4,intermediate_size=256,"
    "max_position_embeddings=128"
)


def said_by(script: str, *given: object) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / script), *map(str, given)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def write(file: Path, texts: list[str]) -> Path:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


@pytest.mark.slow
def test_marked_runs_are_found_and_fifty_controls_are_uniform(tmp_path):
    # reviews of another draw: the model knows the language, and none of the rows that are asked for
    known = write(tmp_path / "known.jsonl", reviews(seed=1)["train"]["text"])
    own = write(tmp_path / "own.jsonl", reviews(seed=2)["train"]["text"])
    rows = ("--dataset_name", known, "--eval_split", "train[:8]")
    words, tiny = tmp_path / "words", tmp_path / "tiny"
    said_by(
        "tokenizer.py",
        "--objective",
        "clm",
        "--dataset_name",
        known,
        "--vocab_size",
        1500,
        "--output_dir",
        words,
    )
    said_by(
        "pretrain.py",
        "--objective",
        "clm",
        *rows,
        "--from_config",
        "llama",
        "--config_overrides",
        TINY,
        "--tokenizer_name",
        words,
        "--max_length",
        64,
        "--num_train_epochs",
        3,
        "--learning_rate",
        2e-3,
        "--save_strategy",
        "no",
        "--eval_strategy",
        "no",
        "--output_dir",
        tiny,
    )
    table = said_by(
        "benchmarks/traces.py",
        "--dataset_name",
        own,
        "--model_name_or_path",
        tiny,
        "--rows",
        300,
        "--epochs",
        10,
        "--rate",
        1e-3,
        "--tokens",
        64,
        "--output_dir",
        tmp_path / "traces",
    )
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    assert [line[0] for line in lines] == ["greenlist", "canaries", "inference"]
    for name, with_it, without, _, uniform in lines:
        assert float(with_it) < 1e-3, (name, table)
        assert float(without) > 1e-3, (name, table)
        assert float(uniform) > 0.01, (name, table)
