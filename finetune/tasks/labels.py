"""Rows → features where a label is no single class: tags of words, several labels, a number, one of several texts.

Knows tokenizers; knows no models and no files.
"""

from __future__ import annotations

import bisect
import itertools
import logging
from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel, Dataset
from transformers import PreTrainedTokenizerBase

from finetune.data.columns import Columns
from finetune.data.encode import apart, mapped, report_cut, sequence, want_tokens
from finetune.errors import InputError
from finetune.loss import IGNORED

logger = logging.getLogger(__name__)


def numbers(
    rows: Dataset,
    columns: Columns,
    processor: PreTrainedTokenizerBase,
    max_length: int,
    labels: list[str] | None,
) -> Dataset:
    """One text, or two, and a number a row → features of `encode.sequence`, labels float."""
    features = sequence(rows, columns, processor, max_length, None)
    return features.add_column("labels", [float(value) for value in rows[columns.label]])


def label_sets(
    rows: Dataset,
    columns: Columns,
    processor: PreTrainedTokenizerBase,
    max_length: int,
    labels: list[str] | None,
) -> Dataset:
    """One text and several labels a row, or none → features of `encode.sequence`, labels 0.0 or 1.0 for each class."""
    assert labels is not None
    features = sequence(rows, columns, processor, max_length, None)
    present = named(rows.features[columns.label], rows[columns.label][:])
    return features.add_column("labels", [[float(name in names) for name in labels] for names in present])


def choices(
    rows: Dataset,
    columns: Columns,
    processor: PreTrainedTokenizerBase,
    max_length: int,
    labels: list[str] | None,
) -> Dataset:
    """A text, several others, and which of them fits it → input_ids [choices, time], labels, row, length (of all choices).

    Each choice is read together with the text; where they are too long, the text is cut.

    Raises:
        InputError: a choice that leaves no room for its text, or a text or choice without a single token.
    """
    assert columns.pair is not None
    room = max_length - processor.num_special_tokens_to_add(pair=True)

    def encode(batch: dict[str, list]) -> dict[str, list]:
        features: dict[str, list] = {
            "input_ids": [],
            "length": [],
            "labels": [int(answer) for answer in batch[columns.label]],
            "cut": [],
        }
        for text, offered in zip(batch[columns.text], batch[str(columns.pair)], strict=True):
            both = apart([text] * len(offered), list(offered), processor)
            alone = [
                len(ids)
                for ids in processor([text, *both[1]], add_special_tokens=False, verbose=False)["input_ids"]
            ]
            longest = max(alone[1:])
            if longest >= room:
                raise InputError(
                    f"A choice for {text!r:.80} has {longest} tokens, which leaves no room for the text within {max_length}; "
                    "set --max_length higher"
                )
            encoded = processor(*both, truncation="only_first", max_length=max_length)
            want_tokens(encoded, both, max_length)
            kept = sum(map(len, encoded["input_ids"]))
            features["input_ids"].append(encoded["input_ids"])
            if "token_type_ids" in encoded:
                features.setdefault("token_type_ids", []).append(encoded["token_type_ids"])
            features["length"].append(kept)
            features["cut"].append(sum(max(alone[0] + one - room, 0) for one in alone[1:]))
        return features

    return report_cut(mapped(rows, columns, encode, processor, {"max_length": max_length}), max_length)


def named(feature: Any, values: Sequence[Sequence[Any] | None]) -> list[list[str]]:
    """Lists of a column of lists → lists of names, whether it holds classes or strings.

    Raises:
        InputError: a class that has no name, such as -1, or none at all.
    """
    names = feature.feature.names if isinstance(feature.feature, ClassLabel) else None
    for place, row in enumerate(values):
        for one in row or ():
            if one is None or (names is not None and not 0 <= one < len(names)):
                raise InputError(
                    f"Row {place} has the label {one}, which is no class; wanted one or none. Mend the row"
                )
    if names is not None:
        return [[names[index] for index in row or []] for row in values]
    return [[str(name) for name in row or []] for row in values]


