"""Rows → features. Knows tokenizers; knows no models and no files."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from finetune.data.columns import Columns, class_ids
from finetune.errors import InputError

logger = logging.getLogger(__name__)


def sequence(
    rows: Dataset, columns: Columns, processor: PreTrainedTokenizerBase, max_length: int, labels: list[str] | None
) -> Dataset:
    """One text, or two, and one class a row → input_ids, labels (absent where `labels` is None), row, length.

    Texts beyond `max_length` tokens are cut, the longer of two first; the log says how many and how much.
    """

    def encode(batch: dict[str, list]) -> dict[str, list]:
        texts = [batch[column] for column in (columns.text, columns.pair) if column]
        encoded = processor(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
        features = {name: encoded[name] for name in encoded}
        return features | {"length": [len(ids) for ids in encoded["input_ids"]], "cut": _cut(encoded)}

    features = mapped(rows, columns, encode, processor, {"max_length": max_length})
    if labels is not None:
        features = features.add_column("labels", class_ids(rows, columns.label, labels))
    return report_cut(features, max_length)


def fingerprint(rows: Dataset, columns: Columns) -> str:
    """Hash of what the columns hold, row by row: equal for equal content, whatever file it came from."""
    digest = hashlib.sha256()
    for column in filter(None, (columns.text, columns.pair, columns.label)):
        digest.update(f"{column}:{rows.features[column]}".encode())
        for value in rows[column]:
            digest.update(repr(value).encode() + b"\x00")
    return digest.hexdigest()


def mapped(
    rows: Dataset, columns: Columns, encode: Callable[[dict], dict], processor: PreTrainedTokenizerBase, options: dict[str, Any]
) -> Dataset:
    """`rows` through `encode`, in parallel inside the tokenizer, cached by content; a column `row` numbers the rows.

    Where `encode` makes several features of a row, or none, its `source` gives each one's place in the batch.

    The cache key is made of rows, tokenizer and options: a tokenizer's own pickle changes with its first call.
    """
    tokenizer = processor.backend_tokenizer.to_str() if processor.is_fast else json.dumps(processor.get_vocab(), sort_keys=True)
    parts = [fingerprint(rows, columns), tokenizer, encode.__qualname__, json.dumps(options, sort_keys=True, default=str)]
    key = hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:32]

    def with_number(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        features = encode(batch)
        source = features.pop("source", range(len(indices)))
        return features | {"row": [indices[place] for place in source]}

    return rows.map(
        with_number, batched=True, with_indices=True, remove_columns=rows.column_names, new_fingerprint=key, desc="Tokenising"
    )


def report_cut(features: Dataset, max_length: int) -> Dataset:
    """Says in the log how many texts were cut and how much of all tokens that was; drops the count's column."""
    cut, kept = features["cut"][:], features["length"][:]
    many = sum(count > 0 for count in cut)
    if many:
        share = sum(cut) / (sum(cut) + sum(kept))
        logger.warning(
            "%d of %d texts are longer than %d tokens and were cut: %.1f %% of all tokens (--max_length)",
            many, len(cut), max_length, 100 * share,
        )  # fmt: skip
    if min(kept, default=1) == 0:
        raise InputError(f"Row {kept.index(0)} has no token left; wanted one or more. Set --max_length above {max_length}")
    return features.remove_columns("cut")


def _cut(encoded: Any) -> list[int]:
    """Number of tokens that truncation took from each row (known for fast tokenizers)."""
    if not encoded.encodings:
        return [0] * len(encoded["input_ids"])
    return [sum(len(part) - sum(part.special_tokens_mask) for part in whole.overflowing) for whole in encoded.encodings]
