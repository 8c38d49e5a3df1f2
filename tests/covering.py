"""Matrices of cases, of which the plain tests run few: each value of each axis at least once, the rest under
`slow`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def covering(cases: Iterable[Sequence[Any]], axes: int | None = None) -> list[Any]:
    """Parameters for every case: plain ones, as few as hold every value of each axis, and slow ones.

    Args:
        axes: how many of a case's first values are axes; None: all of them.
    """
    cases = list(cases)
    # by their words: classes and mappings stand among them
    values = [set(enumerate(map(repr, case[:axes]))) for case in cases]
    missing, plain = set().union(*values), set()
    while missing:
        # the first of those that hold most, so that the choice is the same everywhere
        best = max(range(len(cases)), key=lambda place: len(values[place] & missing))
        plain.add(best)
        missing -= values[best]
    marks = [() if place in plain else (pytest.mark.slow,) for place in range(len(cases))]
    return [pytest.param(*case, marks=mark) for case, mark in zip(cases, marks, strict=True)]
