"""A hub's name → splits of rows. Knows of files which names can only be theirs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import datasets
from datasets import DatasetDict

from finetune.data.corpora import CORPORA
from finetune.data.files import kind_of
from finetune.errors import InputError

# a drive, or a server's share
WINDOWS = re.compile(r"[A-Za-z]:\\|\\\\") if os.name != "nt" else re.compile(r"(?!)")


def read_hub(name: str, config: str | None) -> DatasetDict:
    """All splits of a data set on the hub, or of one in its cache.

    Raises:
        InputError: there is none, the hub isn't to be reached, or the name can only be a file's.
    """
    if WINDOWS.match(name):
        raise InputError(
            f"No file or folder '{name}': that is a path of Windows, and this is none. Under WSL "
            f"`wslpath '{name}'` says its name here. Set --dataset_name"
        )
    # the hub's names end in no known ending, and what it would say of a file that isn't there helps nobody
    of_owner = name.count("/") == 1 and not Path(name).parent.exists()  # as owner/set.json may be
    if Path(name).is_absolute() or (kind_of(Path(name)) and not of_owner):
        like = sorted(file.name for file in Path().glob(f"*{Path(name).suffix}") if file.is_file())[:8]
        there = f"; there are {', '.join(like)}" if like else ""
        raise InputError(f"No file or folder '{name}' in {Path.cwd()}{there}. Set --dataset_name")
    try:
        found = datasets.load_dataset(name, config)
    except Exception as error:
        near = ", ".join(CORPORA)
        raise InputError(
            f"No data set '{name}': not a file or folder here, not a built-in corpus ({near}), and the hub "
            "answers "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}. Set --dataset_name"
        ) from error
    return found
