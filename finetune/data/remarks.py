"""Everyday remarks about films, a sentence or two each: whole ones as they were written, and words of praise
or blame in frames.

Knows no files; the wording is remarks.yaml's.
"""

from __future__ import annotations

import random
from typing import Any

SIDES = ("neg", "pos")
WHOLE = 0.4  # share of remarks that stand as they were written: they say it without a word of praise or blame


def remark(rng: random.Random, bank: dict[str, Any], side: str) -> str:
    """One remark of that side, `neg` or `pos`; now and then two, one after the other."""
    said = [_sentence(rng, bank, side, WHOLE)]
    if rng.random() < 0.25:
        said.append(_sentence(rng, bank, side, 0.5))
    return " ".join(dict.fromkeys(said))


def _sentence(rng: random.Random, bank: dict[str, Any], side: str, whole: float) -> str:
    return rng.choice(bank["remarks"][side]) if rng.random() < whole else framed(rng, bank, side)


def framed(rng: random.Random, bank: dict[str, Any], side: str) -> str:
    """A frame with its slots filled: <same> by a word of that side, <other> by one of the opposite side."""
    text = rng.choice(bank["frames"])
    opposite = SIDES[1 - SIDES.index(side)]
    said = _unlike(rng, bank["adjectives"][side], 4)
    others = _unlike(rng, bank["adjectives"][opposite], 2)
    slots = {
        "<a_same>": lambda: _with_article(said.pop()), "<a_other>": lambda: _with_article(others.pop()),
        "<same>": said.pop, "<other>": others.pop, "<Same>": lambda: said.pop().capitalize(),
        "<noun>": lambda: rng.choice(bank["nouns"][side]), "<verb>": lambda: rng.choice(bank["verbs"][side]),
        "<thing>": lambda: rng.choice(bank["things"]), "<part>": lambda: rng.choice(bank["parts"]),
        "<film>": lambda: rng.choice(bank["films"]),
    }  # fmt: skip
    for slot, fill in slots.items():
        while slot in text:
            text = text.replace(slot, fill(), 1)
    return text if rng.random() < 0.8 else text.lower().rstrip(".")


def _unlike(rng: random.Random, words: list[str], number: int) -> list[str]:
    """Different words of a list; a short list may hold fewer."""
    return rng.sample(words, min(number, len(words)))


def _with_article(word: str) -> str:
    # spelling decides here; none of the words is one that sounds otherwise ("honest" does)
    vowel = (word[0] in "aeiou" and not word.startswith("uni")) or word == "honest"
    return f"{'an' if vowel else 'a'} {word}"
