"""Two data sets by name → how much of the second stands in the first. Knows sources; knows no model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from datasets import ClassLabel, Dataset

from finetune.data.accounting import cell_texts, holds_text
from finetune.data.folders import default_eval, split_of
from finetune.data.places import columns_of, place_of
from finetune.data.sources import read_splits
from finetune.errors import InputError
from finetune.provenance.overlap import overlaps

LOOKED_AT = 200  # rows that tell which columns hold texts


@dataclass
class OverlapArguments:
    """Which two data sets are compared, and how."""

    first: str | None = field(
        default=None, metadata={"help": "Training data: a folder, a file, a hub's name or a built-in corpus."}
    )
    second: str | None = field(
        default=None, metadata={"help": "Evaluation data (default: the first one's own evaluation split)."}
    )
    first_split: str = field(default="train", metadata={"help": "Split of the first."})
    second_split: str | None = field(
        default=None, metadata={"help": "Split of the second (default: validation, else test, else train)."}
    )
    text_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns to compare, in both (default: all that hold texts)."}
    )
    near: float = field(
        default=0.8,
        metadata={"help": "Texts are near where they share so much of their runs of 5 words."},
    )
    at_most: float | None = field(
        default=None,
        metadata={"help": "Largest share of the second's rows that may be found, else status 1."},
    )
    output_file: str | None = field(
        default=None, metadata={"help": "A .jsonl file for the rows that are found, with their places."}
    )

    def __post_init__(self) -> None:
        if not 0.6 <= self.near <= 1:
            raise InputError(f"Got --near {self.near}; wanted a share from 0.6 to 1")
        if self.at_most is not None and not 0 <= self.at_most <= 1:
            raise InputError(f"Got --at_most {self.at_most}; wanted a share from 0 to 1")


def compare_sets(options: OverlapArguments) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Counts of the second's rows, and an entry for each that is found.

    Raises:
        InputError: no first set, a set against itself, or rows without any text.
    """
    if options.first is None:
        raise InputError("Two data sets are wanted: finetune overlap TRAINING EVALUATION")
    training = read_splits(options.first)
    evaluation = training if options.second is None else read_splits(options.second)
    # of a second set its evaluation rows, where it has any
    name = options.second_split or default_eval(evaluation, "train") or "train"
    # a set against itself finds every row
    if options.second in (None, options.first) and name == options.first_split:
        raise InputError(
            f"{options.first} has no other split than '{name}' to compare with; name a second data "
            "set, or set --second_split"
        )
    one = split_of(training, options.first_split, "--first_split")
    other = split_of(evaluation, name, "--second_split")
    own = [text_columns(rows, options.text_columns) for rows in (one, other)]
    # a title or a note that one of them has besides would make equal rows others
    common = [name for name in own[0] if name in own[1]]
    columns = [common or names for names in own]
    print(f"compared: {', '.join(columns[0])} ↔ {', '.join(columns[1])}")
    mine, theirs = (texts_of_rows(rows, names) for rows, names in zip((one, other), columns, strict=True))
    entries = []
    counts = {"rows": len(theirs), "exact": 0, "near": 0, "passage": 0, "found": 0}
    # one entry for each row of the second, in order
    for place, found in enumerate(overlaps(mine, theirs, options.near)):
        if not found.is_found:
            continue
        kind = "exact" if found.exact is not None else "near" if found.near is not None else "passage"
        # a place of 0 is a place: `or` would pass over it
        at = found.exact if found.exact is not None else found.near if kind == "near" else found.passage
        assert at is not None
        # each kind counts for itself: an exact row has its passages too
        counts["exact"] += found.exact is not None
        counts["near"] += found.near is not None
        counts["passage"] += found.passage is not None
        counts["found"] += 1
        entries.append(
            {
                "kind": kind, "row": place_of(other, place), "in": place_of(one, at),
                "likeness": round(found.likeness, 4), "shared_passages": round(found.shared, 4),
                "text": theirs[place][:200],
            }
        )  # fmt: skip
    return counts, entries


def texts_of_rows(rows: Dataset, columns: list[str]) -> list[str]:
    """All text of each row's columns in one."""
    return [
        "\n".join(part for name in columns for part in cell_texts(row[name]))
        for row in rows.select_columns(columns)
    ]


def text_columns(rows: Dataset, columns: list[str] | None = None) -> list[str]:
    """The columns that are compared: those that are asked for, else all that hold texts.

    Raises:
        InputError: a column that isn't there, or none that holds texts.
    """
    there = columns_of(rows)
    strange = [name for name in columns or () if name not in there]
    if strange:
        raise InputError(f"No column '{strange[0]}'; the rows have {', '.join(there)}. Set --text_columns")
    # kinds of columns are told from a few rows; texts are read from all
    few = rows.select(range(min(LOOKED_AT, len(rows))))
    taken = columns or [
        name
        for name in there
        if not isinstance(rows.features[name], ClassLabel) and holds_text(few[name][:], name)
    ]
    if not taken:
        raise InputError(f"No column of {', '.join(there)} holds texts; set --text_columns")
    return taken
