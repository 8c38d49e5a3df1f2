"""Pictures, sounds and series as an app has them (bytes, paths, Pillow's pictures, waves, arrays) → cells.
Knows formats; knows no model.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import wavfile

from finetune.data.pictures import picture_fault
from finetune.data.sounds import sound_fault
from finetune.errors import InputError


def picture_cell(given: Any) -> dict[str, Any]:
    """A picture given as its file's bytes or path, or as Pillow's picture.

    Raises:
        InputError: something else, or a file that can't be read.
    """
    cell = _file(given)
    # By what it can do: Pillow is no dependency of this module.
    if cell is None and hasattr(given, "save") and hasattr(given, "mode"):
        held = io.BytesIO()
        # PNG, which loses nothing.
        given.save(held, "PNG")
        cell = {"bytes": held.getvalue(), "path": None}
    return _checked(cell, picture_fault, "the bytes or the path of a picture, or Pillow's picture")


def sound_cell(given: Any) -> dict[str, Any]:
    """A sound given as its file's bytes or path, or as (wave, samples a second).

    Raises:
        InputError: something else, or a file that can't be read.
    """
    cell = _file(given)
    if cell is None and isinstance(given, tuple) and len(given) == 2:
        held = io.BytesIO()
        wavfile.write(held, int(given[1]), np.asarray(given[0]))
        cell = {"bytes": held.getvalue(), "path": None}
    return _checked(
        cell, sound_fault, "the bytes or the path of a sound, or a tuple of its wave and its rate"
    )


def series_cell(given: Any) -> np.ndarray:
    """A series given as numbers [time], or as channels of them, → [channels, time], float32.

    Raises:
        InputError: one without steps, with more axes, or with a value that is no finite number.
        TypeError, ValueError: what is no array of numbers.
    """
    if isinstance(given, str):  # which NumPy would read as one number, where it is one
        raise TypeError("a text")
    with np.errstate(over="ignore"):  # what float32 can't hold is named below
        found = np.atleast_2d(np.asarray(given, np.float32))
    if found.ndim != 2 or not found.size:
        raise InputError(f"A series has the shape {found.shape}; wanted [time] or [channels, time]")
    gaps = np.argwhere(~np.isfinite(found))
    if len(gaps):
        channel, step = gaps[0]
        raise InputError(
            f"A series has {found[channel, step]} at step {step} of channel {channel}; fill the gaps "
            "(numpy.interp)"
        )
    return found


def _file(given: Any) -> dict[str, Any] | None:
    if isinstance(given, (bytes, bytearray)):
        return {"bytes": bytes(given), "path": None}
    return {"bytes": None, "path": str(given)} if isinstance(given, (str, Path)) else None


def _checked(cell: dict[str, Any] | None, fault: Any, wanted: str) -> dict[str, Any]:
    reason = f"no such thing; wanted {wanted}" if cell is None else fault(cell)
    if reason or cell is None:
        raise InputError(f"An input can't be read: {reason}")
    return cell
