"""Features → batches with noise drawn anew for each row and epoch. Knows padding and special ids; knows no
model.

The chance of a row comes from (seed, epoch, row) alone: a resumed run, another batch size or more processes
see the same noise, and evaluation, whose rows belong to no epoch, sees the same at every time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from transformers import PreTrainedTokenizerBase

from finetune.data.collate import Batch, Features
from finetune.errors import InputError
from finetune.objectives import noise, packing
from finetune.objectives.documents import affixes
from finetune.objectives.noise import IGNORED

# above any real epoch: evaluation rows carry none
NO_EPOCH = 2**32 - 1
Row = dict[str, Any]


@dataclass(frozen=True)
class Fresh:
    """features → batch.

    Attributes:
        damage: (generator, feature) → the row as the model sees it, with its labels.
        batch: such rows → padded tensors.
        seed: of the noise.
    """

    damage: Callable[[Generator, Row], Row]
    batch: Callable[[list[Row]], Batch]
    seed: int

    def __call__(self, features: Features) -> Batch:
        # a generator for each row, so that neither the batch nor the order in it moves another row's noise
        chances = [np.random.default_rng((self.seed, f.get("epoch", NO_EPOCH), f["row"])) for f in features]
        rows = [self.damage(chance, feature) for chance, feature in zip(chances, features, strict=True)]
        # the row's number goes on: the trainer names rows whose loss is no number
        return self.batch(rows) | {"row": torch.tensor([feature["row"] for feature in features])}


def padded(rows: list[list[Any]], value: float) -> torch.Tensor:
    """[rows, longest], filled up with `value` on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def replaceable(processor: PreTrainedTokenizerBase) -> np.ndarray:
    """Ids that a random replacement may take: the vocabulary without special tokens."""
    # special tokens in the middle of a text would be learnt as words
    return np.setdiff1d(np.arange(len(processor)), processor.all_special_ids)


def mask_collator(
    processor: PreTrainedTokenizerBase, *, masking_rate: float, whole_words: bool, seed: int
) -> Fresh:
    """Dynamic masking (Devlin et al. 2019; Liu et al. 2019, section 4.1).

    Batches: input_ids [batch, time] with attention_mask, or with `documents` (their numbers, -1 for padding)
    where a row has several; labels.
    """
    damage = masker(processor, masking_rate, whole_words)

    def damaged(rng: Generator, feature: Row) -> Row:
        ids, labels = damage(rng, feature["input_ids"], feature["words"])
        return {"input_ids": ids, "labels": labels, "documents": feature["documents"]}

    def batch(rows: list[Row]) -> Batch:
        inputs = _padded_inputs([row["input_ids"] for row in rows], processor)
        # a row of one document needs no mask by documents
        if any(len(row["documents"]) > 1 for row in rows):
            # padding is a document of its own, -1: it sees padding alone
            inputs["documents"] = padded([packing.numbered_documents(row["documents"]) for row in rows], -1)
            inputs["position_ids"] = padded([packing.restarting(row["documents"]) for row in rows], 0)
        return inputs | {"labels": padded([row["labels"] for row in rows], IGNORED)}

    return Fresh(damaged, batch, seed)


def masker(
    processor: PreTrainedTokenizerBase, rate: float, whole_words: bool
) -> Callable[..., tuple[list[int], list[int]]]:
    """(generator, ids, words) → (ids with masks, labels)."""
    mask, others = processor.mask_token_id, replaceable(processor)

    def damage(rng: Generator, ids: list[int], words: list[int]) -> tuple[list[int], list[int]]:
        places = noise.draw_places(rng, words, rate, whole_words)
        return noise.mask_tokens(ids, places, noise.draw_replacements(rng, ids, places, mask, others))

    return damage


def _padded_inputs(rows: list[list[int]], processor: PreTrainedTokenizerBase) -> Batch:
    ids = padded(rows, processor.pad_token_id)
    # ones by length and not by id: a text may hold the pad token's id as its own
    return {"input_ids": ids, "attention_mask": padded([[1] * len(row) for row in rows], 0)}


def causal_collator(processor: PreTrainedTokenizerBase, *, seed: int) -> Fresh:
    """The next token of each position; no noise and no padding: the rows stand in one line, and no document
    sees another.

    Batches: input_ids, position_ids [1, tokens of all rows]; cu_seq_lens (where documents begin, and the end
    of the last); longest (tokens of the longest document, a number); lengths [batch]; labels [batch, time].
    """

    def labelled(rng: Generator, feature: Row) -> Row:
        labels = packing.next_tokens(feature["input_ids"], feature["documents"])
        return {"input_ids": feature["input_ids"], "documents": feature["documents"], "labels": labels}

    # rows of a batch become one line, whose documents are those of all rows
    def batch(rows: list[Row]) -> Batch:
        documents = packing.joined([row["documents"] for row in rows])
        return {
            "input_ids": torch.tensor([packing.joined([row["input_ids"] for row in rows])]),
            "position_ids": torch.tensor([packing.restarting(documents)]),
            # 32 bits, as kernels of packed attention want borders
            "cu_seq_lens": torch.tensor(np.cumsum([0, *documents]), dtype=torch.int32),
            # a number and no tensor: read off a GPU's memory it would stop the GPU
            "longest": max(documents),
            # the way back from the line to rows, for losses by row
            "lengths": torch.tensor([len(row["input_ids"]) for row in rows]),
            # by row, as the trainer sums losses; the model's places are found by `lengths`
            "labels": padded([row["labels"] for row in rows], IGNORED),
        }

    return Fresh(labelled, batch, seed)


