"""Command line and YAML → the option classes that a script's `main` names. Knows no option by name.

The command line beats the recipe (`--config FILE.yaml`), which beats the defaults. Unknown or abbreviated keys stop the run.
"""

from __future__ import annotations

import difflib
import gc
import importlib
import inspect
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import yaml

from finetune.cli.help import option_classes, usage
from finetune.errors import InputError


def launch(main: Callable[..., Any]) -> None:
    """Run a script's `main` with the options that its annotations name; the whole of `if __name__ == "__main__":`.

    Errors that the user can mend are printed without a traceback, exit status 2.
    """
    calm_libraries()
    try:
        main = main_of(main, sys.argv[1:])
        main(*parse(main, sys.argv[1:]))
    except InputError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        sys.exit(2)
    finally:
        leave_processes()


def leave_processes() -> None:
    """End the threads that talk to other processes; one that still runs while the interpreter closes may abort it (SIGABRT)."""
    torch = sys.modules.get("torch")
    if not (torch and torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    group = (
        torch.distributed.group.WORLD
    )  # the last reference to go, because this one joins the threads without Python's lock
    torch.distributed.destroy_process_group()
    gc.collect()  # a trainer is full of cycles, and its model holds the group
    del group


def calm_libraries() -> None:
    """Other libraries' chatter off (load reports, bars a load, a notice of PEFT's about transformers), and all telemetry."""
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
        ("TQDM_MININTERVAL", "1"),
    ):
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)


def main_of(main: Callable[..., Any], arguments: Sequence[str]) -> Callable[..., Any]:
    """The function of a script that the options are for.

    A script with several mains has a table ALGORITHMS, name → function; `--algorithm` chooses, else an old recipe's `loss_type`
    or `task`. Each has options of its own, so that none is listed that isn't read. Other names are left to `main`.
    """
    table = main.__globals__.get("ALGORITHMS", {})
    if not table:
        return main
    with suppress(InputError):  # `parse` meets it again and says what is wrong
        recipe, rest = _split_recipe(list(arguments))
        told = list(arguments if recipe is None else [*_as_arguments(recipe, None), *rest])
        for name in ("algorithm", "loss_type", "task"):
            values = [_value_of(told, place) for place, word in enumerate(told) if _names(word, name)]
            if values and values[-1] in table:
                return table[values[-1]]
    return main


def _names(word: str, option: str) -> bool:
    return word.partition("=")[0].replace("-", "_") == f"__{option}"


def _value_of(words: Sequence[str], place: int) -> str:
    return words[place].partition("=")[2] or "".join(words[place + 1 : place + 2])


def parse(main: Callable[..., Any], arguments: Sequence[str]) -> list[Any]:
    """Instances of the option classes that annotate `main`, in its order.

    Raises:
        InputError: an unknown key, a value of the wrong type, a recipe that can't be read.
    """
    script = Path(inspect.getfile(main))
    names = [str(parameter.annotation) for parameter in inspect.signature(main).parameters.values()]
    classes = option_classes(script, names)
    if {"-h", "--help"} & set(arguments):
        with suppress(BrokenPipeError):  # `| head` has seen enough
            print(usage(script, classes), flush=True)
            sys.exit(0)
        os._exit(0)
    types = [vars(importlib.import_module(module))[name] for module, name in classes]
    return parse_into(types, arguments)


def parse_into(types: list[type], arguments: Sequence[str]) -> list[Any]:
    """The same for given dataclasses: `[--config FILE.yaml] [--name value ...]` → one instance of each."""
    from transformers import HfArgumentParser  # half a second, which a help text need not pay

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:  # argparse would print two hundred lines of usage
            raise InputError(f"{message} (--help lists the options)")

    parser = Parser(types, allow_abbrev=False, add_help=False)
    recipe, rest = _split_recipe(list(arguments))
    known = {field for kind in types for field in kind.__dataclass_fields__}  # type: ignore[attr-defined]
    *instances, unknown = parser.parse_args_into_dataclasses(
        [*_as_arguments(recipe, known), *rest], return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        raise InputError(_complain(unknown[0], known))
    return list(instances)


def _split_recipe(arguments: list[str]) -> tuple[Path | None, list[str]]:
    for index, argument in enumerate(arguments):
        if argument == "--config":
            if index + 1 == len(arguments):
                raise InputError("--config names no file; wanted --config FILE.yaml")
            return Path(arguments[index + 1]), arguments[:index] + arguments[index + 2 :]
        if argument.startswith("--config="):
            return Path(argument.partition("=")[2]), arguments[:index] + arguments[index + 1 :]
    return None, arguments


def _as_arguments(recipe: Path | None, known: set[str] | None) -> list[str]:
    """A recipe as the command line that says the same, so that both go through the same checks; `known` None takes any key."""
    if recipe is None:
        return []
    try:
        content = yaml.safe_load(recipe.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"Cannot read the recipe {recipe} given by --config: {error}") from error
    if not isinstance(content, dict):
        raise InputError(
            f"The recipe {recipe} holds a {type(content).__name__}; wanted `option: value` lines"
        )
    arguments = []
    for key, value in content.items():
        if known is not None and key not in known:
            raise InputError(f"In {recipe}: " + _complain(str(key), known))
        if value is not None and value != []:
            arguments += [f"--{key}", *_as_text(value)]
    return arguments


def _as_text(value: Any) -> list[str]:
    if isinstance(value, list):
        return [text for item in value for text in _as_text(item)]
    if isinstance(value, dict):
        return [json.dumps(value)]
    return [str(value).lower()] if isinstance(value, bool) else [str(value)]


def _complain(argument: str, known: set[str]) -> str:
    if not argument.startswith("--") and argument not in known and " " in argument:
        return f"Unexpected value '{argument}'"
    name = argument.lstrip("-").partition("=")[0].replace("-", "_")
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5) or [
        k for k in sorted(known) if k.startswith(name)
    ]
    hint = f" Did you mean --{close[0]}?" if close else ""
    return f"Unknown option '{argument}'.{hint} (--help lists the options; abbreviations are not taken)"
