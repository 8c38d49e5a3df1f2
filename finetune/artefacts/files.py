"""Names of the files that a run leaves, and files that are never half. Knows no model and no run."""

from __future__ import annotations

import os
from pathlib import Path

SEAL, ARGUMENTS, METRICS, RUN = "seal.json", "arguments.yaml", "metrics.json", "run.json"
PRIVACY = "privacy.json"  # what a private run spent
# How libraries that write for this one say that a disk takes no more: they hand on the system's words, not
# its error.
FULL = ("No space left on device", "Disk quota exceeded", "Read-only file system", "Input/output error",
"failed writing file",
        "Permission denied")  # fmt: skip


def write_atomically(path: Path, text: str) -> None:
    """The file as it was or as it shall be, never half, also where the machine loses its power."""
    # Beside the file and by process: two runs on one disk write two names.
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(text, encoding="utf-8")
        # Its content before its name: a rename may reach the disk first.
        flush(fresh)
        fresh.replace(path)
    except OSError:
        # The old file stays as it was.
        fresh.unlink(missing_ok=True)
        raise
    # The rename itself, which the folder's list holds.
    flush(path.parent)


def flush(path: Path) -> None:
    """Have the disk hold a file's content, or a folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network disks can't flush a folder
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


def remove_half_written(folder: Path, *names: str) -> None:
    """Remove what `write_atomically` left of these files where its process was killed."""
    for name in names:
        for half in folder.glob(f".{name}.*"):
            half.unlink(missing_ok=True)


def disk_fault(error: BaseException) -> str | None:
    """What the disk said, where that is what an error is about."""
    # Libraries turn the system's error into their own, with its words.
    said = f"{error} {getattr(error, 'strerror', None) or ''}"
    return next((words for words in FULL if words.lower() in said.lower()), None)
