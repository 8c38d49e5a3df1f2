"""`finetune recipes | tasks | methods | objectives | prompts`: what there is, as tables. Imports a
table when it is asked for.
"""

from __future__ import annotations

import importlib
import inspect
import shutil
import textwrap
from collections.abc import Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from finetune.cli.places import prompt_entries, recipes
from finetune.errors import InputError


def recipes_table(arguments: list[str]) -> str:
    """Name, verb and first comment of each recipe of the package."""
    _nothing_further(arguments, "recipes")
    lines = [(name, *_head(path)) for name, path in recipes().items()]
    return (
        as_table(lines, ("recipe", "verb", "what"))
        + "\n\nnext: finetune VERB --config RECIPE    (of a data set that lies here: --dataset_name FOLDER)"
    )


def tasks_table(arguments: list[str]) -> str:
    """TASKS: what a row holds and which figure tells the better of two models."""
    _nothing_further(arguments, "tasks")
    tasks = _table("finetune.tasks.table", "TASKS")
    lines = [(name, row.model.__name__, row.best, _place(row.examine)) for name, row in tasks.items()]
    return as_table(lines, ("task", "model", "figure", "what"))


def methods_table(arguments: list[str]) -> str:
    """METHODS: paper, learning rate and PEFT's options where the user gives none."""
    _nothing_further(arguments, "methods")
    lines = [
        (name, f"{row.learning_rate:g}", " ".join(f"{k}={v}" for k, v in row.defaults.items()), row.follows)
        for name, row in _table("finetune.methods", "METHODS").items()
    ]
    return as_table(lines, ("method", "rate", "defaults", "follows"))


def objectives_table(arguments: list[str]) -> str:
    """OBJECTIVES: head, figure and paper."""
    _nothing_further(arguments, "objectives")
    lines = [
        (name, row.model.__name__, row.best, row.follows)
        for name, row in _table("finetune.objectives.table", "OBJECTIVES").items()
    ]
    return as_table(lines, ("objective", "model", "figure", "follows"))


def prompts_table(arguments: list[str]) -> str:
    """The library's entries with their templates and sets of label words."""
    _nothing_further(arguments, "prompts")
    lines = []
    for name, path in prompt_entries().items():
        # the files alone: the package that asks by them stands above this one
        entry = yaml.safe_load(path.read_text(encoding="utf-8"))
        words = " ".join(entry.get("verbalizers", {}))
        lines.append((name, entry["metric"], " ".join(entry["templates"]), words))
    return (
        as_table(lines, ("prompts", "figure", "templates", "label words"))
        + "\n\nnext: finetune prompt --prompts NAME --models smollm2 --dataset_name FILE "
        "--max_eval_rows 200 --output_dir runs/prompts    (NAME/TEMPLATE asks by one of them)"
    )


def as_table(rows: Sequence[Sequence[str]], heads: Sequence[str]) -> str:
    """Rows as columns that fit the terminal; texts of the last two go on in further lines where they must."""
    *first, before, _ = zip(heads, *rows, strict=True)
    widths = [max(map(len, column)) for column in first]
    # a terminal of any width; below 30 for each nothing could be read
    room = shutil.get_terminal_size((110, 24)).columns - sum(widths) - 2 * len(widths)
    # the last column gets what the one before it needs not, and never less than a third
    widths.append(min(max(map(len, before)), max(30, room * 2 // 3 - 2)))
    start = sum(widths) + 2 * len(widths)
    last = max(30, room - widths[-1] - 2)
    lines = []
    for row in [heads, *rows]:
        wrapped = zip_longest(
            *([cell] for cell in row[:-2]), textwrap.wrap(row[-2], widths[-1]), textwrap.wrap(row[-1], last)
        )
        for cells in wrapped:
            padded = [(cell or "").ljust(width + 2) for cell, width in zip(cells, widths, strict=False)]
            lines.append(("".join(padded) + (cells[-1] or "")).rstrip())
        if row is heads:
            lines.append("-" * min(start + max(len(r[-1]) for r in [heads, *rows]), start + last))
    return "\n".join(lines)


def _head(path: Path) -> tuple[str, str]:
    """A recipe's verb and its first comment, without reading its options."""
    # Line by line: two lines are wanted of each file, and parsing YAML is slow.
    lines = path.read_text(encoding="utf-8").splitlines()
    verb = next((line.partition(":")[2].strip() for line in lines if line.startswith("verb:")), "")
    return verb, lines[0].removeprefix("# ")


def _table(module: str, name: str) -> dict[str, Any]:
    return vars(importlib.import_module(module))[name]


def _place(function: Any) -> str:
    """The first line of the module that a function of a row comes from, as far as it says what the
    task is.
    """
    # A row's function may have been given some of its arguments.
    while isinstance(function, partial):
        function = function.func
    return (inspect.getdoc(inspect.getmodule(function)) or "").splitlines()[0].split(":")[0]


def _nothing_further(arguments: list[str], name: str) -> None:
    if arguments and arguments != ["--help"]:
        raise InputError(f"finetune {name} takes no options; got {arguments[0]}")
