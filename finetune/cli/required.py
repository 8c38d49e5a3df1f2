"""Options without which a verb can't begin, asked for at once. Knows words of a command line; knows no option
by name.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import fields

from finetune.errors import InputError


class MissingOptions(InputError):
    """Options that only the user can know were not given."""


def check_required(required: Sequence[str], words: Sequence[str], types: Sequence[type]) -> None:
    """Stop where an option of `required` stands in no word; one that no class of `types` has isn't asked for.

    Raises:
        MissingOptions: all that are missing, with the first sentence of their help.
    """
    helps = {option.name: option.metadata.get("help", "") for kind in types for option in fields(kind)}
    given = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in words if word.startswith("--")}
    missing = [name for name in required if name in helps and name not in given]
    if not missing:
        return
    width = max(map(len, missing)) + 4
    lines = [
        f"  --{name.ljust(width)}{textwrap.shorten(first_sentence(helps[name]), 96, placeholder=' …')}"
        for name in missing
    ]
    raise MissingOptions("\n".join([f"Missing: {', '.join(f'--{name}' for name in missing)}", *lines]))


def first_sentence(text: str) -> str:
    """Up to the first point that ends a sentence."""
    return re.split(r"(?<=[\w)])\. ", " ".join(text.split()))[0].rstrip(".")
