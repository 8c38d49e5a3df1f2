"""Which labelled rows stand before the question. Knows rows' numbers and labels; knows no templates and no
models.

The examples of a row follow from (seed, the row's own identity) alone: they are the same whatever the batch
size, the number of processes, the order of rows, or where a run was taken up again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from finetune.errors import InputError


@dataclass(frozen=True)
class Pool:
    """Rows that examples may be drawn from.

    Attributes:
        labels: each row's label as a number, [rows].
        texts: each row's text, which tells it from others; a row is never its own example.
        vectors: an embedding of each row, [rows, width], for `nearest`.
    """

    labels: Sequence[int]
    texts: Sequence[str]
    vectors: np.ndarray | None = None


def generator_of(seed: int, identity: str) -> np.random.Generator:
    """A generator that depends on nothing but these two."""
    # sha256 and no hash(), which differs from process to process
    digest = hashlib.sha256(f"{seed}\n{identity}".encode()).digest()
    # eight bytes are a seed
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def none(pool: Pool, count: int, seed: int, text: str, vector: np.ndarray | None) -> list[int]:
    """No examples."""
    return []


def fixed(pool: Pool, count: int, seed: int, text: str, vector: np.ndarray | None) -> list[int]:
    """The same examples for every row, evenly over the classes: what stands before the question is computed
    once."""
    # one for all: the name is no row's text
    return _balanced(pool, count, generator_of(seed, "fixed"))


def drawn(pool: Pool, count: int, seed: int, text: str, vector: np.ndarray | None) -> list[int]:
    """Examples drawn for each row."""
    generator = generator_of(seed, text)
    # not the row itself, which would show its answer
    others = [int(i) for i in generator.permutation(len(pool.texts)) if pool.texts[i] != text]
    return others[:count]


def balanced(pool: Pool, count: int, seed: int, text: str, vector: np.ndarray | None) -> list[int]:
    """Examples drawn for each row, evenly over the classes."""
    return _balanced(pool, count, generator_of(seed, text), text)


def nearest(pool: Pool, count: int, seed: int, text: str, vector: np.ndarray | None) -> list[int]:
    """The rows with the nearest embeddings (Liu et al. 2022), the nearest of them last, beside the question;
    ties by seed."""
    if pool.vectors is None or vector is None:
        raise InputError("Nearest neighbours need embeddings of the rows; set --embedder")
    likeness = pool.vectors @ vector
    tie = generator_of(seed, text).permutation(len(pool.texts))
    # the last key is the first to sort by: likeness, then chance
    order = [int(i) for i in np.lexsort((tie, -likeness)) if pool.texts[i] != text]
    # reversed: the nearest beside the question
    return order[:count][::-1]


SHOTS: dict[str, Callable[[Pool, int, int, str, np.ndarray | None], list[int]]] = {
    "none": none,
    "fixed": fixed,
    "random": drawn,
    "balanced": balanced,
    "nearest": nearest,
}


def choose(
    way: str, pool: Pool, count: int, seed: int, *, text: str, vector: np.ndarray | None = None
) -> list[int]:
    """Numbers of the rows in the pool that stand before the row with this text, in their order.

    Raises:
        InputError: an unknown way, or fewer rows than examples asked for.
    """
    if way not in SHOTS:
        raise InputError(
            f"Unknown way to choose examples '{way}'; wanted one of: {', '.join(SHOTS)}. Set --shot_choice"
        )
    if way == "none" or count == 0:
        return []
    found = SHOTS[way](pool, count, seed, text, vector)
    # fewer would be another setting than the table says
    if len(found) < count:
        raise InputError(
            f"{len(pool.texts)} rows to draw examples from, {count} wanted; set --shots or --train_split"
        )
    return found


def _balanced(pool: Pool, count: int, generator: np.random.Generator, text: str | None = None) -> list[int]:
    """Rows class by class in turn, in an order of their own."""
    # the row itself is out before classes are counted
    order = [int(i) for i in generator.permutation(len(pool.texts)) if pool.texts[i] != text]
    taken: dict[int, int] = {}
    rank = {}
    for index in order:
        label = pool.labels[index]
        rank[index] = taken.get(label, 0)
        taken[label] = rank[index] + 1
    # stable: within a rank in the drawn order
    chosen = sorted(order, key=lambda i: rank[i])[:count]
    # mixed again, or the examples would come class by class in turn
    return [chosen[i] for i in generator.permutation(len(chosen))]
