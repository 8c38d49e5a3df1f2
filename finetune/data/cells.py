"""Cells that no single type holds: messages with calls of tools as JSON, pictures and sounds as their files.
Knows Arrow and bytes alone.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Json, List, Value, concatenate_datasets

# Files as cells. `datasets` has types of its own for pictures and sounds, which want codecs to be written.
# Endings of files.
PICTURES = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm")
SOUNDS = ("wav", "flac", "ogg", "opus", "mp3", "aiff", "aif", "au", "caf", "w64")
FILE_CELL = {"bytes": Value("binary"), "path": Value("string")}


def with_json(rows: Dataset | None, name: str, values: list[Any]) -> Dataset:
    """The rows with a column of records, or of lists of them, that keep their own keys and types each."""
    lists = isinstance(next((value for value in values if value is not None), None), list)
    made = Dataset.from_dict({name: values}, features=Features({name: List(Json()) if lists else Json()}))
    return made if rows is None or not rows.column_names else concatenate_datasets([rows, made], axis=1)


def with_cells(rows: Dataset, name: str, values: list[Any]) -> Dataset:
    """The rows with a further column, of texts as they are and of anything else as JSON keeps it."""
    if values and not isinstance(values[0], str):
        return with_json(rows, name, values)
    # rows that have lost all their columns have no length either
    return rows.add_column(name, values) if rows.column_names else Dataset.from_dict({name: values})


def is_file(cell: Any) -> bool:
    """Whether a cell is a file's content, or the path of one: a picture or a sound."""
    return isinstance(cell, dict) and cell.keys() == {"bytes", "path"}


def lie_media(folder: Path) -> bool:
    """Whether pictures or sounds lie in a folder itself."""
    return any(one.suffix.lower().lstrip(".") in PICTURES + SOUNDS for one in folder.iterdir())


def file_bytes(cell: dict[str, Any]) -> bytes:
    """What the file of a cell holds; an OSError where there is none."""
    return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()


def file_fault(error: Exception) -> str:
    """What a reader of files says of one, without addresses in memory."""
    plain = re.sub(r"\s*<_io\.\w+ object at 0x\w+>", "", str(error))
    return f"{type(error).__name__}: {' '.join(plain.split())[:100] or 'damaged'}"


def missing_file(path: str) -> str | None:
    """What is said of a path at which there is no file, None where there is one."""
    try:
        if Path(path).is_file():
            return None
    except OSError:  # of a name that is too long to be one
        pass
    if "://" in path:
        return f"an address, {path:.80}, where a file's path is wanted: fetch it first"
    if len(path) > 300 or path.startswith("data:"):
        return f"a text of {len(path):,} letters, {path:.30}..., where a file's path is wanted"
    return f"no file {path}"


def content_of(cell: Any) -> Any:
    """A cell by what it holds: of a file a hash of its content, wherever it lies."""
    return hashlib.blake2b(file_bytes(cell), digest_size=16).hexdigest() if is_file(cell) else cell
