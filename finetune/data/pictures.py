"""Cells that are pictures → Pillow's pictures, vectors and small copies. Knows files and modes; knows no
rows' meaning and no model.
"""

from __future__ import annotations

import base64
import io
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune.data.cells import file_bytes, file_fault, missing_file
from finetune.errors import InputError

USUAL = ("image", "img", "picture", "photo", "pixels", "file_name", "file", "path")
SMALL = 64  # pixels a side, of the copies on pages
GREY, COLOUR = "L", "RGB"

logger = logging.getLogger(__name__)


def pillow() -> Any:
    """Pillow's module of pictures.

    Raises:
        InputError: it is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(
            "Pictures want the extra 'images': pip install 'finetune-and-prompt[images]'"
        ) from error
    return Image


def opened(cell: dict[str, Any], mode: str = COLOUR) -> Any:
    """The picture of a cell in a mode: upright, on white where it is transparent, 16 bits a channel as 8.

    Raises:
        OSError, ValueError, SyntaxError: whatever Pillow says of a file that is none, or is cut short.
    """
    image = pillow()
    from PIL import ImageOps

    with image.open(io.BytesIO(file_bytes(cell))) as file:
        # before the file closes; a picture cut short fails here
        file.load()
        # phones save pictures lying and note how to turn them
        picture = ImageOps.exif_transpose(file)
    if picture.mode == mode:
        return picture
    if picture.mode.startswith(("I", "F")):
        picture = image.fromarray(_eight_bits(np.asarray(picture)))
    elif picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        white = image.new("RGBA", picture.size, "white")
        picture = image.alpha_composite(white, picture.convert("RGBA"))
    return picture.convert(mode)


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey values of 16 or 32 bits, or shares of 1, as 0 to 255."""
    most = float(values.max(initial=0))
    # 257 = 65535 / 255. Of 16 bits always, so that a dark picture stays darker than the bright one beside it;
    # of 32 nothing says how much white is
    wide = values.dtype.itemsize == 2 or most > 255
    scale = 255.0 if values.dtype.kind == "f" and most <= 1 else 1 / 257 if wide else 1.0
    return np.clip(np.round(values * scale), 0, 255).astype(np.uint8)


def picture_fault(cell: dict[str, Any] | None) -> str | None:
    """What is wrong with a picture, None where it can be read whole."""
    if cell is None or (cell["bytes"] is None and not cell["path"]):
        return "no picture"
    try:
        size = opened(cell).size
    except OSError as error:
        # also a name that is too long to be one, or a folder's
        missing = cell["bytes"] is None and missing_file(cell["path"])
        return missing or file_fault(error)
    except Exception as error:  # Pillow's readers of damaged files raise whatever they stumble over
        return file_fault(error)
    return None if min(size) > 0 else "a picture without pixels"


def kinds(cells: Sequence[dict[str, Any]]) -> tuple[Counter[str], Counter[tuple[int, int]], int]:
    """How many pictures have each mode, and each size (width, height), and how many hold several pictures or
    move; reads their heads alone.
    """
    several = 0
    modes: Counter[str] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    for cell in cells:
        with pillow().open(io.BytesIO(file_bytes(cell))) as picture:
            modes[picture.mode] += 1
            sizes[picture.size] += 1
            # formats of a single picture don't count
            several += vars(type(picture)).get("n_frames") is not None and picture.n_frames > 1
    return modes, sizes, several


def say_kinds(cells: Sequence[dict[str, Any]], mode: str, wanted: dict[str, int]) -> None:
    """Say in the log which pictures are brought into another mode, and how many sizes into the model's one.

    Args:
        wanted: the size as image processors have it.
    """
    modes, sizes, several = kinds(cells)
    if several:
        logger.warning("%d files move or hold several pictures; the first of each is read", several)
    others = Counter({name: count for name, count in modes.items() if name != mode})
    if others:
        told = ", ".join(f"{count} of mode {name}" for name, count in others.most_common())
        logger.warning("%s pictures are read as %s", told, mode)
    fixed = {"height", "width"} <= wanted.keys()
    side = fixed and (wanted["width"], wanted["height"])
    # where the shorter edge is fixed, every size is brought to it
    strange = Counter({size: count for size, count in sizes.items() if size != side})
    if strange:
        told = ", ".join(f"{count} of {wide} x {high}" for (wide, high), count in strange.most_common(3))
        told += ", ..." if len(strange) > 3 else ""
        ends = " and ".join(f"{value} ({name})" for name, value in wanted.items())
        to = f"{wanted['width']} x {wanted['height']}" if fixed else ends
        logger.warning("Pictures are brought to %s pixels: %s", to, told)


def mode_of(channels: int) -> str:
    """Pillow's name of the mode of pictures with so many channels.

    Raises:
        InputError: as many as no picture is read with.
    """
    if channels not in (1, 3):
        raise InputError(
            f"The model wants pictures of {channels} channels; they are read as grey (1) or colours (3). Set "
            "--config_overrides num_channels=3"
        )
    return GREY if channels == 1 else COLOUR


def pixels(cells: Sequence[dict[str, Any]], side: int = 28) -> np.ndarray:
    """Grey values in [0, 1] of small copies, [pictures, side * side]."""
    return np.stack([np.asarray(opened(cell, GREY).resize((side, side))).ravel() / 255.0 for cell in cells])


def small_copy(cell: dict[str, Any]) -> str:
    """A picture of at most 64 pixels a side as a `data:` address, for pages."""
    picture = opened(cell)
    picture.thumbnail((SMALL, SMALL))
    held = io.BytesIO()
    picture.save(held, "PNG" if min(picture.size) < 32 else "JPEG")
    kind = "png" if min(picture.size) < 32 else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(held.getvalue()).decode()}"
