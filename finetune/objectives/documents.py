"""Texts → features for pretraining: documents tokenised, cut, packed or paired. Knows tokenizers; knows no
noise and no model.

An encoder here takes a batch of texts and gives back any number of rows, so that a file and a stream are
encoded alike.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.random import Generator
from transformers import PreTrainedTokenizerBase

from finetune.data.encode import want_tokens
from finetune.errors import InputError
from finetune.objectives import noise, packing

TextBatch = dict[str, list[Any]]
# a mark, closing quotes or brackets, and white space behind; Chinese and Japanese have none behind
SENTENCE_END = re.compile(r"[.!?]+[\"')\]]*(?=\s)|[。！？]+[”’」』）]*|\n+")


@dataclass(frozen=True)
class Document:
    """A text's tokens without special ones. All lists [time].

    Attributes:
        words: the number of the word each token belongs to.
        ends: where each token ends, in characters of `text`.
    """

    text: str
    ids: list[int]
    words: list[int]
    ends: list[int]


def tokenised(texts: Sequence[str], processor: PreTrainedTokenizerBase) -> list[Document]:
    """Each text that has a token as a document.

    Raises:
        InputError: a tokenizer without word numbers and offsets (one that is not backed by the tokenizers
            library).
    """
    if not processor.is_fast:
        raise InputError(
            f"{type(processor).__name__} says nothing of words and offsets; wanted a fast tokenizer. Set "
            "--tokenizer_name"
        )
    # no truncation: long texts are cut into pieces below, and tokenizers warn of nothing
    encodings = processor(list(texts), add_special_tokens=False, verbose=False).encodings
    return [
        Document(
            text,
            encoding.ids,
            [-1 if word is None else word for word in encoding.word_ids],
            [end for _, end in encoding.offsets],
        )
        for text, encoding in zip(texts, encodings, strict=True)
        # a text of white space alone may give no token
        if encoding.ids
    ]


def affixes(processor: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and after a text."""
    # of any text: what stands before the first token and after the last that aren't special
    encoding = processor("a", return_special_tokens_mask=True)
    ids, special = encoding["input_ids"], encoding["special_tokens_mask"]
    first = special.index(0) if 0 in special else 0
    last = len(special) - special[::-1].index(0) if 0 in special else len(ids)
    return ids[:first], ids[last:]


def room_for_text(processor: PreTrainedTokenizerBase, max_length: int, taken: int) -> int:
    """Tokens of text that fit beside `taken` special ones.

    Raises:
        InputError: none fits.
    """
    if max_length - taken < 2:
        raise InputError(
            f"--max_length {max_length} leaves no room beside {taken} special tokens; wanted {taken + 2} or "
            "more"
        )
    return max_length - taken


def masked_rows(
    batch: TextBatch, processor: PreTrainedTokenizerBase, max_length: int, rng: Generator, *, layout: str
) -> TextBatch:
    """Texts → rows for masked language models: a row for each piece of a text, or rows filled with whole
    pieces ("blocks").

    Returns:
        input_ids, words (-1 for special tokens), documents (their lengths in the row), length.
    """
    before, after = affixes(processor)
    room = room_for_text(processor, max_length, len(before) + len(after))
    pieces = []
    for document in tokenised(batch["text"], processor):
        for start, end in packing.cut_pieces(len(document.ids), room):
            # each piece has the special tokens of a whole text, as fine-tuned texts will
            ids = [*before, *document.ids[start:end], *after]
            pieces.append(
                {
                    "input_ids": ids,
                    "words": [-1] * len(before) + document.words[start:end] + [-1] * len(after),
                }
            )
    return _rows(pieces, max_length, layout)


