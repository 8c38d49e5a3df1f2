"""Files of labelled series (.ts, as the UEA archive has them) → columns. Knows the format; knows no task."""

from __future__ import annotations

from typing import Any

from finetune.errors import InputError


def read_ts(text: str, name: str) -> tuple[dict[str, list[Any]], list[int]]:
    """Columns `series` (a list of channels, each a list of numbers; ? is none) and `label` (its class, or
    the number to tell; absent where the file declares none), and each row's line.

    The header's lines begin with @, comments with #; behind @data a row is channels parted by colons, the
    last part being the label.

    Raises:
        InputError: no @data, a value that is no number, or rows with times of their own.
    """
    labelled, begun = False, False
    columns: dict[str, list[Any]] = {"series": [], "label": []}
    lines: list[int] = []
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if not begun:
            key, _, told = line.lower().partition(" ")
            # header lines are told by their first word; case differs from file to file
            begun = key == "@data"
            labelled |= key in ("@classlabel", "@targetlabel") and told.split()[:1] == ["true"]
            continue
        parts = line.split(":")
        if labelled:
            columns["label"].append(parts.pop().strip())
        columns["series"].append([_channel(part, number, name) for part in parts])
        lines.append(number)
    if not begun:
        raise InputError(f"{name} has no line @data; wanted a .ts file of labelled series")
    return columns if labelled else {"series": columns["series"]}, lines


def _channel(text: str, line: int, name: str) -> list[float | None]:
    # (time, value) pairs: the format's way of uneven steps
    if "(" in text:
        raise InputError(
            f"Line {line} of {name} gives its values times of their own; wanted series at even steps as "
            "1.0,2.0,?"
        )
    try:
        # gaps stay gaps, for the task to fill or refuse
        return [None if cell.strip() in ("?", "NaN") else float(cell) for cell in text.split(",")]
    except ValueError as error:
        raise InputError(
            f"Line {line} of {name} holds a value that is no number: {error}. Mend it"
        ) from error
