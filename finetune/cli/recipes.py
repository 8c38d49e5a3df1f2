"""Recipes, and finished runs, as the command lines that say the same. Knows files and words; knows no option
class.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.cli.places import find_recipe
from finetune.errors import InputError

ARGUMENTS = "arguments.yaml"  # a run's own recipe
OF_ONE_RUN = (
    "output_dir",
    "resume_from",
    "resume_from_checkpoint",
)  # what a run that goes on doesn't take over


def renamed_of(types: Sequence[type]) -> dict[str, str]:
    """Names that options had in earlier versions → those of now, as RENAMED of option classes has them."""
    return {
        old: new
        for kind in types
        for one in kind.__mro__
        for old, new in vars(one).get("RENAMED", {}).items()
    }


def split_recipe(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The recipe that a command line names, by `--config`, or as the run that `--resume_from` goes on from;
    and the other words.

    Raises:
        InputError: several recipes, one without a name, or a folder that is no run's.
    """
    named, rest, waiting = [], [], iter(arguments)
    for argument in waiting:
        if argument == "--config":
            named.append(next(waiting, ""))
        elif argument.startswith("--config="):
            named.append(argument.partition("=")[2])
        else:
            rest.append(argument)
    # Of two recipes the later would win without a word.
    if len(named) > 1:
        raise InputError(f"--config is given {len(named)} times ({', '.join(named)}); wanted one recipe")
    if named and (not named[0] or named[0].startswith("--")):
        raise InputError("--config names no recipe; wanted --config NAME or --config FILE.yaml")
    run = _run_to_go_on_from(rest)
    if run is not None and named:
        raise InputError(
            f"--resume_from takes all options from {run / ARGUMENTS}, and --config names others; "
            "leave one out"
        )
    if run is not None:
        return str(run / ARGUMENTS), rest
    return (named[0] if named else None), rest


def _run_to_go_on_from(arguments: list[str]) -> Path | None:
    """The folder that `--resume_from` names."""
    values = [
        word.partition("=")[2] if "=" in word else "".join(arguments[place + 1 : place + 2])
        for place, word in enumerate(arguments)
        if word.partition("=")[0].replace("-", "_") == "__resume_from"
    ]
    if not values:
        return None
    run = Path(values[-1]).expanduser()
    if (run / ARGUMENTS).is_file():
        return run
    if (run.parent / ARGUMENTS).is_file():
        raise InputError(
            f"--resume_from {run} names a checkpoint; wanted its run: --resume_from {run.parent}"
        )
    raise InputError(
        f"--resume_from {run} is no run's folder: {'it holds' if run.is_dir() else 'there is'} no "
        f"{ARGUMENTS}. Set it to the --output_dir of a run, or set --model_name_or_path for bare weights"
    )


def read_recipe(given: str) -> dict[str, Any]:
    """A recipe's options by name."""
    import yaml  # a help text need not pay for it

    recipe = find_recipe(given)
    try:
        content = yaml.safe_load(recipe.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise InputError(f"Cannot read the recipe {recipe} given by --config: {error}") from error
    if not isinstance(content, dict):
        raise InputError(
            f"The recipe {recipe} holds a {type(content).__name__}; wanted `option: value` lines"
        )
    return content


def as_arguments(options: dict[str, Any]) -> list[str]:
    """Options by name → the command line that says the same; None and empty lists leave an option at
    its default.
    """
    arguments = []
    for key, value in options.items():
        if isinstance(value, list | tuple):
            arguments += [f"--{key}", *_as_text(value)] if value else []
        elif value is not None:  # with `=`, a text that begins with a dash is no option
            arguments.append(f"--{key}={_as_text(value)[0]}")
    return arguments


def _as_text(value: Any) -> list[str]:
    if isinstance(value, list | tuple):
        return [text for item in value for text in _as_text(item)]
    if isinstance(value, dict):
        return [json.dumps(value)]
    return [str(value).lower()] if isinstance(value, bool) else [str(value)]
