"""A folder of files, or one of them → splits of rows. Knows names of files and splits; knows no
options and no task.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Value

from finetune.data.files import FILE_KINDS, Reading, endings, kind_of, other_kind, read_files
from finetune.data.places import PLACE
from finetune.errors import InputError

logger = logging.getLogger(__name__)

SPLIT_NAMES = {"dev": "validation", "valid": "validation", "val": "validation", "eval": "validation"}
SPLITS = ("train", "validation", "test")
# columns that tell the classes which a split kept aside is balanced over, where none is named
CLASSES = ("label", "labels", "intent", "sentiment", "category", "class", "target", "klasse")


def files_of(path: Path, data_files: list[str] | None) -> dict[str, list[Path]]:
    """Split name → files. A folder's files are named after their split: train.parquet,
    data/test-00000-of-00002.parquet; or lie in a folder of its name.
    """
    if data_files:
        return _named_files(path, data_files)
    if path.is_file():
        if kind_of(path) is None:
            raise InputError(f"{path} ends in '{path.suffix}'; {other_kind(path)}")
        return {"train": [path]}
    if not path.is_dir():
        return {}
    found: dict[str, list[Path]] = {}
    for file in sorted(
        f for f in path.rglob("*") if f.is_file() and kind_of(f) and not f.name.startswith(("README", "."))
    ):
        # what `save_to_disk` wrote is read by `datasets` itself
        if file.name in ("dataset_info.json", "state.json", "dataset_dict.json"):
            return {}
        split = _split_named(file.name.partition(".")[0])
        # train/part_1.csv, train/metadata.csv: where the name tells no split, the folder at the top may
        above = _split_named(file.relative_to(path).parts[0].lower())
        found.setdefault(above if split not in SPLITS and above in SPLITS else split, []).append(file)
    # one file, or a folder of books under titles: all to train on
    if len(found) == 1 or (found and not set(found) & set(SPLITS) and _all_texts(found)):
        return {"train": [file for files in found.values() for file in files]}
    return _of_one_kind(found)


def _split_named(stem: str) -> str:
    """The split that a file's name tells: the hub's shards, and parts of a known one (train_1, train-02)."""
    stem = re.sub(r"-\d{5}-of-\d{5}.*$", "", stem)
    part = re.sub(r"[-_.]\d+$", "", stem)
    known = part in SPLITS or part in SPLIT_NAMES
    # other numbers are names: news-2020 and news-2021 stay two splits
    return SPLIT_NAMES.get(part, part) if known else stem


def _named_files(path: Path, data_files: list[str]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for entry in data_files:
        # once: a path may hold a sign of equality
        split, name = entry.split("=", 1) if "=" in entry else ("train", entry)
        # inside the data set where it is a folder, else from where one stands
        file = path / name if path.is_dir() else Path(name)
        if not file.is_file():
            raise InputError(f"No file {file}, named by --data_files {split}={name}")
        found.setdefault(split, []).append(file)
    return found


def _all_texts(files: Mapping[str, Sequence[Path]]) -> bool:
    """Whether a folder holds books: .txt files that are no splits."""
    return all(kind_of(file) == "text" for paths in files.values() for file in paths)


def _of_one_kind(files: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """The files of the training rows' kind: what lies beside train.parquet as input.txt is no split."""
    kinds = {kind_of(file) for file in files.get("train", [])}
    others = {split: [f for f in paths if kind_of(f) not in kinds] for split, paths in files.items()}
    strange = [str(file) for paths in others.values() for file in paths]
    # without a training split, or with one of several kinds, nothing tells which are meant
    if len(kinds) != 1 or not strange:
        return files
    logger.warning(
        "Left aside, as the training rows are of another kind: %s (--data_files names others)",
        ", ".join(strange),
    )
    kept = {split: [file for file in paths if file not in others[split]] for split, paths in files.items()}
    return {split: paths for split, paths in kept.items() if paths}


def read_folder(files: dict[str, list[Path]], reading: Reading) -> DatasetDict:
    kinds = {kind_of(file) or file.suffix for paths in files.values() for file in paths}
    if len(kinds) > 1 or not kinds <= set(FILE_KINDS.values()):
        raise InputError(
            f"Files of several kinds ({', '.join(sorted(kinds))}); wanted {endings()}, one kind. Name them "
            "by --data_files"
        )
    if not reading.documents:
        # books are documents each; one file, or one a split, has them line by line
        books = kinds == {"text"} and len(files.get("train", ())) > 1
        reading = replace(reading, documents="files" if books else "lines")
        if books:
            logger.warning(
                "%d .txt files: each is one document (--documents paragraphs or lines)", len(files["train"])
            )
    # one by one: splits of one folder need not have the same columns
    return DatasetDict({split: read_files(paths, reading) for split, paths in files.items()})


