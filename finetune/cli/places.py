"""Where verbs, recipes and launchers' files are kept, by name. Knows folders; reads none of the files.

In a clone they stand in `scripts/` at the repository's top, in the wheel in `finetune/scripts/`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from finetune.errors import InputError

PACKAGE = Path(__file__).resolve().parents[1]


def scripts_folder() -> Path:
    """The folder of the scripts: the package's own, or the one beside the package in a clone."""
    # The wheel holds the scripts inside; in a clone they stand beside the package.
    inside = PACKAGE / "scripts"
    # By a file and not by the folder, which an empty package may have.
    return inside if (inside / "train.py").is_file() else PACKAGE.parent / "scripts"


def verbs() -> dict[str, Path]:
    """Scripts by verb: `train` → `scripts/train.py`."""
    return {path.stem: path for path in sorted(scripts_folder().glob("*.py")) if path.stem != "__init__"}


def recipes() -> dict[str, Path]:
    """Recipes by name: `reviews_lora` → `scripts/recipes/reviews_lora.yaml`."""
    return _by_stem("recipes")


def launchers() -> dict[str, Path]:
    """accelerate's configurations by name: `two_cpus` → `scripts/accelerate/two_cpus.yaml`."""
    return _by_stem("accelerate")


def prompt_entries() -> dict[str, Path]:
    """The library's prompts by name: `sentiment` → `prompts/library/sentiment.yaml`."""
    return {path.stem: path for path in sorted((PACKAGE.parent / "prompts" / "library").glob("*.yaml"))}


def _by_stem(folder: str) -> dict[str, Path]:
    return {path.stem: path for path in sorted((scripts_folder() / folder).glob("*.yaml"))}


def find_recipe(given: str) -> Path:
    """The file that `--config` names: a file of the user's, or a recipe of the package by name.

    Raises:
        InputError: there is neither.
    """
    return _find(given, recipes(), "recipe", "--config", "`finetune recipes` tells what each does")


def find_launcher(given: str) -> Path:
    """accelerate's configuration that `finetune launch --config_file` names: a file, or one of the package by
    name.

    Raises:
        InputError: there is neither.
    """
    return _find(given, launchers(), "configuration", "--config_file", "they are accelerate's own files")


def _find(given: str, known: dict[str, Path], kind: str, option: str, further: str) -> Path:
    path = Path(given)
    # A file of the user's before a recipe of that name.
    if path.is_file():
        return path
    # A name alone: a path that ends in a recipe's name is a file that isn't there.
    if given.removesuffix(".yaml") in known and path.name == given:
        return known[given.removesuffix(".yaml")]
    hint = did_you_mean(path.stem, known)
    raise InputError(
        f"Cannot read the {kind} {given} given by {option}: there is no such file, and the package has no "
        f"{kind} "
        f"of that name.{hint} It has: {', '.join(known)} ({further})"
    )


def did_you_mean(name: str, known: Iterable[str], mark: str = "") -> str:
    """` Did you mean x?` for the closest of what is known; nothing where nothing is close."""
    # Half alike at least; further away a hint would mislead.
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {mark}{close[0]}?" if close else ""
