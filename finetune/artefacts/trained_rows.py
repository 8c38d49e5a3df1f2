"""Which rows a run was trained on, told by a hash of their texts, so that none of them is scored unawares.

Knows rows and folders; knows no task. The file holds hashes alone: no text can be read back from it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from finetune.data.cells import content_of
from finetune.data.checks import not_trained
from finetune.data.columns import Columns
from finetune.errors import InputError

logger = logging.getLogger(__name__)

TRAINED_ROWS = "trained_rows.safetensors"
HASHES = "hashes"


def row_hashes(rows: Dataset, columns: Columns) -> list[int]:
    """A hash of 63 bits of each row's inputs, whatever its label; case and blanks at the ends of texts make
    no difference.
    """
    # Inputs alone: the same text with another label has been seen as well.
    inputs = [map(content_of, rows[column]) for column in columns.inputs]
    return [_hash(parts) for parts in zip(*inputs, strict=True)]


def _hash(parts: tuple) -> int:
    content = json.dumps(parts, ensure_ascii=False, default=str).lower()
    # Blanks at the ends of texts, which stand inside JSON's quotes.
    plain = " ".join(content.split()).replace('" ', '"').replace(' "', '"')
    # 63 bits: int64 has a sign.
    return int.from_bytes(hashlib.blake2b(plain.encode(), digest_size=8).digest()) >> 1


def save_trained_rows(folder: str | Path, rows: Dataset, columns: Columns) -> None:
    """Write the hashes of the training rows."""
    # Sorted and once each: neither order nor number of rows can be read back.
    hashes = torch.tensor(sorted(set(row_hashes(rows, columns))), dtype=torch.int64)
    save_file({HASHES: hashes}, str(Path(folder) / TRAINED_ROWS))


def read_trained_rows(folder: str | Path) -> set[int] | None:
    """Hashes of the training rows; None where nothing tells them.

    Raises:
        InputError: a damaged file.
    """
    path = Path(folder) / TRAINED_ROWS
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            return set(file.get_tensor(HASHES).tolist())
    except (SafetensorError, OSError) as error:
        raise InputError(f"Cannot read {path}: {error}. Remove it to score rows without its check") from error


def unseen_rows(
    folder: str | Path,
    rows: Dataset,
    columns: Columns,
    unseen: Callable[[np.ndarray], np.ndarray] = not_trained,
) -> tuple[Dataset, int]:
    """The rows that the run in a folder was not trained on, and how many it was; the log counts them.

    Args:
        unseen: whether each row was trained on [rows] → places of those to keep (see `Task.unseen`).

    Raises:
        InputError: it was trained on all of them.
    """
    known = read_trained_rows(folder)
    if known is None:
        logger.warning(
            "%s does not say which rows it was trained on; some of these may be among them", folder
        )
        return rows, 0
    # The task decides what "seen" means: windows and pairs have rules of their own.
    fresh = unseen(np.array([one in known for one in row_hashes(rows, columns)]))
    count = len(rows) - len(fresh)
    if not len(fresh):
        raise InputError(
            f"The run in {folder} was trained on all {count} of these rows, so that figures on them would "
            "say nothing. Set --eval_split or --dataset_name to rows it has not seen, or "
            "--keep_trained_rows true"
        )
    if count:
        logger.warning(
            "%d of %d rows are left out: %s was trained on them (--keep_trained_rows true scores them too)",
            count,
            len(rows),
            folder,
        )
    return (rows.select(fresh) if count else rows), count
