"""Options without a default that would fit are asked for at once, and by the names that they have here."""

from __future__ import annotations

import importlib

import pytest

from finetune.cli.parser import launch, parse
from finetune.errors import InputError


@pytest.mark.parametrize(
    ("verb", "given", "missing"),
    [
        ("dpo", ["--beta", "0.2"], ["model_name_or_path", "dataset_name", "output_dir"]),
        ("dpo", ["--algorithm", "kto", "--dataset_name", "a"], ["model_name_or_path", "output_dir"]),
        ("sft", ["--dataset-name=a", "--check", "true"], ["model_name_or_path"]),
        ("grpo", ["--output_dir", "a", "--dataset_name", "a"], ["model_name_or_path", "reward"]),
        ("align", ["--algorithm", "distill", "--output_dir", "a"], ["model_name_or_path", "dataset_name"]),
        ("ladder", [], ["dataset_name"]),
    ],
)
def test_all_that_is_missing_is_asked_for_at_once(verb, given, missing, capsys):
    with pytest.raises(SystemExit):
        launch(importlib.import_module(f"finetune.scripts.{verb}").main, given, installed=True)
    said = capsys.readouterr().err
    assert f"Missing: {', '.join(f'--{name}' for name in missing)}\n" in said
    assert f"\nfinetune {verb} " in said  # a command that would start


def test_the_text_of_other_verbs_is_the_prompt_of_preferences():
    words = [
        "--model_name_or_path",
        "smollm2",
        "--dataset_name",
        "a",
        "--output_dir",
        "a",
        "--text_column",
        "q",
    ]
    for verb in ("dpo", "reward"):
        with pytest.raises(InputError, match="this verb's option is --prompt_column"):
            parse(importlib.import_module(f"finetune.scripts.{verb}").main, words)