def pair_collator(
    processor: PreTrainedTokenizerBase,
    *,
    masking_rate: float,
    whole_words: bool,
    sentence_order: bool,
    seed: int,
) -> Fresh:
    """Two segments with masks, and whether the second follows the first.

    In one half of all cases it does; in the other it is a segment of another text (next sentence, Devlin et
    al. 2019) or both are swapped (sentence order, Lan et al. 2020).

    Batches: input_ids, attention_mask, token_type_ids [batch, time]; labels [batch, 1 + time], whose first
    column is 0 where the second segment follows and 1 where it does not.
    """
    damage = masker(processor, masking_rate, whole_words)
    start, end = processor.cls_token_id, processor.sep_token_id

    def damaged(rng: Generator, feature: Row) -> Row:
        # drawn before the masks, so that another rate leaves the pairs as they are
        wrong = bool(rng.random() < 0.5)
        names = (
            (("second", "first") if sentence_order else ("first", "other")) if wrong else ("first", "second")
        )
        one, two = (feature[name] for name in names)
        ids, labels = damage(
            rng, [start, *one, end, *two, end], _pair_words(*(feature[f"{name}_words"] for name in names))
        )
        # the first segment with its start and end, the second with its end
        types = [0] * (len(one) + 2) + [1] * (len(two) + 1)
        # the pair's own label stands before those of the tokens
        return {"input_ids": ids, "token_type_ids": types, "labels": [int(wrong), *labels]}

    def batch(rows: list[Row]) -> Batch:
        types = padded([row["token_type_ids"] for row in rows], 0)
        labels = padded([row["labels"] for row in rows], IGNORED)
        return _padded_inputs([row["input_ids"] for row in rows], processor) | {
            "token_type_ids": types,
            "labels": labels,
        }

    return Fresh(damaged, batch, seed)


def _pair_words(one: list[int], two: list[int]) -> list[int]:
    # the second text's words are counted on, or two words of one number would be masked as one
    shift = max(one, default=-1) + 1
    return [-1, *one, -1, *(word + shift for word in two), -1]


def sentinels(processor: PreTrainedTokenizerBase) -> list[int]:
    """Ids of <extra_id_0>, <extra_id_1>, ... as far as the vocabulary has them."""
    vocabulary = processor.get_vocab()
    found: list[int] = []
    # without a gap: the first number that is missing ends them
    while f"<extra_id_{len(found)}>" in vocabulary:
        found.append(vocabulary[f"<extra_id_{len(found)}>"])
    return found


def span_collator(
    processor: PreTrainedTokenizerBase, *, masking_rate: float, mean_span: float, seed: int
) -> Fresh:
    """Span corruption (Raffel et al. 2020): input with sentinels, target with what they stand for; the end
    token closes both.
    """
    end, marks = processor.eos_token_id, sentinels(processor)

    def damaged(rng: Generator, feature: Row) -> Row:
        drawn = noise.draw_spans(rng, len(feature["input_ids"]), masking_rate, mean_span)
        if len(drawn) > len(marks):
            raise InputError(
                f"{len(drawn)} spans in a row and {len(marks)} sentinels in the tokenizer; lower --max_length"
            )
        # the target's closing mark is the end token itself, so that it costs no sentinel
        ids, target = noise.corrupt(feature["input_ids"], drawn, [*marks[: len(drawn)], end])
        return {"input_ids": [*ids, end], "labels": target}

    return Fresh(damaged, lambda rows: _texts_to_texts(rows, processor), seed)


def infill_collator(
    processor: PreTrainedTokenizerBase,
    *,
    masking_rate: float,
    mean_span: float,
    permute_sentences: bool,
    deletion_rate: float,
    seed: int,
) -> Fresh:
    """BART's noise (Lewis et al. 2020): deletion of tokens, sentences permuted, spans infilled; the target is
    the text.
    """
    before, after = affixes(processor)

    def damaged(rng: Generator, feature: Row) -> Row:
        ids, ends = feature["input_ids"], feature["ends"]
        if permute_sentences:
            ids = noise.permute(ids, ends, rng.permutation(len(ends)).tolist())
        # before deletion, since `ends` are places in the whole text
        if deletion_rate:
            ids = noise.delete(ids, noise.draw_places(rng, range(len(ids)), deletion_rate))
        ids = noise.infill(
            ids, noise.draw_infilling(rng, len(ids), masking_rate, mean_span), processor.mask_token_id
        )
        # the target is the undamaged text, whatever the noise took away
        return {"input_ids": [*before, *ids, *after], "labels": [*before, *feature["input_ids"], *after]}

    return Fresh(damaged, lambda rows: _texts_to_texts(rows, processor), seed)


def _texts_to_texts(rows: list[Row], processor: PreTrainedTokenizerBase) -> Batch:
    return _padded_inputs([row["input_ids"] for row in rows], processor) | {
        "labels": padded([row["labels"] for row in rows], IGNORED)
    }


def view_collator(processor: PreTrainedTokenizerBase, *, seed: int) -> Fresh:
    """All texts of all rows, row by row; a text alone comes twice, so that dropout makes two views of it (Gao
    et al. 2021).

    Batches: input_ids, attention_mask [batch × views, time]; labels [batch].
    """

    def unchanged(rng: Generator, feature: Row) -> Row:
        texts = feature["views"]
        return {"views": texts * 2 if len(texts) == 1 else texts, "labels": feature["labels"]}

    def batch(rows: list[Row]) -> Batch:
        texts = [text for row in rows for text in row["views"]]
        # a text with a pair, and its negative, one after another: [batch × views, time]
        return _padded_inputs(texts, processor) | {
            # scores as they are, nan where there is none
            "labels": torch.tensor([row["labels"] for row in rows], dtype=torch.float32)
        }

    return Fresh(unchanged, batch, seed)
