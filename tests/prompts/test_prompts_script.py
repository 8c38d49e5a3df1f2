"""scripts/prompt.py from the command line: help at once, refusals without a traceback."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from finetune.cli.parser import parse

ROOT = Path(__file__).parents[2]


def call(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "prompt.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_help_answers_at_once_and_lists_every_option() -> None:
    began = time.monotonic()
    done = call("--help")
    assert time.monotonic() - began < 5 and done.returncode == 0
    for option in (
        "--prompts",
        "--shot_choice",
        "--search",
        "--check",
        "--batch_tokens",
        "--tune",
        "--max_eval_rows",
    ):
        assert option in done.stdout


def test_texts_are_written_from_the_command_line(
    saved, review_file: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    (tmp_path / "own.yaml").write_text(
        'target: "{{ label }}"\ntemplates: {a: "{{ text }} it was {{ mask }}"}\nendings: {line: {until: '
        '["."], tokens: 3}}\n'
    )
    model, rows = (
        str(saved("llama", AutoModelForCausalLM)),
        ("--dataset_name", str(review_file), "--max_eval_rows", "4"),
    )
    monkeypatch.chdir(tmp_path)
    main = importlib.import_module("finetune.scripts.prompt").main
    told = ("--prompts", "own.yaml", "--models", model, "--shots", "1", *rows, "--output_dir", "out")
    main(*parse(main, told))
    assert "own/a/line 1 shots, seed 0" in capsys.readouterr().out
    assert len((tmp_path / "out" / "texts.jsonl").read_text().splitlines()) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompts", "sentimental"), "No prompts 'sentimental'"),
        (("--prompts", "topic", "--dataset_name", "reviews"), "topic: no label 'neg'"),
        (("--promts", "sentiment"), "Did you mean --prompts"),
        (
            ("--prompts", "sentiment", "--models", "nowhere", "--max_eval_rows", "20", "--choose_rows", "4"),
            "nowhere",
        ),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    done = call(*arguments, folder=tmp_path)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
