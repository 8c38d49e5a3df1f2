"""Which rows may be asked of models that were tuned on rows of their own. Knows folders and rows; knows no
prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset

from finetune.artefacts.files import ARGUMENTS
from finetune.artefacts.trained_rows import TRAINED_ROWS, trained_among, unseen_rows


def rows_to_ask(rows: Dataset, models: Sequence[str], keep: bool | None = None) -> tuple[Dataset, int]:
    """The rows that none of the models was trained on, the same for all, and how many others there are.

    Args:
        keep: see `unseen_rows`.

    Raises:
        InputError: there are none.
    """
    if keep:
        masks = [trained_among(run, rows, None) for run in runs_among(models)]
        known = [mask for mask in masks if mask is not None]
        # a row that several know counts once
        return rows, int(np.any(known, axis=0).sum()) if known else 0
    unseen = rows
    for run in runs_among(models):
        # rows that any of them knows would favour it in the same table
        unseen = unseen_rows(run, unseen, None, keep=keep).rows
    return unseen, len(rows) - len(unseen)


def runs_among(models: Sequence[str]) -> list[Path]:
    """Folders of runs: names of the hub and addresses are none, and tell nothing of what they read."""
    folders = [Path(name).expanduser() for name in models]
    return [one for one in folders if (one / TRAINED_ROWS).is_file() or (one / ARGUMENTS).is_file()]