def tokens(
    rows: Dataset,
    columns: Columns,
    processor: PreTrainedTokenizerBase,
    max_length: int,
    labels: list[str] | None,
    *,
    stride: int | None = None,
) -> Dataset:
    """Words and a tag for each → windows of sub-words: input_ids, labels, words, row, length.

    A word's tag stands on its first sub-word, -100 on the rest. Rows beyond `max_length` are read in windows that share about
    `stride` sub-words (a quarter of `max_length` where none is given); each word is labelled in one window alone, the one with
    more of its surroundings. `words` says which word a labelled sub-word begins, -1 elsewhere.

    Raises:
        InputError: a slow tokenizer, a stride that leaves no room, or a row without a single sub-word.
    """
    assert labels is not None
    front, back = frame(processor)
    room = max_length - len(front) - len(back)
    overlap = shared(stride, max_length, room)
    place = {name: index for index, name in enumerate(labels)}

    def encode(batch: dict[str, list]) -> dict[str, list]:
        features: dict[str, list] = {
            name: [] for name in ("input_ids", "labels", "words", "length", "source")
        }
        texts = [" ".join(words) for words in batch[columns.text]]
        encoded = processor(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        tagged = named(rows.features[columns.label], batch[columns.label])
        for index, (words, tags) in enumerate(zip(batch[columns.text], tagged, strict=True)):
            ids = encoded["input_ids"][index]
            firsts = first_pieces(words, encoded["offset_mapping"][index])
            begins = {position: word for word, position in enumerate(firsts) if position is not None}
            for start, end, first, last in windows(sorted(begins), len(ids), room, overlap):
                owned = [
                    begins.get(position, -1) if first <= position < last else -1
                    for position in range(start, end)
                ]
                owned = [-1] * len(front) + owned + [-1] * len(back)
                features["input_ids"].append(front + ids[start:end] + back)
                features["labels"].append([place[tags[word]] if word >= 0 else IGNORED for word in owned])
                features["words"].append(owned)
                features["length"].append(len(owned))
                features["source"].append(index)
        return features

    features = mapped(
        rows, columns, encode, processor, {"max_length": max_length, "stride": overlap, "labels": labels}
    )
    return _report_windows(features, len(rows), max_length)


def first_pieces(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[int | None]:
    """Position of each word's first sub-word in the tokens of `" ".join(words)`; None for a word that the tokenizer drops."""
    starts, place = [], 0
    for word in words:
        starts.append(place)
        place += len(word) + 1
    found: list[int | None] = [None] * len(words)
    for position, (start, end) in enumerate(offsets):
        if end <= start:
            continue
        owner = (
            bisect.bisect_right(starts, end - 1) - 1
        )  # by its last sign: some tokens begin with the space before a word
        if found[owner] is None and end - 1 < starts[owner] + len(words[owner]):
            found[owner] = position
    return found


def windows(firsts: Sequence[int], total: int, room: int, stride: int) -> list[tuple[int, int, int, int]]:
    """Windows of at most `room` of `total` tokens that begin and end with whole words and share about `stride` tokens.

    Args:
        firsts: where words begin, ascending.

    Returns:
        (start, end, owned from, owned to) each: every token is owned by one window; of what two share, each owns half.
    """
    spans, start = [], 0
    while total - start > room:
        place = bisect.bisect_right(firsts, start + room) - 1
        end = firsts[place] if place >= 0 and firsts[place] > start else start + room
        spans.append((start, end))
        place = bisect.bisect_left(firsts, max(end - stride, start + 1))
        start = min(firsts[place], end) if place < len(firsts) else end
    spans.append((start, total))
    edges = [0]
    for (_, before), (after, _) in itertools.pairwise(spans):
        place = bisect.bisect_left(firsts, (after + before) // 2)
        edges.append(min(firsts[place], before) if place < len(firsts) else before)
    edges.append(total)
    return [(start, end, edges[i], edges[i + 1]) for i, (start, end) in enumerate(spans)]


def shared(stride: int | None, max_length: int, room: int) -> int:
    """Tokens that windows share, a quarter of `max_length` where `stride` is None.

    Raises:
        InputError: fewer than none, or so many that no window gets on.
    """
    overlap = max_length // 4 if stride is None else stride
    if not 0 <= overlap < room:
        raise InputError(
            f"--stride {overlap} leaves nothing of {room} tokens; set --stride lower or --max_length higher"
        )
    return overlap


def want_places(processor: PreTrainedTokenizerBase) -> None:
    """The tokenizer says where its tokens stand in the text.

    Raises:
        InputError: it doesn't.
    """
    if not processor.is_fast:
        raise InputError(
            f"{type(processor).__name__} keeps no places of tokens; wanted a fast tokenizer. Set --model_name_or_path"
        )


def frame(processor: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Special tokens that the tokenizer puts in front of a text and behind it.

    Raises:
        InputError: a tokenizer that doesn't say where its tokens stand in the text, or knows no letter.
    """
    want_places(processor)
    encoded = processor("a", return_special_tokens_mask=True)
    inner = [position for position, special in enumerate(encoded["special_tokens_mask"]) if not special]
    if not inner:
        raise InputError(
            f"{type(processor).__name__} has no token for the letter a; set --model_name_or_path to another model"
        )
    return encoded["input_ids"][: inner[0]], encoded["input_ids"][inner[-1] + 1 :]


def _report_windows(features: Dataset, rows: int, max_length: int) -> Dataset:
    """Says in the log how many rows took several windows."""
    where: list[Any] = features["row"][:]
    if len(where) > rows:
        many = len({row for row, before in zip(where[1:], where, strict=False) if row == before})
        logger.warning(
            "%d of %d rows are longer than %d tokens and are read in %d windows in all",
            many,
            rows,
            max_length,
            len(where),
        )
    seen = {row for row, words in zip(where, features["words"], strict=True) if max(words) >= 0}
    bare = next((row for row in range(rows) if row not in seen), None)
    if bare is not None:
        raise InputError(
            f"Row {bare} has no token that the tokenizer knows; wanted one or more. Mend the row or leave it out"
        )
    return features
