"""Others' files of prompts → files of this project, or word that they are read as they are. Knows the formats
by name."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from finetune.artefacts.checkpoints import write_atomically
from finetune.errors import InputError
from prompts.templates import lm_eval
from prompts.templates.reading import read_entry


@dataclass
class ImportArguments:
    """What is read, and where the prompts go."""

    file: str = field(
        default="",
        metadata={"help": "A task of lm-evaluation-harness (YAML), or promptsource's templates.yaml."},
    )
    output: str | None = field(
        default=None, metadata={"help": "File to write (default: the task's name, here)."}
    )


def import_task(file: str, output: str | None = None) -> str:
    """Write a task's prompts; what was written, what was left out, and how it is run.

    Raises:
        InputError: no such file, Python in the task, a kind of task that isn't asked here.
    """
    path = Path(file).expanduser()
    if not file or not path.is_file():
        raise InputError(f"No file '{file}'; wanted a task's YAML: import-task FILE")
    # promptsource's tag for a template, which no other format has
    if "!Template" in path.read_text(encoding="utf-8", errors="replace"):
        entry = read_entry(str(path))
        kinds = ", ".join(
            f"{count} by {kind}" for kind, count in Counter(map(entry.kind, entry.templates)).items()
        )
        return (
            f"{path} is promptsource's, and read as it is: --prompts {path}\n"
            f"{len(entry.templates)} templates: {kinds}"
        )
    made = lm_eval.imported(path)
    target = Path(output or f"{made.name}.yaml").expanduser()
    # the task itself would be overwritten
    if target.resolve() == path.resolve():
        raise InputError(f"{target} is the task itself; set --output")
    note = f"# From lm-evaluation-harness's task {made.name}.\n"
    note += "".join(f"# Not carried: {what}\n" for what in made.left)
    text = note + yaml.safe_dump(made.content, sort_keys=False, allow_unicode=True, width=1000)
    # somebody may have gone on writing in it
    if target.is_file() and target.read_text(encoding="utf-8") != text:
        raise InputError(f"{target} is there and holds something else. Set --output, or take it away")
    target.parent.mkdir(parents=True, exist_ok=True)
    written = target.is_file()
    write_atomically(target, text)
    # read at once: what was written is an entry, or it is said now and doesn't stay
    try:
        entry = read_entry(str(target))
        # named one by one, since each is parsed when it is first used
        columns = {
            name for one in (*entry.templates.values(), *entry.targets.values()) for name in one.columns
        }
    except InputError:
        if not written:
            target.unlink()
        raise
    lines = [f"{target}: prompts of the task {made.name}"]
    lines += [f"not carried: {what}" for what in made.left]
    lines.append(f"columns: {', '.join(sorted(columns))}")
    lines.append(f"finetune prompt --prompts {target} {' '.join(made.hints)}".rstrip())
    return "\n".join(lines)
