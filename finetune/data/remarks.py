"""Everyday remarks about films, a sentence or two each: whole ones as they were written, and words of praise
or blame in frames.

Knows no files; the wording is facing_remarks.yaml's and remarks.yaml's.
"""

from __future__ import annotations

import random
from typing import Any

from finetune.data.reviews import facing

SIDES = ("neg", "pos")
# share of whole remarks: they say it without a word of praise or blame, which frames teach
WHOLE = 0.85


def remarks(
    rng: random.Random, bank: dict[str, Any], lines: list[str], number: int, texts: set[str]
) -> list[tuple[str, int]]:
    """So many remarks with their sides, as many of praise as of blame (one more of blame where the number is
    odd): WHOLE of them whole, or as many as the lines have, and the others words in frames.

    Each line is drawn once, and both its sides are said: what one of them teaches about a topic, the other
    takes back. None of them is among `texts`; all are added there.
    """
    whole = min(len(lines), round(number * WHOLE / 2))
    said = [(facing(line, side), side) for line in rng.sample(lines, whole) for side in (0, 1)]
    # lower-cased, as overlap between splits is counted
    texts.update(text.lower() for text, _ in said)
    while len(said) < number:
        side = len(said) % 2
        text = framed(rng, bank, SIDES[side])
        if text.lower() not in texts:
            texts.add(text.lower())
            said.append((text, side))
    return said


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
