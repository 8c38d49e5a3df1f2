"""A hub's name → splits of rows. Knows nothing of files."""

from __future__ import annotations

import datasets
from datasets import DatasetDict

from finetune.data.corpora import CORPORA
from finetune.errors import InputError


def read_hub(name: str, config: str | None) -> DatasetDict:
    """All splits of a data set on the hub, or of one in its cache.

    Raises:
        InputError: there is none, or the hub isn't to be reached.
    """
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
