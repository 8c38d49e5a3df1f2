"""Drawn answers → which of the possible ones they name; long ones are asked for by a letter. Knows texts
only."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from prompts.scoring.score import Request

LETTERS = string.ascii_uppercase
LONG = 4  # words of an answer that is asked for by a letter, where answers are counted


def named(text: str, answers: Sequence[str]) -> str | None:
    """The answer that a text begins with, the longest of those that fit, as a whole word."""
    # signs that models like to put in front of an answer
    bare = text.strip().lstrip("\"'*([").casefold()
    # a whole word: "no" must not be found in "nothing"
    fit = [a for a in answers if re.match(re.escape(a.casefold()) + r"(?!\w)", bare)]
    # "very good" and not "good"
    return max(fit, key=len, default=None)


def with_letters(request: Request, answers: Sequence[str]) -> Request:
    """The same question with its answers listed, to be answered by a letter."""
    listed = "\n".join(f"{letter}. {answer}" for letter, answer in zip(LETTERS, answers, strict=False))
    added = f"\n{listed}\nThe letter of the right one:"
    turns = (
        (*request.turns[:-1], (request.turns[-1][0], request.turns[-1][1] + added)) if request.turns else ()
    )
    return Request(request.context + added, request.answers, "", request.special, turns, "")