def causal_rows(
    batch: TextBatch, processor: PreTrainedTokenizerBase, max_length: int, rng: Generator, *, layout: str
) -> TextBatch:
    """Texts → rows for causal language models, each text closed by the end token; long ones in pieces that
    share one token.

    Every token is predicted once, but for a text's first where the tokenizer puts no token before it.

    Returns:
        input_ids, documents (their lengths in the row), length, bytes (of text in the tokens to predict,
        UTF-8).
    """
    before, _ = affixes(processor)
    pieces = []
    for document in tokenised(batch["text"], processor):
        # the end token once a text, and not once a piece
        ids = [*before, *document.ids, processor.eos_token_id]
        # the shared token is predicted in the one piece and read in the other
        for start, end in packing.cut_pieces(len(ids), max_length, overlap=1):
            # what stands before the piece, its shared token included, belongs to the piece before
            known = _bytes_until(document, start - len(before))
            pieces.append(
                {
                    "input_ids": ids[start:end],
                    # the last token is predicted and not read: the text up to it counts
                    "bytes": [_bytes_until(document, end - 1 - len(before)) - known],
                }
            )
    features = _rows(pieces, max_length, layout)
    return features | {"bytes": [sum(counts) for counts in features["bytes"]]}


def _bytes_until(document: Document, token: int) -> int:
    """Bytes of the text up to the end of a token; what follows the last one counts as its own."""
    # the special tokens in front have no bytes
    if token < 0:
        return 0
    # the end token's place, too: white space that no token holds is text all the same
    whole = token >= len(document.ids) - 1
    return len((document.text if whole else document.text[: document.ends[token]]).encode())


def _rows(pieces: list[dict[str, list[int]]], max_length: int, layout: str) -> TextBatch:
    """Pieces as rows of their own, or together as long as they fit."""
    lengths = [len(piece["input_ids"]) for piece in pieces]
    together = (
        packing.fill(lengths, max_length) if layout == "blocks" else [[index] for index in range(len(pieces))]
    )
    # a batch of texts without tokens still has its columns
    names = pieces[0].keys() if pieces else ("input_ids",)
    rows = {
        name: [packing.joined([pieces[index][name] for index in row]) for row in together] for name in names
    }
    documents = [[lengths[index] for index in row] for row in together]
    return {**rows, "documents": documents, "length": [sum(row) for row in documents]}


def span_rows(
    batch: TextBatch,
    processor: PreTrainedTokenizerBase,
    max_length: int,
    rng: Generator,
    *,
    layout: str,
    masking_rate: float,
    mean_span: float,
) -> TextBatch:
    """Texts → rows that span corruption brings to at most `max_length` tokens; "blocks" joins the texts
    first, as T5 does.

    Returns:
        input_ids (text alone), length.
    """
    raw, _ = noise.raw_length(max_length, masking_rate, mean_span)
    texts = [document.ids for document in tokenised(batch["text"], processor)]
    if layout == "blocks":
        # over the borders of texts, as T5 fills its rows
        texts = [packing.joined(texts)]
    # spans need two tokens: one to keep and one to leave out
    rows = [
        ids[start:end] for ids in texts for start, end in packing.cut_pieces(len(ids), raw) if end - start > 1
    ]
    return {"input_ids": rows, "length": [len(row) for row in rows]}


def sentence_rows(
    batch: TextBatch, processor: PreTrainedTokenizerBase, max_length: int, rng: Generator
) -> TextBatch:
    """Texts → rows that know where their sentences end.

    Returns:
        input_ids (text alone), words, ends (of the sentences, in tokens; the last is the row's), length.
    """
    before, after = affixes(processor)
    room = room_for_text(processor, max_length, len(before) + len(after))
    features: TextBatch = {"input_ids": [], "words": [], "ends": [], "length": []}
    for document in tokenised(batch["text"], processor):
        ends = sentence_ends(document)
        for start, end in packing.cut_pieces(len(document.ids), room):
            features["input_ids"].append(document.ids[start:end])
            # ends inside the piece, counted from its own start
            features["words"].append(document.words[start:end])
            features["ends"].append([e - start for e in ends if start < e < end] + [end - start])
            # the length that the model will see, by which rows are put into batches
            features["length"].append(end - start + len(before) + len(after))
    return features


def sentence_ends(document: Document) -> list[int]:
    """Numbers of tokens up to the end of each sentence, rising; the last is the number of all tokens."""
    # a token that reaches over a sentence's end belongs to the next one
    ends = [bisect.bisect_right(document.ends, match.end()) for match in SENTENCE_END.finditer(document.text)]
    # a set, as several marks may end in one token
    return sorted({end for end in ends if end > 0} | {len(document.ids)})


