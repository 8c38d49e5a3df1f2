"""What a rendering may take: length, work, time. Knows values; knows no Jinja text."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from jinja2.exceptions import SecurityError

STEP = 10  # what a loop's turn, a filter or an operator costs, besides the size of what it makes
BITS = 65_536  # of a whole number


class LimitError(SecurityError):
    """A template asked for more than it is given."""


@dataclass(frozen=True)
class Limits:
    """What one rendering may take; `length` and `work` grow with what it is given: long rows aren't refused.

    Attributes:
        length: characters of the text, of any string on the way to it, or elements of a list, nested ones
            counted.
        work: steps (STEP each) and characters made, over the whole rendering: also what memory it can take.
        seconds: by the clock.
    """

    length: int = 1_000_000
    work: int = 20_000_000
    seconds: float = 5.0


@dataclass
class Budget:
    """What is left of the limits in one rendering; `end` is by the clock of time.monotonic."""

    length: int
    work: float
    end: float
    # id → the thing, kept alive so that its id stays its own, and its size
    sizes: dict[int, tuple[Any, int]] = field(default_factory=dict)

    def spend(self, amount: float) -> None:
        self.work -= amount
        if self.work < 0:
            raise LimitError("the template does more work than it is given")
        # With every step, since no alarm runs beside.
        if time.monotonic() > self.end:
            raise LimitError("the template takes longer than it is given")

    def measure(self, value: Any) -> int:
        """Characters and elements of a value as it would be written out: a list that holds one list twice
        counts it twice."""
        if isinstance(value, (str, bytes)):
            size = len(value)
        elif isinstance(value, (list, tuple, dict, set)):
            known = self.sizes.get(id(value))
            # The same thing, since a number may have been given to another object since.
            if known is not None and known[0] is value:
                return known[1]
            inside: Iterable[Any] = (
                (part for pair in value.items() for part in pair) if isinstance(value, dict) else value
            )
            size = 1 + sum(self.measure(part) + 1 for part in inside)
            # Held, so that its id is not given away.
            self.sizes[id(value)] = (value, size)
        elif isinstance(value, int) and not isinstance(value, bool):
            # Whole numbers grow without any string being made.
            if value.bit_length() > BITS:
                raise LimitError("the template makes a number that is too large")
            return 1
        else:
            return 1
        if size > self.length:
            raise LimitError(f"the template makes something of more than {self.length} characters")
        return size

    def pay(self, value: Any) -> Any:
        """A value that was made, measured and paid for."""
        self.spend(STEP + self.measure(value))
        return value


current: ContextVar[Budget | None] = ContextVar("budget", default=None)


def open_account() -> Budget:
    """That of the rendering under way; while a template is compiled, constants are folded on one that is made
    anew."""
    return current.get() or Budget(1_000_000, 1e9, float("inf"))
