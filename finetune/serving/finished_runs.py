"""Finished runs that read pictures or sounds, asked by name beside the pool. Knows base64 and predictors;
knows no routes.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.adapters import load
from finetune.adapters.predictor import Predictor
from finetune.data.pictures import kinds, picture_fault
from finetune.errors import InputError

MOST_PIXELS = 2**24  # of one picture: a small file may hold a very large one


class FinishedRuns:
    """Names → predictors.

    Args:
        entries: `name=folder`, as `--runs` has them.

    Raises:
        InputError: an entry without a folder, a folder that is no finished run, or one that reads texts.
    """

    def __init__(self, entries: Sequence[str]) -> None:
        self._known: dict[str, Predictor] = {}
        for entry in entries:
            name, _, folder = entry.partition("=")
            if not name or not folder:
                raise InputError(f"--runs {entry}; wanted name=folder")
            found = load(Path(folder).expanduser())
            if not isinstance(found, Predictor) or found.row.reads not in ("image", "audio"):
                raise InputError(f"--runs {entry} reads neither pictures nor sounds; serve it by --adapters")
            self._known[name] = found

    def names(self) -> dict[str, str]:
        """What each run reads: image or audio."""
        return {name: found.row.reads for name, found in self._known.items()}

    def classify(self, reads: str, contents: Sequence[str], name: str | None) -> list[dict[str, Any]]:
        """Files in base64 → label, its probability, and the probability of every label.

        Args:
            reads: what the files are: image or audio.

        Raises:
            InputError: no such run, one that reads something else, or a file that can't be read.
        """
        if name not in self._known:
            known = ", ".join(self._known) or "none (--runs)"
            raise InputError(f"No run {name!r} that reads files; there are: {known}. Name it by 'adapter'")
        asked = self._known[name]
        if asked.row.reads != reads:
            raise InputError(f"'{name}' reads {asked.row.reads}, and the request holds {reads}")
        files = [_content(place, one, reads) for place, one in enumerate(contents)]
        found = []
        for chances in asked.chances(files):
            best = max(chances, key=lambda label: chances[label])
            found.append({"label": best, "probability": chances[best], "probabilities": chances})
        return found


def _content(place: int, given: str, reads: str) -> bytes:
    """The bytes of a file in base64, with or without the head of a `data:` address."""
    plain = given.partition(",")[2] if given.startswith("data:") else given
    try:
        content = base64.b64decode(plain, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"Input {place} is no base64 ({error})") from error
    if reads == "audio":
        if content[:4] != b"RIFF":
            raise InputError(f"Input {place} is no WAV; wanted the bytes of one in base64")
        return content
    cell = {"bytes": content, "path": None}
    try:
        (size,) = kinds([cell])[1]
    except Exception as error:  # Pillow's word on a file that is no picture
        raise InputError(f"Input {place} is no picture that can be read ({type(error).__name__})") from error
    if size[0] * size[1] > MOST_PIXELS:
        raise InputError(f"Input {place} has {size[0]} x {size[1]} pixels; wanted {MOST_PIXELS:,} at most")
    reason = picture_fault(cell)
    if reason:
        raise InputError(f"Input {place} can't be read: {reason}")
    return content
