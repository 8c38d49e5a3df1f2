"""Command line and recipes → the option classes that a script's `main` names. Knows no option by name.

The command line beats the recipe (`--config FILE.yaml`), which beats the defaults. Unknown or abbreviated
keys stop the run.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from finetune.cli.declarations import classes_of, option_classes, options_of
from finetune.cli.help import examples, usage
from finetune.cli.mistakes import complain, in_own_words
from finetune.cli.places import did_you_mean, verbs
from finetune.cli.recipes import OF_ONE_RUN, as_arguments, read_recipe, renamed_of, split_recipe
from finetune.cli.required import MissingOptions, check_required
from finetune.cli.sharing import check_alone
from finetune.errors import InputError

# What a disk says that takes no more, whichever library wrote to it.
FULL_DISK = ("No space left on device", "Disk quota exceeded", "Read-only file system", "failed writing file")
# What gloo says where another process is gone, or says nothing for --ddp_timeout.
LOST_PEER = ("Timed out waiting", "Connection closed by peer", "Connection reset by peer")


def launch(main: Callable[..., Any], arguments: Sequence[str] | None = None, installed: bool = False) -> None:
    """Run a script's `main` with the options that its annotations name; the whole of `if __name__ ==
    "__main__":`.

    Errors that the user can mend are printed without a traceback, exit status 2.

    Args:
        main: of a script.
        arguments: the command line's where none are given.
        installed: whether the script was called by `finetune VERB`, for its help.
    """
    # Before any import of theirs: they read these variables once.
    calm_libraries()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        check_processes()
        # Which function has the options isn't known before the words are looked at.
        called, main = main, main_of(main, arguments)
        arguments = by_name(main, arguments)
        # Before parsing: help is asked for where something else is wrong, too.
        answer_help(main, arguments, installed)
        check_alone(Path(inspect.getfile(called)).stem)
        _run(main, parse(main, arguments, called))
    except InputError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        # where nothing or too little was said, what one may say is worth more than what is missing
        if not arguments or isinstance(error, MissingOptions):
            print(f"\n{examples(Path(inspect.getfile(main)), installed)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            "\nstopped; a run that had begun goes on where it was when the same command is started again",
            file=sys.stderr,
        )
        sys.exit(130)
    except Exception as error:  # libraries hand on the system's words in errors of their own
        remedy = _remedy(str(error))
        if remedy is None:
            raise
        print(f"\nerror: {remedy}", file=sys.stderr)
        sys.exit(2)
    finally:
        leave_processes()


def _run(main: Callable[..., Any], options: Sequence[Any]) -> None:
    """
    Raises:
        InputError: what is wrong, by the options that this verb has.
    """
    try:
        main(*options)
    except InputError as error:
        script = Path(inspect.getfile(main))
        known = {o.name for kind in classes_of(script, main.__name__) for o in options_of(*kind)}
        said = in_own_words(str(error), known, script.stem.replace("_", "-"), _verbs_with)
        raise InputError(said) from error


def _verbs_with(option: str) -> list[str]:
    # the verbs that most come from first
    usual = ("train", "sft", "dpo", "prompt")
    return [
        verb
        for verb, script in sorted(verbs().items(), key=lambda one: one[0] not in usual)
        if any(o.name == option for kind in classes_of(script) for o in options_of(*kind))
    ]


def _remedy(said: str) -> str | None:
    """What to do about an error of a disk or of another process, by a library's words; None for any other."""
    if any(words in said for words in LOST_PEER) and "gloo" in said:
        return (
            "Another process of this run is gone or does not answer; what stopped it stands above, if it "
            f"could say so. {said.splitlines()[0]}\nStart the same command again: it goes on from the last "
            "checkpoint. --ddp_timeout is how many seconds an answer is waited for"
        )
    words = next((words for words in FULL_DISK if words in said), None)
    if words is None:
        return None
    return (
        f"{words}: {said.splitlines()[0]}\nCheckpoints before it are whole. Make room, or set "
        "--output_dir to another disk, and start the same command again"
    )


def by_name(main: Callable[..., Any], arguments: Sequence[str]) -> list[str]:
    """Words that stand first without an option, as the options that the script's POSITIONAL says they are."""
    names = main.__globals__.get("POSITIONAL", ())
    words = list(takewhile(lambda word: not word.startswith("-"), arguments))[: len(names)]
    named = [part for name, word in zip(names, words, strict=False) for part in (f"--{name}", word)]
    return [*named, *arguments[len(words) :]]


def check_processes() -> None:
    """As many processes as `finetune launch` was asked for; a launcher may start one and say nothing.

    Raises:
        InputError: there are others.
    """
    wanted, there = os.environ.get("FINETUNE_PROCESSES"), os.environ.get("WORLD_SIZE", "1")
    # Only where `finetune launch` set it: a launcher of the user's own needs no number.
    if wanted and wanted != there:
        raise InputError(
            f"`finetune launch` was asked for {wanted} processes and the launcher started {there}; look at "
            "the options "
            "that were passed on to it and at --config_file"
        )


def leave_processes() -> None:
    """End the threads that talk to other processes; one that runs while the interpreter closes may
    abort it (SIGABRT).
    """
    torch = sys.modules.get("torch")
    if not (torch and torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    # the last reference to go, because this one joins the threads without Python's lock
    group = torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()
    gc.collect()  # a trainer is full of cycles, and its model holds the group
    del group


def calm_libraries() -> None:
    """Other libraries' chatter off (load reports, bars a load, a notice of PEFT's about
    transformers), and all telemetry.
    """
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
        ("TRL_EXPERIMENTAL_SILENCE", "1"),  # versions are pinned
        ("TQDM_MININTERVAL", "1"),
        ("HF_DATASETS_DISABLE_PROGRESS_BARS", "1"),  # rows are shuffled and cut in a moment
    ):
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():  # a bar for each model that is loaded or fetched, of no use in a file
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")  # also those inside other libraries' steps
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    for name in ("bitsandbytes", "torchao"):  # they miss a kernel at every import
        logging.getLogger(name).setLevel(logging.ERROR)


def main_of(main: Callable[..., Any], arguments: Sequence[str]) -> Callable[..., Any]:
    """The function of a script that the options are for.

    A script with several mains has a table ALGORITHMS, name → function, or the verb that has it;
    `--algorithm` chooses, else an old recipe's `loss_type` or `task`. Each has options of its own, so that
    none is listed that isn't read. Other names are left to `main`, unless the table names `main` too.

    Raises:
        InputError: an algorithm that a table of all of them doesn't have.
    """
    table = main.__globals__.get("ALGORITHMS", {})
    if not table:
        return main
    told = list(arguments)
    with suppress(InputError):  # `parse` meets it again and says what is wrong
        recipe, rest = split_recipe(told)
        # In front, since the command line beats the recipe: the last value counts.
        told = told if recipe is None else [*as_arguments(read_recipe(recipe)), *rest]
    for name in ("algorithm", "loss_type", "task"):
        values = [_value_of(told, place) for place, word in enumerate(told) if _names(word, name)]
        if values and values[-1] in table:
            chosen = table[values[-1]]
            if callable(chosen):
                return chosen
            return main_of(importlib.import_module(f"finetune.scripts.{chosen}").main, arguments)
        if values and name == "algorithm" and main in table.values():  # a table that names all there are
            raise InputError(
                f"Unknown algorithm '{values[-1]}'.{did_you_mean(values[-1], table)} Wanted one of: "
                f"{', '.join(table)}. Set --algorithm"
            )
    return main


def _names(word: str, option: str) -> bool:
    return word.partition("=")[0].replace("-", "_") == f"__{option}"


def _value_of(words: Sequence[str], place: int) -> str:
    return words[place].partition("=")[2] or "".join(words[place + 1 : place + 2])


def answer_help(main: Callable[..., Any], arguments: Sequence[str], installed: bool) -> None:
    """`--help` and `--help all` print and end the program."""
    asked = [i for i, argument in enumerate(arguments) if argument in ("-h", "--help")]
    if not asked:
        return
    everything = arguments[asked[0] + 1 : asked[0] + 2] == ["all"]
    with suppress(BrokenPipeError):  # `| head` has seen enough
        print(usage(Path(inspect.getfile(main)), everything, installed, main.__name__), flush=True)
        sys.exit(0)
    os._exit(0)


def parse(
    main: Callable[..., Any], arguments: Sequence[str], called: Callable[..., Any] | None = None
) -> list[Any]:
    """Instances of the option classes that annotate `main`, in its order.

    Args:
        main: see `main_of`.
        arguments: `[--config RECIPE] [--name value ...]`.
        called: the main of the verb that was called, whose recipes are taken too.

    Raises:
        InputError: an unknown key, a value of the wrong type, a recipe that can't be read or is of another
            verb.
    """
    meant = dict.fromkeys(Path(inspect.getfile(one)).stem for one in (main, called or main))
    # Only a recipe may hold another algorithm's options; a help text or a plain call need not load them.
    others = _other_mains(main) if split_recipe(list(arguments))[0] else []
    idle = {o.name: o.default for one in others for kind in _types_of(one) for o in fields(kind) if o.init}
    required = main.__globals__.get("REQUIRED", ())
    return parse_into(_types_of(main), arguments, *meant, idle=idle, required=required)


def _types_of(main: Callable[..., Any]) -> list[type]:
    names = [str(parameter.annotation) for parameter in inspect.signature(main).parameters.values()]
    classes = option_classes(Path(inspect.getfile(main)), names)
    return [vars(importlib.import_module(module))[name] for module, name in classes]


def _other_mains(main: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The other mains of a script that has several."""
    table = main.__globals__.get("ALGORITHMS", {})
    # The script's own main last: of two defaults of an option it is the one that old recipes have.
    mains = [*table.values(), main.__globals__.get("main")] if table else []
    return [one for one in dict.fromkeys(mains) if callable(one) and one is not main]


def parse_into(
    types: list[type],
    arguments: Sequence[str],
    *meant: str,
    idle: dict[str, Any] | None = None,
    required: Sequence[str] = (),
) -> list[Any]:
    """The same for given dataclasses: `[--config RECIPE] [--name value ...]` → one instance of each.

    Args:
        types: the option classes.
        arguments: of the command line.
        meant: the verbs whose recipes are taken; one that says it is another verb's is refused.
        idle: options that a recipe may hold with these values, and that are not read here.
        required: options that have no default that would fit.
    """
    from transformers import HfArgumentParser  # half a second, which a help text need not pay

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:  # argparse would print two hundred lines of usage
            raise InputError(f"{message} (--help lists the options)")

    # Abbreviations would change their meaning with each new option.
    parser = Parser(types, allow_abbrev=False, add_help=False)
    known = {option.name for kind in types for option in fields(kind) if option.init}
    resumed = any(_names(word, "resume_from") for word in arguments)
    if resumed and "resume_from" not in known:
        raise InputError(complain("--resume_from", known, {}))
    recipe, rest = split_recipe(list(arguments))
    # words in front of all options are the values of the one that a verb is about: finetune check FILE
    leading = next((vars(kind)["LEADING"] for kind in types if "LEADING" in vars(kind)), None)
    if leading is not None and rest and not rest[0].startswith("-"):
        rest = [f"--{leading}", *rest]
    # names that look like options and aren't: a base class's, which a subclass has settled
    settled = {
        o.name: o.default for kind in types for o in fields(kind) if not o.init and o.name not in known
    }
    renamed = renamed_of(types)
    # The recipe first: of two values argparse takes the later.
    without = OF_ONE_RUN if resumed else ()
    taken = _from_recipe(recipe, known, (idle or {}) | settled, meant, without=without, renamed=renamed)
    words = [*taken, *rest]
    words += _unwritten(words, known)
    _, unknown = parser.parse_known_args(words)  # a misspelled option before what its absence leads to
    if unknown:
        raise InputError(complain(unknown[0], known, settled, renamed))
    check_required(required, words, types)
    return list(parser.parse_args_into_dataclasses(words, look_for_args_file=False))


def _unwritten(words: Sequence[str], known: set[str]) -> list[str]:
    """A folder for a run that only looks at its rows and names none: it writes nothing."""
    checks = [_value_of(words, place) for place, word in enumerate(words) if _names(word, "check")]
    named = any(_names(word, "output_dir") for word in words)
    if (
        named
        or "output_dir" not in known
        or not checks
        or checks[-1].lower() not in ("true", "1", "yes", "y", "t")
    ):
        return []
    return [f"--output_dir={Path(tempfile.gettempdir()) / 'unwritten'}"]


def _from_recipe(
    given: str | None,
    known: set[str],
    settled: dict[str, Any],
    meant: Sequence[str],
    *,
    without: Sequence[str],
    renamed: dict[str, str],
) -> list[str]:
    """A recipe as the command line that says the same, so that both go through the same checks.

    What is settled may stand in it with the value that it has: arguments.yaml of earlier versions listed more
    options.

    Args:
        without: options that aren't taken from it.
        renamed: names of earlier versions → the options that they are now.
    """
    content = {} if given is None else read_recipe(given)
    content |= {new: content.pop(old) for old, new in renamed.items() if content.get(old) is not None}
    content = {key: value for key, value in content.items() if key not in without}
    of = content.pop("verb", None)
    if meant and of is not None and of not in meant:
        raise InputError(f"The recipe {given} is one of `finetune {of}`, and this is `finetune {meant[-1]}`")
    # What is known is read, whatever another algorithm's default for it is.
    content = {k: v for k, v in content.items() if k in known or k not in settled or v != settled[k]}
    for key in content:
        if key not in known:
            raise InputError(
                f"In {given}: {complain(str(key), known, settled)}{_other_verbs(content) if meant else ''}"
            )
    return as_arguments(content)


def _other_verbs(content: dict[str, Any]) -> str:
    """The verbs whose options a recipe's keys are, for a recipe that was handed to another one."""
    fitting = [
        name
        for name, script in verbs().items()
        if set(content) <= {o.name for place in classes_of(script) for o in options_of(*place)}
    ]
    return f" All of its keys are options of: finetune {', finetune '.join(fitting)}" if fitting else ""