def pair_rows(
    batch: TextBatch,
    processor: PreTrainedTokenizerBase,
    max_length: int,
    rng: Generator,
    *,
    sentence_order: bool,
) -> TextBatch:
    """Texts → pairs of neighbouring segments, and a third one from another text (Devlin et al. 2019; Lan et
    al. 2020).

    A pair fills `max_length` as far as whole sentences do, and is parted between two of them. Texts of one
    sentence give none.

    Returns:
        first, second, other (empty for `sentence_order`) and the numbers of their words, length.
    """
    room = room_for_text(processor, max_length, 3)
    # three: a start, and an end behind each segment
    texts = [_sentences_within(document, room) for document in tokenised(batch["text"], processor)]
    texts = [text for text in texts if text]
    if not sentence_order and len(texts) < 2:
        texts = []  # no stranger to take a segment from
    features: TextBatch = {
        # the first sentence of a pair on each side at least
        name: []
        for name in ("first", "second", "other", "first_words", "second_words", "other_words", "length")
    }
    for number, text in enumerate(texts):
        for start, end in groups([len(ids) for ids, _ in text], room):
            middle = int(rng.integers(start + 1, end))
            first, second = _flat(text[start:middle]), _flat(text[middle:end])
            other: tuple[list[int], list[int]] = ([], [])
            if not sentence_order:
                # any text but this one: 1 to len - 1 further on, around the end
                stranger = texts[(number + int(rng.integers(1, len(texts)))) % len(texts)]
                # from a random sentence to its end
                other = _flat(stranger[int(rng.integers(len(stranger))) :])
            # no longer than what is left beside the first segment
            other = (other[0][: room - len(first[0])], other[1][: room - len(first[0])])
            for name, (ids, words) in (("first", first), ("second", second), ("other", other)):
                features[name].append(ids)
                features[f"{name}_words"].append(words)
            # by the longer of the two that the collator may choose
            features["length"].append(len(first[0]) + max(len(second[0]), len(other[0])) + 3)
    return features


def groups(lengths: Sequence[int], room: int) -> list[tuple[int, int]]:
    """(start, end) of runs of two or more sentences that fit into `room` tokens together, from the first
    sentence on.
    """
    found, start = [], 0
    while start < len(lengths):
        end, held = start, 0
        while end < len(lengths) and held + lengths[end] <= room:
            # one sentence alone can't be parted in two
            held += lengths[end]
            end += 1
        if end - start > 1:
            found.append((start, end))
        # a sentence that fits nowhere is passed over
        start = max(end, start + 1)
    return found


def _sentences_within(document: Document, room: int) -> list[tuple[list[int], list[int]]]:
    """Ids and words of each sentence; one that would fill half of the room alone is cut."""
    borders = [0, *sentence_ends(document)]
    parts = [
        # half: two of them always fit, so that no long sentence is lost
        (start + a, start + b)
        for start, end in itertools.pairwise(borders)
        for a, b in packing.cut_pieces(end - start, room // 2)
        if b > a
    ]
    return [(document.ids[a:b], document.words[a:b]) for a, b in parts]


def _flat(parts: Sequence[tuple[list[int], list[int]]]) -> tuple[list[int], list[int]]:
    return packing.joined([ids for ids, _ in parts]), packing.joined([words for _, words in parts])


def view_rows(
    batch: TextBatch, processor: PreTrainedTokenizerBase, max_length: int, rng: Generator
) -> TextBatch:
    """Texts that belong together → one row: `text` alone, with its `pair`, and with a hard `negative` where
    there are such.

    Returns:
        views (ids of each text), labels (the `score` of the pair; not a number where there is none), length
        (of the longest).
    """
    columns = []
    for name in ("text", "pair", "negative"):
        if name in batch:
            encoded = processor(list(batch[name]), truncation=True, max_length=max_length)
            # a text without tokens has no vector
            want_tokens(encoded, [batch[name]], max_length)
            columns.append(encoded["input_ids"])
    rows = [list(texts) for texts in zip(*columns, strict=True)]
    # nan and no None: the column is one of numbers
    scores = [
        float("nan") if score is None else float(score) for score in batch.get("score", [None] * len(rows))
    ]
    # the longest view decides how wide the row's batch is
    return {"views": rows, "labels": scores, "length": [max(map(len, row)) for row in rows]}
