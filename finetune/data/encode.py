"""Rows → features. Knows tokenizers; knows no models and no files."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from finetune.data.cells import content_of
from finetune.data.columns import Columns, class_ids
from finetune.data.letters import check_letters
from finetune.data.places import place_of
from finetune.errors import InputError

logger = logging.getLogger(__name__)


def sequence(
    rows: Dataset,
    columns: Columns,
    processor: PreTrainedTokenizerBase,
    max_length: int,
    labels: list[str] | None,
) -> Dataset:
    """One text, or two, and one class a row → input_ids, labels (absent where `labels` is None), row, length.

    Texts beyond `max_length` tokens are cut, the longer of two first; the log says how many and how much.
    """

    def encode(batch: dict[str, list]) -> dict[str, list]:
        texts = [batch[column] for column in (columns.text, columns.pair) if column]
        # decoders put nothing between two texts, which would run into each other
        given = apart(*texts, processor) if columns.pair else texts
        # the mask is left to the collator, which knows the padding
        encoded = processor(*given, truncation=True, max_length=max_length, return_attention_mask=False)
        want_tokens(encoded, texts, max_length)
        features = {name: encoded[name] for name in encoded}
        return features | {"length": [len(ids) for ids in encoded["input_ids"]], "cut": _cut(encoded)}

    check_letters(rows, columns.text, processor)
    features = mapped(rows, columns, encode, processor, {"max_length": max_length})
    if labels is not None:
        # outside the cached map: other label names must not make the tokens anew
        features = features.add_column("labels", class_ids(rows, columns.label, labels))
    return report_cut(features, max_length)


def as_columns(texts: Sequence[str | tuple[str, str]], processor: PreTrainedTokenizerBase) -> list[list[str]]:
    """Texts, or pairs of texts, as a tokenizer takes them."""
    if texts and isinstance(texts[0], tuple):
        return apart(*(list(part) for part in zip(*texts, strict=True)), processor)  # type: ignore[arg-type]
    return [list(texts)]  # type: ignore[list-item]


def apart(firsts: list[str], seconds: list[str], processor: PreTrainedTokenizerBase) -> list[list[str]]:
    """The two texts of each row, with a line break between them where the tokenizer would put nothing
    (most decoders').
    """
    # more special tokens for two texts than for one: a separator stands between them
    parted = processor.num_special_tokens_to_add(pair=True) > processor.num_special_tokens_to_add(pair=False)
    return [firsts, seconds if parted else ["\n" + text for text in seconds]]


def want_tokens(encoded: Any, texts: Sequence[Sequence[str]], max_length: int) -> None:
    """Each text has a token left (known for fast tokenizers).

    Args:
        texts: what was encoded: a list of texts, or two.

    Raises:
        InputError: one has none: signs that the tokenizer drops, or no room beside special tokens and the
            other text.
    """
    for whole, parts in zip(encoded.encodings or (), zip(*texts, strict=True), strict=False):
        # None marks special tokens
        present = {part for part in whole.sequence_ids if part is not None}
        gone = next((text for part, text in enumerate(parts) if part not in present), None)
        if gone is not None:
            raise InputError(
                f"Within {max_length} tokens nothing is left of the text {gone!r:.80}; wanted one token or "
                "more. Set --max_length higher, or mend the row"
            )


def fingerprint(rows: Dataset, columns: Columns, *further: str) -> str:
    """Hash of what the columns, and `further` ones, hold, row by row: equal for equal content,
    whatever file it came from.
    """
    digest = hashlib.sha256()
    for column in filter(None, (columns.text, columns.pair, columns.label, *columns.further, *further)):
        # the type too: class ids with other names are other rows
        digest.update(f"{column}:{rows.features[column]}".encode())
        for value in rows[column]:
            # a byte between values, so that `ab` + `c` is not `a` + `bc`
            digest.update(repr(content_of(value)).encode() + b"\x00")
    return digest.hexdigest()


class RowError(InputError):
    """What is wrong with a row; `place` is its place in the batch, which `mapped` says in the user's
    terms.
    """

    def __init__(self, place: int, reason: str) -> None:
        super().__init__(reason)
        self.place = place


def mapped(
    rows: Dataset,
    columns: Columns,
    encode: Callable[[dict], dict],
    processor: PreTrainedTokenizerBase,
    options: dict[str, Any],
) -> Dataset:
    """`rows` through `encode`, in parallel inside the tokenizer, cached by content; a column `row` numbers
    the rows.

    Where `encode` makes several features of a row, or none, its `source` gives each one's place in the batch.
    `options` are what the features depend on beside columns and tokenizer.
    """

    def with_number(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        try:
            features = encode(batch)
        except RowError as error:
            place = place_of(rows, indices[error.place])
            raise InputError(f"{place[:1].upper()}{place[1:]}: {error}") from error
        # places in the batch → numbers of the rows, whatever the batch's size
        source = features.pop("source", range(len(indices)))
        return features | {"row": [indices[place] for place in source]}

    # by qualified name: tasks share this function and differ in `encode`
    return cached(rows, with_number, processor, fingerprint(rows, columns), encode.__qualname__, options)


def cached(rows: Dataset, encode: Callable, processor: PreTrainedTokenizerBase, *parts: Any) -> Dataset:
    """`rows` through `encode` (batch, indices) → features, read from the cache where all `parts`, the
    tokenizer and the code are old.

    The key is made here, as datasets' own would be made of a tokenizer's pickle, which changes with the
    tokenizer's first call.
    """
    # code, tokenizer, then what the caller says that features depend on
    found = [
        code(),
        tokenizer_key(processor),
        *(json.dumps(part, sort_keys=True, default=str) for part in parts),
    ]
    key = hashlib.sha256("\x00".join(found).encode()).hexdigest()[:32]
    return rows.map(
        encode,
        batched=True,
        with_indices=True,
        remove_columns=rows.column_names,
        new_fingerprint=key,
        desc="Tokenising",
    )


@cache
def code() -> str:
    """Hash of the modules that encode: what an older version of an encoder has made is not what this
    one makes.
    """
    # all modules of the rooms: an encoder calls functions of several
    package = Path(__file__).parent.parent
    files = sorted(file for room in ("data", "tasks", "objectives") for file in (package / room).glob("*.py"))
    return hashlib.sha256(b"\x00".join(file.read_bytes() for file in files)).hexdigest()


def tokenizer_key(processor: Any) -> str:
    """What decides which tokens a text becomes, whatever the tokenizer was asked for before; of another
    processor all that it says of itself."""
    # image processors and feature extractors, whose settings are all that there is
    if not isinstance(processor, PreTrainedTokenizerBase):
        return json.dumps(processor.to_dict(), sort_keys=True, default=str)
    special = json.dumps(processor.special_tokens_map, sort_keys=True, default=str)
    if not processor.is_fast:
        # slow tokenizers have no serialised form; their vocabulary stands for it
        return special + json.dumps(processor.get_vocab(), sort_keys=True)
    # a call with truncation or padding leaves both in the backend's state
    whole = json.loads(processor.backend_tokenizer.to_str())
    return special + json.dumps(
        {name: part for name, part in whole.items() if name not in ("truncation", "padding")}
    )


def report_cut(features: Dataset, max_length: int) -> Dataset:
    """Says in the log how many texts were cut and how much of all tokens that was; drops the count's
    column.
    """
    cut, kept = features["cut"][:], features["length"][:]
    many = sum(count > 0 for count in cut)
    if many:
        share = sum(cut) / (sum(cut) + sum(kept))
        logger.warning(
            "%d of %d texts are longer than %d tokens and were cut: %.1f %% of all tokens (--max_length)",
            many, len(cut), max_length, 100 * share,
        )  # fmt: skip
    return features.remove_columns("cut")


def _cut(encoded: Any) -> list[int]:
    """Number of tokens that truncation took from each row (known for fast tokenizers)."""
    if not encoded.encodings:
        return [0] * len(encoded["input_ids"])
    return [
        sum(len(part) - sum(part.special_tokens_mask) for part in whole.overflowing)
        for whole in encoded.encodings
    ]
