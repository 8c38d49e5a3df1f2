"""A folder of pictures or sounds, one folder a class → splits of rows. Knows names of files and folders;
opens none of them.
"""

from __future__ import annotations

import logging
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from finetune.data.cells import FILE_CELL, PICTURES, SOUNDS
from finetune.data.folders import SPLIT_NAMES, SPLITS
from finetune.data.places import PLACE

logger = logging.getLogger(__name__)

NAMED = 3  # files that a message names


def read_media_folder(folder: Path) -> DatasetDict | None:
    """`train/cat/7.png` → split, class and file: rows with `image` or `audio` and, where each file lies in a
    folder of its class, `label`. None where a folder holds neither pictures nor sounds.

    Splits are folders at the top with a split's name (train, validation, test, ...); without any, all are
    training rows. Classes are numbered in the order of their names, over all splits.
    """
    if not folder.is_dir():
        return None
    files = _files(folder)
    column, kept = _kind(files)
    if not kept:
        return None
    _say_others(folder, column, sorted(set(files) - set(kept)))
    placed = [(file, *_placed(file.relative_to(folder).parts)) for file in kept]
    names = sorted({label for _, _, label in placed if label is not None})
    labelled = all(label is not None for _, _, label in placed)
    splits: dict[str, list[dict[str, object]]] = {}
    for file, split, label in placed:
        rows = splits.setdefault(split, [])
        row: dict[str, object] = {column: {"bytes": None, "path": str(file)}}
        row |= {"label": names.index(str(label))} if labelled else {}
        rows.append(row | {PLACE: f"row {len(rows)} ({file.relative_to(folder)})"})
    kinds = {column: FILE_CELL} | ({"label": ClassLabel(names=names)} if labelled else {})
    features = Features(kinds | {PLACE: Value("string")})
    return DatasetDict({split: Dataset.from_list(rows, features=features) for split, rows in splits.items()})


def _say_others(folder: Path, column: str, others: list[Path]) -> None:
    """Say which files of classes' folders are no rows by their ending."""
    lost = [file for file in others if _placed(file.relative_to(folder).parts)[1] is not None]
    # a README or notes are no rows, and are said where they might be taken for tables
    lost = [file for file in lost if file.suffix.lower() not in (".txt", ".text", ".md")]
    if lost:
        named = ", ".join(str(file.relative_to(folder)) for file in lost[:NAMED])
        logger.warning(
            "%d files in folders of classes have no ending of %s and are not read (%s%s); wanted %s",
            len(lost), "a picture" if column == "image" else "a sound", named,
            ", ..." if len(lost) > NAMED else "", " ".join(PICTURES if column == "image" else SOUNDS),
        )  # fmt: skip


def _files(folder: Path) -> list[Path]:
    """All files but hidden ones and those of hidden folders."""
    # a link to nothing is a row whose file is missing
    whole = (
        file for file in folder.rglob("*") if file.is_file() or (file.is_symlink() and not file.exists())
    )
    hidden = (".", "__MACOSX")
    return sorted(
        file for file in whole if not any(p.startswith(hidden) for p in file.relative_to(folder).parts)
    )


def are_strays(folder: Path, parts: dict[str, list[Path]]) -> bool:
    """Whether text files in a folder only lie beside its pictures or sounds, a README or notes in a class,
    and are no tables of them; said in the log.
    """
    files = [file for part in parts.values() for file in part]
    if not folder.is_dir() or not _kind(_files(folder))[1]:
        return False
    strays = [
        file
        for file in files
        if file.suffix.lower() in (".txt", ".text") or _placed(file.relative_to(folder).parts)[1] is not None
    ]
    if not strays or len(strays) < len(files):
        return False
    logger.warning(
        "%s holds pictures or sounds; %d text files beside them, as %s, are not read",
        folder, len(strays), strays[0].relative_to(folder),
    )  # fmt: skip
    return True


def _kind(files: list[Path]) -> tuple[str, list[Path]]:
    """The column and the files of the kind that most files are of."""
    found = [
        (column, [file for file in files if file.suffix.lower().lstrip(".") in endings])
        for column, endings in (("image", PICTURES), ("audio", SOUNDS))
    ]
    return max(found, key=lambda one: len(one[1]))


def _placed(parts: tuple[str, ...]) -> tuple[str, str | None]:
    """Split and class of a file, told from the folders above it."""
    above = list(parts[:-1])
    split = "train"
    if above and SPLIT_NAMES.get(above[0].lower(), above[0].lower()) in SPLITS:
        first = above.pop(0).lower()
        split = SPLIT_NAMES.get(first, first)
    return split, above[-1] if above else None
