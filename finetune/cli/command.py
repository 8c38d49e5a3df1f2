"""The `finetune` command: verbs, tables, launcher, completion. Knows verbs by their files; imports
one when it is called.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable

from finetune.cli.help import one_line
from finetune.cli.parser import launch
from finetune.cli.places import did_you_mean, verbs
from finetune.errors import InputError

OTHERS: dict[str, tuple[str, str, str]] = {
    "launch": ("finetune.cli.launcher", "launch_verb",
    "Start a verb in several processes: finetune launch --processes 2 train ..."),
    "recipes": ("finetune.cli.tables", "recipes_table", "The recipes that --config takes by name"),
    "tasks": ("finetune.cli.tables", "tasks_table", "What there is to learn from labelled rows (--task)"),
    "methods": ("finetune.cli.tables", "methods_table", "How a model can be tuned (--method)"),
    "objectives": ("finetune.cli.tables", "objectives_table",
    "What there is to learn from bare texts (--objective)"),
    "prompts": ("finetune.cli.tables", "prompts_table", "The library's prompts (--prompts)"),
    "completion": ("finetune.cli.completion", "completion",
    "Completion for a shell: finetune completion bash|zsh|tcsh"),
}  # fmt: skip
# What one types in the first hour; each prints what comes after it.
FIRST = (
    "To begin:",
    "  finetune check FILE.csv    what is wrong with a file of texts and labels, and what then",
    "  finetune recipes           data sets that are known: finetune train --config imdb_lora",
    "  finetune prompts           prompts that are there, and how to ask them",
    "  finetune sft, finetune dpo a model that writes: by examples, by pairs of a better and a worse answer",
    "  finetune board runs        all that was run, in the browser",
)


def main() -> None:
    """What `finetune` on the command line does. Errors that the user can mend end it with status 2."""
    try:
        run(sys.argv[1:])
        # Here and not at exit: a pipe that is closed would raise where nothing catches it.
        sys.stdout.flush()
    except InputError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `| head` has seen enough; what is still buffered has nowhere to go
        # Without Python's own flushing at exit, which would write into the closed pipe again.
        os._exit(0)


def run(arguments: list[str]) -> None:
    """One command line, without its first word.

    Raises:
        InputError: there is no such verb.
    """
    verb, *rest = arguments or ["--help"]
    verb = verb if verb.startswith("-") else verb.replace("-", "_")  # compare-runs is scripts/compare_runs.py
    scripts = verbs()
    if verb in ("-h", "--help", "help"):
        print(overview())
    elif verb == "--version":
        print(f"finetune-and-prompt {version()}")
    elif verb in OTHERS:
        module, name, _ = OTHERS[verb]
        function: Callable[[list[str]], str | None] = vars(importlib.import_module(module))[name]
        text = function(rest)
        if text is not None:
            print(text)
    elif verb in scripts:
        # A verb that has a module of its own is imported only now.
        launch(importlib.import_module(f"finetune.scripts.{verb}").main, rest, installed=True)
    else:
        raise InputError(
            f"Unknown verb '{verb}'.{did_you_mean(verb, [*scripts, *OTHERS])} `finetune` lists the verbs"
        )


def overview() -> str:
    """The verbs, a line each."""
    lines = {verb: one_line(script) for verb, script in verbs().items()}
    width = max(map(len, [*lines, *OTHERS])) + 2
    return "\n".join(
        [
            *FIRST,
            "",
            "finetune VERB --help tells a verb's options; finetune --version",
            "",
            *(f"  {verb.ljust(width)}{text}" for verb, text in lines.items()),
            "",
            *(f"  {name.ljust(width)}{text}" for name, (_, _, text) in OTHERS.items()),
        ]
    )


def version() -> str:
    """Of the installed distribution."""
    # late: it costs a tenth of what --help may take
    import importlib.metadata

    # In a clone that was not installed there are no metadata.
    try:
        return importlib.metadata.version("finetune-and-prompt")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed: run from a clone)"
