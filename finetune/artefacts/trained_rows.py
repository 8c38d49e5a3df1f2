"""Which rows a run was trained on, told by a hash of their texts, so that none of them is scored unawares.

Knows rows and folders; knows no task. The file holds hashes alone: no text can be read back from it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from datasets import ClassLabel, Dataset, Value
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from finetune.artefacts.files import ARGUMENTS
from finetune.data.cells import content_of
from finetune.data.checks import not_trained
from finetune.data.columns import TEXTS, Columns
from finetune.data.places import columns_of
from finetune.data.questions import lay_out_chats, lay_out_prompts
from finetune.data.sources import DataArguments
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


def save_trained_rows(
    folder: str | Path, *parts: tuple[Dataset, Columns], of: Iterable[str | Path] = ()
) -> None:
    """Write the hashes of the training rows, and of those that the run's start was trained on.

    Args:
        parts: rows, each with the columns that were read.
        of: further folders whose rows are known by what is saved: those of adapters that were merged.
    """
    known = {one for rows, columns in parts for one in row_hashes(rows, columns)}
    # With the start's own, so that nothing is forgotten when its folder is gone.
    for source in (*_starts(Path(folder)), *of):
        known |= read_trained_rows(source) or set()
    # Sorted and once each: neither order nor number of rows can be read back.
    save_file({HASHES: torch.tensor(sorted(known), dtype=torch.int64)}, str(Path(folder) / TRAINED_ROWS))


def _starts(folder: Path) -> list[Path]:
    """The runs that a run began with, by its arguments.yaml: one that tuned further, adapters that are
    fused."""
    if not (folder / ARGUMENTS).is_file():
        return []
    options = _options(folder)
    named = [options.get("model_name_or_path"), *(options.get("adapters") or [])]
    starts = [Path(str(one)).expanduser() for one in named if one]
    return [one for one in starts if not read_texts_alone(one)]


def read_texts_alone(folder: Path) -> bool:
    """Whether a run of pretraining left a folder: texts read without any answer give none away, so that a
    start may have read the texts of rows that are scored later."""
    return "objective" in _options(folder)


def _options(folder: Path) -> dict[str, Any]:
    file = folder / ARGUMENTS
    return (yaml.safe_load(file.read_text(encoding="utf-8")) or {}) if file.is_file() else {}


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


def trained_among(folder: str | Path, rows: Dataset, columns: Columns | None) -> np.ndarray | None:
    """Whether the run in a folder was trained on each row, [rows]; None where nothing tells.

    Args:
        columns: what is read of the rows; None where that is not what training read, so that any one or two
            of their columns may be it, or what is asked in them.
    """
    known = read_trained_rows(folder)
    if known is None:
        return None
    return _by_any_column(known, rows) if columns is None else _among(known, row_hashes(rows, columns))


class Unseen(NamedTuple):
    """Rows to score, and how many of those that came a run was trained on: left out, or kept by the user's
    word."""

    rows: Dataset
    trained: int


def unseen_rows(
    folder: str | Path,
    rows: Dataset,
    columns: Columns | None,
    unseen: Callable[[np.ndarray], np.ndarray] = not_trained,
    *,
    keep: bool | None = None,
) -> Unseen:
    """The rows that the run in a folder was not trained on; the log counts them.

    Args:
        columns: see `trained_among`.
        unseen: whether each row was trained on [rows] → places of those to keep (see `Task.unseen`).
        keep: whether the others are scored too (--keep_trained_rows); None where a verb can't be told so.

    Raises:
        InputError: it was trained on all of them.
    """
    seen = trained_among(folder, rows, columns)
    if seen is None:
        # Where all are kept nothing is claimed of them.
        if not keep:
            logger.warning(
                "%s does not say which rows it was trained on; some of these may be among them", folder
            )
        return Unseen(rows, 0)
    # The task decides what "seen" means: windows and pairs have rules of their own.
    fresh = unseen(seen)
    count = len(rows) - len(fresh)
    if keep:
        return Unseen(rows, count)
    further = "" if keep is None else ", or --keep_trained_rows true"
    if not len(fresh):
        raise InputError(
            f"The run in {folder} was trained on all {count} of these rows, so that figures on them would "
            f"say nothing. Set --eval_split or --dataset_name to rows it has not seen{further}"
        )
    if count:
        also = "" if keep is None else " (--keep_trained_rows true scores them too)"
        logger.warning("%d of %d rows are left out: %s was trained on them%s", count, len(rows), folder, also)
    return Unseen(rows.select(fresh) if count else rows, count)


def unseen_by_start(
    start: Any,
    rows: Dataset,
    columns: Columns | None,
    unseen: Callable[[np.ndarray], np.ndarray] = not_trained,
) -> Dataset:
    """Evaluation rows without those that the run which another starts from was trained on.

    Args:
        start: as --model_name_or_path names it; what is no run of ours, or tells of no rows, has seen none.
        columns, unseen: see `unseen_rows`.

    Raises:
        InputError: there are no others.
    """
    folder = Path(str(start)).expanduser()
    # what a start read without answers is no reason: it may have been all texts of a file
    if not (folder / TRAINED_ROWS).is_file() or read_texts_alone(folder):
        return rows
    return unseen_rows(folder, rows, columns, unseen).rows


def _among(known: set[int], hashes: Iterable[int]) -> np.ndarray:
    return np.array([one in known for one in hashes], dtype=bool)


def _by_any_column(known: set[int], rows: Dataset) -> np.ndarray:
    """Whether each row holds what was trained on, whatever its columns are called: [rows]."""
    seen = np.zeros(len(rows), dtype=bool)
    for laid, columns in _readings(rows):
        seen |= _among(known, row_hashes(laid, columns))
    return seen


def _readings(rows: Dataset) -> Iterator[tuple[Dataset, Columns]]:
    """Ways in which training may have read the same rows."""
    # Numbers are no inputs of texts: a class's would be found in every row.
    names = [name for name in columns_of(rows) if _may_hold_text(rows.features[name])]
    for name in names:
        yield rows, Columns(name, None, name)
    # In both orders: which text came first is the training's affair.
    for first, second in permutations(names, 2):
        yield rows, Columns(first, second, first)
    # Chats and instructions are laid out before they are learnt; rows that are none have no such reading.
    for lay_out in (lay_out_chats, lambda part, data: lay_out_prompts(part, data, TEXTS)):
        try:
            laid = lay_out(rows, DataArguments(dataset_name=[""]))
        except InputError:
            continue
        yield laid.rows, laid.columns


def _may_hold_text(feature: Any) -> bool:
    if isinstance(feature, Value):
        return feature.dtype in ("string", "large_string")
    return not isinstance(feature, ClassLabel)
