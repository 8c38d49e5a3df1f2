"""Texts of two data sets → which of the second stand in the first: exactly, nearly, or in part. Knows texts.

Near ones are found by MinHash in bands (Broder 1997; Leskovec et al. 2020, chapter 3) and then measured, so
that none is called near that isn't; shared passages are those of 13 words (Brown et al. 2020, appendix C).
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

PASSAGE, SHINGLE = 13, 5  # words of a passage, and of what near texts are compared by
BANDS, LINES = 32, 4  # of a signature: two texts that share 0.6 of their shingles meet in 98.8 % of cases
# scripts that set no blanks between words: kana, Chinese characters, Thai, Lao, Burmese, Khmer
UNSPACED = (
    "\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
)
SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: it carries low bits upward


@dataclass(frozen=True)
class Overlap:
    """What is found for one text of the second set.

    Attributes:
        exact, near: place of a text of the first set that it equals, but for case and signs, or resembles.
        likeness: share of shingles that the two have in common (Jaccard); 1 where they are equal.
        passage: place of a text of the first set that shares a passage with it.
        shared: share of its passages that stand somewhere in the first set.
    """

    exact: int | None = None
    near: int | None = None
    likeness: float = 0.0
    passage: int | None = None
    shared: float = 0.0

    @property
    def is_found(self) -> bool:
        return self.exact is not None or self.near is not None or self.passage is not None


@cache
def _word() -> re.Pattern[str]:
    # vowel signs of Indian scripts are marks, no letters, and say as much as letters do
    marks = "".join(
        chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code)) in ("Mn", "Mc")
    )
    letter = rf"[\w{marks}]"
    return re.compile(rf"[{UNSPACED}][{marks}]*|(?:(?![{UNSPACED}]){letter})+")


def words_of(text: str) -> list[str]:
    """Words, the same however a letter is written (composed or not, wide or narrow, in whichever case); each
    character of a script without blanks; of a text of signs alone its signs."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    # folding may take letters apart again
    plain = unicodedata.normalize("NFC", plain)
    return _word().findall(plain) or plain.split()


class Hashes:
    """Words → numbers of 64 bits, the same for the same word, and those of n words in a row."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = np.random.default_rng(seed)
        self.known: dict[str, int] = {}
        # random numbers by a word's id; more are drawn as words are met
        self.mixed = self.generator.integers(1, 2**63, 1 << 12, dtype=np.uint64)
        self.places = _odd(self.generator, PASSAGE)

    def words(self, text: str) -> np.ndarray:
        """[words]"""
        ids = [self.known.setdefault(word, len(self.known)) for word in words_of(text)]
        if len(self.known) > len(self.mixed):
            more = self.generator.integers(1, 2**63, max(len(self.known), len(self.mixed)), dtype=np.uint64)
            self.mixed = np.concatenate([self.mixed, more])
        return self.mixed[np.array(ids, dtype=np.int64)]

    def grams(self, words: np.ndarray, n: int) -> np.ndarray:
        """Distinct hashes of n words in a row; of a shorter text, of all its words."""
        # short texts are compared whole
        n = min(n, len(words))
        if n == 0:
            return np.zeros(0, dtype=np.uint64)
        wide = len(words) - n + 1
        with np.errstate(over="ignore"):
            total = np.full(wide, n, dtype=np.uint64)
            for place in range(n):
                # a factor for each place: the order of words counts
                total = (total ^ (words[place : place + wide] * self.places[place])) * SPREAD
        return np.unique(total)


def _odd(generator: np.random.Generator, many: int) -> np.ndarray:
    """Odd numbers of 64 bits: products with them lose nothing."""
    return generator.integers(0, 2**63, many, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


class Signatures:
    """MinHash: the smallest of a text's shingles under each of many permutations, hashed by bands."""

    def __init__(self, seed: int = 1) -> None:
        generator = np.random.default_rng(seed)
        many = BANDS * LINES
        self.by = _odd(generator, many)
        self.plus = generator.integers(0, 2**63, many, dtype=np.uint64)

    def bands(self, shingles: np.ndarray) -> list[tuple[int, bytes]]:
        """Keys that two alike texts are likely to share one of."""
        with np.errstate(over="ignore"):
            # [shingles, permutations]; overflow is the modulus 2^64
            turned = shingles[:, None] * self.by + self.plus
            turned ^= turned >> np.uint64(29)  # the low bits of a product know little of the high ones
            smallest = (turned * np.uint64(0xBF58476D1CE4E5B9)).min(axis=0)
        return [(band, part.tobytes()) for band, part in enumerate(smallest.reshape(BANDS, LINES))]


def overlaps(first: Sequence[str], second: Sequence[str], near: float = 0.8) -> Iterator[Overlap]:
    """For each text of `second`, what of it stands in `first`.

    Args:
        near: least share of common shingles, from 0.6, below which too many would be missed.
    """
    hashes, signatures = Hashes(), Signatures()
    wholes: dict[bytes, int] = {}
    passages, owners = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.int64)]
    met: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    shingled: list[np.ndarray] = []
    for place, text in enumerate(first):
        words = hashes.words(text)
        # also of empty texts, so that places stay those of the rows
        shingled.append(hashes.grams(words, SHINGLE))
        if not len(words):
            continue
        # the first text of several that are equal
        wholes.setdefault(words.tobytes(), place)
        if len(words) >= PASSAGE:
            passages.append(hashes.grams(words, PASSAGE))
            owners.append(np.full(len(passages[-1]), place))
        for key in signatures.bands(shingled[-1]):
            met[key].append(place)
    known, at = np.unique(np.concatenate(passages), return_index=True)  # the first text that has each
    owner = np.concatenate(owners)[at]
    for text in second:
        words = hashes.words(text)
        if not len(words):
            yield Overlap()
            continue
        grams = hashes.grams(words, PASSAGE) if len(words) >= PASSAGE else np.zeros(0, dtype=np.uint64)
        # for each passage that is known, the first text that has it
        there = owner[_places(known, grams)]
        exact = wholes.get(words.tobytes())
        found, likeness = _nearest(hashes.grams(words, SHINGLE), shingled, met, signatures)
        if exact is not None:
            found, likeness = exact, 1.0
        is_near = found is not None and likeness >= near
        yield Overlap(
            exact, found if is_near else None, likeness, int(min(there)) if len(there) else None,
            len(there) / len(grams) if len(grams) else 0.0,
        )  # fmt: skip


def _places(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where those of `wanted` that are among the sorted `known` stand."""
    if not len(known):
        return np.zeros(0, dtype=np.int64)
    found = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    return found[known[found] == wanted]


def _nearest(
    shingles: np.ndarray, shingled: Sequence[np.ndarray], met: dict, signatures: Signatures
) -> tuple[int | None, float]:
    best, likeness = None, 0.0
    # meeting in one band makes a candidate; the share itself is then counted
    for place in {one for key in signatures.bands(shingles) for one in met.get(key, ())}:
        common = len(np.intersect1d(shingles, shingled[place], assume_unique=True))
        share = common / (len(shingles) + len(shingled[place]) - common)
        # of equal ones the first, as a set has no order
        if share > likeness or (share == likeness and best is not None and place < best):
            best, likeness = place, share
    return best, likeness