def default_eval(splits: Mapping[str, Any], fallback: str | None) -> str | None:
    return next((name for name in ("validation", "test") if name in splits), fallback)


def split_of(splits: DatasetDict, name: str, flag: str) -> Dataset:
    base, _, bounds = name.partition("[")
    if base not in splits:
        raise InputError(
            f"No split '{base}'; there are: {', '.join(splits)}. Set {flag}, or --data_files train=FILE"
        )
    rows = splits[base]
    if bounds:
        rows = rows.select(sliced(bounds, len(rows), flag))
    if len(rows) == 0:
        raise InputError(f"Split '{name}' has 0 rows; name another by {flag}")
    return rows


def sliced(bounds: str, length: int, flag: str) -> range:
    """The rows of a split's slice, whose bounds are as `10%:]` behind the bracket.

    Raises:
        InputError: bounds that can't be read.
    """
    # the closing bracket is still there: the name was parted at the opening one
    match = re.fullmatch(r"(-?\d+%?)?:(-?\d+%?)?\]", bounds)
    if not match:
        raise InputError(
            f"Cannot read the slice '[{bounds}'; wanted [start:end] in rows or per cent. Set {flag}"
        )
    edges = [
        None if edge is None else int(edge[:-1]) * length // 100 if edge.endswith("%") else int(edge)
        for edge in match.groups()
    ]
    return range(length)[slice(*edges)]


def kept_aside(rows: Dataset, label: str | None, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the rows to train on and of the tenth to evaluate on: of each class as nearly a tenth as can
    be.

    A class of one row stays in training. The same rows and seed give the same split.
    """
    # shuffled first: within a class, rows are then taken at random
    order = np.random.default_rng(seed).permutation(len(rows))
    column = label or next((c for c in rows.column_names if c.lower() in CLASSES), None)
    size = max(1, len(rows) // 10)
    if column in rows.column_names and isinstance(rows.features[column], (ClassLabel, Value)):
        _, classes, counts = np.unique(
            [str(value) for value in rows[column][:]], return_inverse=True, return_counts=True
        )
        if len(counts) <= max(2, len(rows) // 2):  # else it is no class but a text, or a number
            # stable, so that the shuffled order stays within each class
            order = order[np.argsort(classes[order], kind="stable")]
            # a class of one row could only be evaluated, never learnt
            order = order[counts[classes[order]] > 1] if (counts > 1).any() else order
    # every so many-th of the rows in the order of their classes has all classes in proportion
    places = (np.arange(size) * len(order)) // size + len(order) // size // 2
    aside = sorted({int(order[place]) for place in places})
    gone = set(aside)
    return [row for row in range(len(rows)) if row not in gone], aside


def groups_apart(rows: Dataset, wanted: str, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the rows to train on and of those to evaluate on, which share no value of a column.

    Args:
        wanted: `speaker=lucas`, or `speaker` for about a tenth of the speakers, one at least.

    Raises:
        InputError: no such column or value, or nothing left on one side.
    """
    column, named, value = (part.strip() for part in wanted.partition("="))
    if column not in rows.column_names or column == PLACE:
        there = ", ".join(name for name in rows.column_names if name != PLACE)
        raise InputError(f"No column '{column}' in the training rows; they have {there}. Set --hold_out")
    feature = rows.features[column]
    values = [
        feature.names[one] if isinstance(feature, ClassLabel) and one is not None and one >= 0 else str(one)
        for one in rows[column]
    ]
    # sorted, so that the seed draws the same groups whatever order rows are in
    groups = sorted(set(values))
    chosen = {value}
    if not named:
        order = np.random.default_rng(seed).permutation(len(groups))
        # at least one group, however few there are
        chosen = {groups[place] for place in order[: max(1, len(groups) // 10)]}
    if not chosen <= set(groups) or len(groups) < 2:
        raise InputError(
            f"--hold_out {wanted}: the column '{column}' holds {', '.join(groups[:20])}; wanted one of them, "
            "and others to train on"
        )
    aside = [row for row, one in enumerate(values) if one in chosen]
    logger.warning(
        "Kept aside for evaluation: %d rows whose %s is %s", len(aside), column, ", ".join(sorted(chosen))
    )
    return [row for row, one in enumerate(values) if one not in chosen], aside


def numbered(splits: DatasetDict) -> DatasetDict:
    """Splits whose rows know their number, which a sample or a shuffle doesn't change."""
    return DatasetDict(
        {
            split: rows
            if PLACE in rows.column_names
            else rows.add_column(PLACE, [f"row {n}" for n in range(len(rows))])
            for split, rows in splits.items()
        }
    )
