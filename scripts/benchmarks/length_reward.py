"""A reward for runs whose speed matters and whose outcome doesn't: more letters, up to a hundred, are
better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def length(prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
    """0 to 1 for each answer."""
    return [min(len(answer), 100) / 100 for answer in answers]
