"""Several sources of rows → one endless stream of features, drawn by weight. Knows rows and encoders; knows
no model.

The stream is a function of its seed: a resumed run reads it again up to where it was left, and every process
reads all of it and keeps its share, so that no process waits for rows that another one has.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset
from datasets.iterable_dataset import ExamplesIterable
from torch.utils.data import IterableDataset as TorchIterable

from finetune.data.streaming import StreamingArguments
from finetune.errors import InputError

Row = dict[str, Any]
Encode = Callable[[dict[str, list[Any]], np.random.Generator], dict[str, list[Any]]]
TEXTS_AT_ONCE = 256
PATIENCE = 20  # batches of texts that may give no row, one after another


@dataclass
class StreamArguments(StreamingArguments):
    """Training rows from several sources, or from sources too large to read at once; both need
    --max_steps.
    """

    mixture: list[str] | None = field(
        default=None,
        metadata={
            "help": "Training rows by weight from several data sets, each name=weight; evaluation stays on "
            "dataset_name."
        },
    )


def parse_mixture(entries: Sequence[str]) -> dict[str, float]:
    """`["a=0.7", "b=0.3"]` → {"a": 0.7, "b": 0.3}.

    Raises:
        InputError: an entry without a positive weight, or a name twice.
    """
    weights: dict[str, float] = {}
    for entry in entries:
        # from the right: names of files may hold a =
        name, _, weight = entry.rpartition("=")
        try:
            value = float(weight)
        except ValueError:
            value = 0.0
        # `not >`, which nan doesn't pass
        if not name or not value > 0 or name in weights:
            raise InputError(
                f"--mixture {entry} can't be read; wanted each data set once as name=weight, the weight "
                "above 0"
            )
        weights[name] = value
    return weights


def rounds(
    rows: Dataset | IterableDataset, seed: tuple[int, ...], apart: bool = False
) -> Iterator[Row | None]:
    """Rows again and again: those that can be counted in a new order each time, a stream in its own; None
    between
    two rounds where they are to be kept `apart`.
    """
    for number in itertools.count():
        # the round's number in the seed: each has an order of its own
        order = (
            np.random.default_rng((*seed, number)).permutation(len(rows))
            if isinstance(rows, Dataset)
            else None
        )
        found = False
        for row in rows if order is None else (rows[int(place)] for place in order):
            found = True
            yield row
        if apart:
            yield None
        # a source that gives nothing would be asked for ever
        if not found:
            raise InputError("A training source has no rows; set --train_split or --mixture")


def features_of(rows: Iterable[Row | None], encode: Encode, seed: tuple[int, ...]) -> Iterator[Row]:
    """Features of raw rows, so many texts at once, up to the end of a round; rows without text are passed
    over."""
    idle = 0
    for number, part in enumerate(_parts(rows)):
        names = dict.fromkeys(name for row in part for name in row)  # a record need not have every key
        batch = {name: [row.get(name) for row in part] for name in names}
        # by number: a resumed run encodes with the same chance
        encoded = encode(batch, np.random.default_rng((*seed, number)))
        # short texts are common; a source of nothing else is a mistake
        idle = idle + 1 if not any(encoded.values()) else 0
        if idle == PATIENCE:
            raise InputError(
                f"{PATIENCE * TEXTS_AT_ONCE} texts of a stream give no row: they are too short. Set "
                "--text_column"
            )
        yield from (dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True))


def _parts(rows: Iterable[Row | None]) -> Iterator[list[Row]]:
    """Lists of so many rows, or of fewer where a round ends."""
    held: list[Row] = []
    for row in rows:
        if row is not None:
            held.append(row)
        if held and (row is None or len(held) == TEXTS_AT_ONCE):
            yield held
            held = []
    # the end of a stream that ends
    if held:
        yield held


def drawn(
    sources: Sequence[Iterator[Row]], weights: Sequence[float], rng: np.random.Generator
) -> Iterator[Row]:
    """One row after another, each from a source chosen by weight; ends with the first source that does."""
    shares = np.asarray(weights, dtype=float) / sum(weights)
    while True:
        try:
            row = next(sources[int(rng.choice(len(sources), p=shares))])
        except StopIteration:
            return
        yield row


def shuffled(rows: Iterable[Row], size: int, rng: np.random.Generator) -> Iterator[Row]:
    """Each row drawn from the next `size` that have not been."""
    buffer: list[Row] = []
    for row in rows:
        # filled first, without a row going out
        if len(buffer) < max(size, 1):
            buffer.append(row)
            continue
        place = int(rng.integers(len(buffer)))
        yield buffer[place]
        # the new row takes the place of the one that went
        buffer[place] = row
    # what is left at the end, in a random order
    yield from (buffer[place] for place in rng.permutation(len(buffer)))


@dataclass
class Stream(TorchIterable):
    """An endless stream of features, numbered by their column `row`.

    Attributes:
        sources: rows with columns named after their roles.
        weights: how often each is drawn from.
        encoders: batch of rows → features, for each source.
        seed: of the draws.
        buffer: rows to shuffle among.
        processes, process: this one keeps every `processes`-th feature.
        apart: whether no rows of two rounds are encoded at once, so that none stands twice among them.
    """

    sources: list[Dataset | IterableDataset]
    weights: list[float]
    encoders: list[Encode]
    seed: int
    buffer: int = 1000
    processes: int = 1
    process: int = 0
    apart: bool = False

    def share(self, processes: int, process: int) -> Stream:
        """The same stream, as one of several processes sees it."""
        return replace(self, processes=processes, process=process)

    def __iter__(self) -> Iterator[Row]:
        # chance in parts that don't touch: rows by 0, encoders by 1, the choice of sources by 2, the order by
        # 3
        encoded = [
            features_of(rounds(rows, (self.seed, 0, place), self.apart), encode, (self.seed, 1, place))
            for place, (rows, encode) in enumerate(zip(self.sources, self.encoders, strict=True))
        ]
        mixed = drawn(encoded, self.weights, np.random.default_rng((self.seed, 2)))
        for number, row in enumerate(shuffled(mixed, self.buffer, np.random.default_rng((self.seed, 3)))):
            if number % self.processes == self.process:
                yield row | {"row": number}

    def as_dataset(self) -> IterableDataset:
        """The same for those who ask for one of datasets' own."""
        return IterableDataset(ExamplesIterable(_numbered, {"stream": self}))


def _numbered(stream: Stream) -> Iterator[tuple[int, Row]]:
    yield from enumerate(iter(stream))
