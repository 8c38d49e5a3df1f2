"""Help texts: this project's own options first, by what they are about; other packages' behind
`--help all`.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from pathlib import Path

from finetune.cli.declarations import (
    OURS,
    Option,
    classes_of,
    description,
    options_of,
    required_of,
    title_of,
)

# transformers' options that every run is about: they stand among the own ones.
USUAL = (
    "output_dir", "num_train_epochs", "max_steps", "gradient_accumulation_steps", "weight_decay",
    "lr_scheduler_type",
    "max_grad_norm", "seed", "load_best_model_at_end", "report_to",
)  # fmt: skip
# How a script's docstring names things in a clone → how the installed command does.
INSTALLED = (
    (r"accelerate launch --config_file scripts/accelerate/(\w+)\.yaml scripts/(\w+)\.py",
    r"finetune launch --config_file \1 \2"),
    (r"torchrun --nproc_per_node (\d+) scripts/(\w+)\.py", r"finetune launch --processes \1 \2"),
    (r"python scripts/(\w+)\.py", r"finetune \1"),
    (r"scripts/recipes/(\w+)\.yaml", r"\1"),
)  # fmt: skip


def usage(script: Path, everything: bool = False, installed: bool = False, main: str = "main") -> str:
    """The help text of a script: its docstring, then its options, a group for each of its option classes.

    Args:
        everything: also the options that transformers and trl declare.
        installed: name commands as `finetune VERB`, not as `python scripts/VERB.py`.
        main: the script's function that the options are for, where it has several.
    """
    text = told(script, installed)
    config = Option("config", "",
    "A recipe, by name (`finetune recipes`) or as a YAML file: any of the options below "
                    "as keys. The command line beats it; it beats the defaults.", "finetune")  # fmt: skip
    lines, hidden, required = [text, "", *_entry(config)], 0, required_of(script)
    for module, name in classes_of(script, main):
        options = options_of(module, name)
        shown = [o for o in options if everything or o.package in OURS or o.name in USUAL]
        hidden += len(options) - len(shown)
        lines += ["", title_of(module, name)]
        # what is said here before what is only handed on
        for option in sorted(shown, key=lambda o: (o.package not in OURS, o.name not in USUAL)):
            lines += _entry(option, option.name in required)
    if hidden:
        lines += ["", f"{hidden} further options are transformers' and trl's own, by their names: --help all"]
    return "\n".join(lines)


def told(script: Path, installed: bool) -> str:
    """What a script says of itself, with its commands as the reader can type them."""
    text = description(script)
    # A docstring is written for a clone; the wheel has no scripts folder.
    for pattern, name in INSTALLED if installed else ():
        text = re.sub(pattern, name, text)
    return text


def examples(script: Path, installed: bool) -> str:
    """The commands that a script's docstring shows."""
    parts = told(script, installed).split("\n\n")
    return next((part for part in parts[1:] if part.startswith(("python ", "finetune "))), "")


def _entry(option: Option, required: bool = False) -> list[str]:
    said = "required" if required else f"default: {option.default}" if option.default else ""
    head = f"  --{option.name}" + (f"  ({said})" if said else "")
    # Never wider than 110: long lines are hard to read however wide the screen.
    width = min(shutil.get_terminal_size((110, 24)).columns, 110)
    return [head, *textwrap.wrap(option.help, width, initial_indent=" " * 6, subsequent_indent=" " * 6)]


def one_line(script: Path) -> str:
    """What a verb does, for the list of verbs: its docstring's first sentence."""
    # Up to a point that ends a sentence, and not one within a name.
    sentence = re.split(r"(?<=[\w)])[.:;] ", description(script).split("\n\n")[0].replace("\n", " "))[0]
    return textwrap.shorten(sentence.rstrip("."), 92, placeholder=" …")
