"""Completion of verbs, options and recipes' names for bash, zsh and tcsh, written by shtab."""

from __future__ import annotations

import argparse

from finetune.cli.declarations import classes_of, options_of
from finetune.cli.help import one_line
from finetune.cli.places import did_you_mean, recipes, verbs
from finetune.errors import InputError


def completion(arguments: list[str]) -> str:
    """The script that a shell reads: `eval "$(finetune completion bash)"`.

    Raises:
        InputError: another shell, or shtab isn't installed.
    """
    import shtab

    shell = arguments[0] if arguments else ""
    if shell not in shtab.SUPPORTED_SHELLS:
        wanted = ", ".join(shtab.SUPPORTED_SHELLS)
        raise InputError(
            f"Got the shell '{shell}' for completion;{did_you_mean(shell, shtab.SUPPORTED_SHELLS)} wanted "
            "one of: "
            f'{wanted}, as in: eval "$(finetune completion bash)"'
        )
    return str(shtab.complete(_parser(), shell=shell))


def _parser() -> argparse.ArgumentParser:
    from finetune.cli.command import OTHERS

    parser = argparse.ArgumentParser("finetune")
    commands = parser.add_subparsers()
    for name, (_, _, text) in OTHERS.items():
        commands.add_parser(name, help=text)
    for verb, script in verbs().items():
        command = commands.add_parser(verb, help=one_line(script))
        command.add_argument("--config", choices=list(recipes()))
        # Of all algorithms of a verb: which is meant isn't known while it is typed.
        names = {option.name for place in classes_of(script) for option in options_of(*place)}
        for name in sorted(names):
            command.add_argument(f"--{name}")
    return parser
