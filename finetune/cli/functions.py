"""The verbs as functions: options by name, and what a run left as the answer. Imports a verb when it
is called.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.cli.help import usage
from finetune.cli.parser import as_arguments, main_of, parse
from finetune.cli.places import verbs


@dataclass(frozen=True)
class Outcome:
    """What a verb left.

    Attributes:
        folder: its output folder; None for verbs that leave none.
        figures: what the folder's metrics.json says; empty where there is none.
    """

    folder: Path | None
    figures: dict[str, Any] = field(default_factory=dict)


def verb_function(verb: str) -> Callable[..., Outcome]:
    """The function of a verb: `train(task="classification", method="lora", output_dir="runs/x")`."""

    def function(*, config: str | Path | None = None, **options: Any) -> Outcome:
        recipe = [] if config is None else ["--config", str(config)]
        words = [*recipe, *as_arguments(options)]
        # When it is called: importing a verb takes seconds.
        called = importlib.import_module(f"finetune.scripts.{verb}").main
        main = main_of(called, words)
        groups = parse(main, words, called)
        left = main(*groups)
        # Of several groups the last has the folder; verbs without one return it.
        named = [vars(group)["output_dir"] for group in groups if vars(group).get("output_dir")]
        folder = left if isinstance(left, Path) else Path(named[-1]) if named else None
        figures = folder / "metrics.json" if folder else None
        read = json.loads(figures.read_text(encoding="utf-8")) if figures and figures.is_file() else {}
        return Outcome(folder, read)

    # So that help() and tracebacks show the verb's name.
    function.__name__ = function.__qualname__ = verb
    function.__doc__ = (
        f"The verb `finetune {verb}`; its options by name, a recipe as `config`.\n\n"
        "Raises:\n    InputError: whatever the command line would refuse.\n\n" + usage(verbs()[verb])
    )
    return function
