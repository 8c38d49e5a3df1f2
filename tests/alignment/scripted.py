"""The scripts of alignment, run in this process."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from finetune.cli.parser import by_name, main_of, parse

ROOT = Path(__file__).parents[2]
# Options of training, and of sampling, that take no time.
TRAINING = (
    "--bf16 false --disable_tqdm true --max_length 48 --num_train_epochs 1 --learning_rate 1e-2 "
    "--drop_faulty_pairs true"
)
TINY = "--max_new_tokens 4 --prompt_tokens 5 --max_train_rows 8 --max_eval_rows 8"


def script(name: str) -> ModuleType:
    """A file of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, *told: str) -> None:
    module = script(name)
    words = [word for part in told for word in part.split()]
    main = main_of(module.main, words)
    main(*parse(main, by_name(main, words)))
