"""How much an adapter's configuration may ask for, before anything is built by it. Knows PEFT's options;
knows no models.

A folder may come from anyone. Numbers in it decide how large a model becomes, and regular expressions in it
are tried on
every name of a layer: both have an end here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from finetune.errors import InputError

LARGEST_FILE = 2**24  # bytes of a configuration
LARGEST = 2**17  # no rank, width or number of made-up tokens is beyond this
LAYERS = 4096  # copies that `layer_replication` may make
PATTERNS = ("target_modules", "exclude_modules", "feedforward_modules", "layers_pattern", "modules_to_save")
BY_PATTERN = ("rank_pattern", "alpha_pattern")
# options that say how much memory is taken; in dictionaries below them too
SIZES = re.compile(
    r"^(r|rank|init_r|target_r|num_.*|.*_(size|dim|length|len|vectors|frequency|rank)|n_.*|u|topk)$"
)


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        InputError: it can't be read, is too large, or nests too deep.
    """
    # The size before the reading.
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise InputError(f"{path} has {path.stat().st_size} bytes; {LARGEST_FILE} at most")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read {path}: {error}") from error
    except RecursionError as error:
        raise InputError(f"Cannot read {path}: it nests too deep") from error


def check_bounds(file: Path, config: dict[str, Any]) -> None:
    """Refuse a configuration that asks for more than any adapter needs.

    Raises:
        InputError: names the option.
    """
    for option in PATTERNS:
        if isinstance(config.get(option), str):
            check_patterns(option, [config[option]])
    for option in BY_PATTERN:
        check_patterns(option, config.get(option) or {})
        _check_sizes(file, {f"{option} r": value for value in (config.get(option) or {}).values()})
    _check_sizes(file, config)
    replicated = config.get("layer_replication") or []
    # Pairs of (from, to); a reversed pair makes none.
    total = sum(max(0, int(pair[1]) - int(pair[0])) for pair in replicated) if replicated else 0
    if total > LAYERS:
        raise InputError(f"{file} replicates layers {total} times; {LAYERS} at most")


def check_patterns(option: str, patterns: Iterable[str]) -> None:
    """Regular expressions come from a file that anyone may have written: one that repeats a repetition may
    never end.

    Raises:
        InputError: one that is too long, or repeats too much.
    """
    for pattern in patterns:
        # Escaped signs are signs and no repetitions.
        repeats = len(re.findall(r"(?<!\\)[*+{]", pattern))
        if (
            len(pattern) > 10_000
            # A repeated group is where backtracking grows without bound.
            or re.search(r"\)[*+{]", pattern)
            or repeats > 3
            or "(?" in pattern
            or "\\1" in pattern
        ):
            raise InputError(
                f"The {option} {pattern[:200]!r} repeats too much; wanted names of modules, or up to three "
                "of '*' and "
                "'+'"
            )


def _check_sizes(file: Path, config: dict[str, Any]) -> None:
    for option, value in config.items():
        if isinstance(value, dict) and option not in BY_PATTERN:
            _check_sizes(file, value)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and SIZES.match(option.rpartition(" ")[2]) and not -1 <= value <= LARGEST:
            raise InputError(f"{file} has {option.rpartition(' ')[0] or option} {value}; {LARGEST} at most")
