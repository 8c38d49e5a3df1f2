"""Documents → pieces that fit, and which pieces share a row. Knows lengths and ids; knows no tokenizer and no
model.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import TypeVar

from finetune.objectives.noise import IGNORED

T = TypeVar("T")


def cut_pieces(length: int, size: int, overlap: int = 0) -> list[tuple[int, int]]:
    """(start, end) of the pieces, at most `size` long, that a document of `length` tokens falls into.

    With an overlap of one token, a model that predicts each token from those before it predicts every token
    exactly once.
    """
    # pieces share so many tokens
    step = size - overlap
    # no piece of the shared token alone at the end
    starts = range(0, max(length - overlap, 1), step)
    return [(start, min(start + size, length)) for start in starts]


def fill(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Rows of at most `size` tokens that hold every piece whole: best fit, longest first (Ding et al. 2024).

    Args:
        lengths: of the pieces, none above `size`. [pieces]

    Returns:
        the numbers of the pieces in each row.
    """
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, row), sorted
    # longest first; ties stay in the texts' order
    for piece in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        # the first that is large enough is the fullest; -1 stands below every row's number
        place = bisect.bisect_left(rooms, (lengths[piece], -1))
        if place == len(rooms):
            room, row = size, len(rows)
            rows.append([])
        else:
            room, row = rooms.pop(place)
        rows[row].append(piece)
        if room > lengths[piece]:
            # a full row is looked at no more
            bisect.insort(rooms, (room - lengths[piece], row))
    return rows


def joined(parts: Sequence[Sequence[T]]) -> list[T]:
    """One list of all parts."""
    return [value for part in parts for value in part]


def restarting(lengths: Sequence[int], start: int = 0) -> list[int]:
    """Positions that begin again with each document: lengths [2, 3] → [0, 1, 0, 1, 2]."""
    return [position for length in lengths for position in range(start, start + length)]


def numbered_documents(lengths: Sequence[int]) -> list[int]:
    """The number of the document that each token belongs to: lengths [2, 3] → [0, 0, 1, 1, 1]."""
    return [number for number, length in enumerate(lengths) for _ in range(length)]


def next_tokens(ids: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """The token that each position has to predict; -100 at the end of each document, which says nothing of
    the next one.
    """
    labels = [*ids[1:], IGNORED]
    end = 0
    for length in lengths:
        end += length
        # the last of each document, also in the middle of a row
        labels[end - 1] = IGNORED
    return labels
