"""Questions and contexts ↔ windows and answers: extractive question answering. Knows tokenizers and scores; knows no models."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from finetune.data.columns import Columns
from finetune.data.encode import mapped, want_tokens
from finetune.tasks.labels import shared, want_places

logger = logging.getLogger(__name__)

NOWHERE = (-1, -1)


def spans(
    rows: Dataset,
    columns: Columns,
    processor: PreTrainedTokenizerBase,
    max_length: int,
    labels: list[str] | None,
    *,
    stride: int | None = None,
) -> Dataset:
    """Question, context and answers a row → windows: input_ids, labels, offsets, row, length.

    `labels` is the first and last token of the first answer, or (0, 0) in windows that don't hold the whole of it. Windows share
    `stride` tokens of context (a quarter of `max_length` where none is given). `offsets` gives each token's first and last
    character in the context, (-1, -1) outside. Questions beyond half of `max_length` are cut.

    Raises:
        InputError: a slow tokenizer, a stride that leaves no room, or a question or context without a single token.
    """
    want_places(processor)
    overlap = shared(
        stride, max_length, max_length - max_length // 2 - processor.num_special_tokens_to_add(pair=True)
    )

    def encode(batch: dict[str, list]) -> dict[str, list]:
        asked, contexts = (
            _cut_questions(batch[columns.text], processor, max_length // 2),
            batch[str(columns.pair)],
        )
        encoded = processor(
            asked,
            contexts,
            truncation="only_second",
            max_length=max_length,
            stride=overlap,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        source = encoded["overflow_to_sample_mapping"]
        want_tokens(
            encoded, [[asked[place] for place in source], [contexts[place] for place in source]], max_length
        )
        features: dict[str, list] = {k: encoded[k] for k in encoded if k in ("input_ids", "token_type_ids")}
        features |= {
            "source": source,
            "length": [len(ids) for ids in encoded["input_ids"]],
            "offsets": [],
            "labels": [],
        }
        for window, places in enumerate(encoded["offset_mapping"]):
            of_context = [part == 1 for part in encoded.sequence_ids(window)]
            offsets = [
                tuple(place) if inside else NOWHERE for place, inside in zip(places, of_context, strict=True)
            ]
            features["offsets"].append(offsets)
            features["labels"].append(
                list(token_span(offsets, *answer_place(batch[columns.label][source[window]])))
            )
        return features

    features = mapped(rows, columns, encode, processor, {"max_length": max_length, "stride": overlap})
    if len(features) > len(rows):
        logger.warning(
            "%d questions are read in %d windows of at most %d tokens", len(rows), len(features), max_length
        )
    return features


def answer_place(answers: dict[str, list]) -> tuple[int, int]:
    """First and last character (exclusive) of the first answer; (-1, -1) where there is none."""
    if not answers["text"]:
        return NOWHERE
    start = answers["answer_start"][0]
    return start, start + len(answers["text"][0])


def token_span(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """First and last token (inclusive) of the characters start..end; (0, 0) where the tokens don't hold all of them."""
    inside = [index for index, (first, last) in enumerate(offsets) if last > first]
    if start < 0 or not inside or offsets[inside[0]][0] > start or offsets[inside[-1]][1] < end:
        return 0, 0
    begins = next(index for index in inside if offsets[index][1] > start)
    ends = next(index for index in reversed(inside) if offsets[index][0] < end)
    return (begins, ends) if begins <= ends else (0, 0)


def best_spans(
    scores: np.ndarray, offsets: np.ndarray, most: int, longest: int
) -> list[tuple[float, int, int]]:
    """The `most` best answers of a window, best first: (score, first character, last character exclusive).

    Args:
        scores: start and end scores, [time, 2].
        offsets: characters of each token, [time, 2], -1 outside the context.
        longest: tokens that an answer may have.
    """
    inside = np.flatnonzero(offsets[:, 1] > offsets[:, 0])
    starts = inside[np.argsort(-scores[inside, 0], kind="stable")[:most]]
    ends = inside[np.argsort(-scores[inside, 1], kind="stable")[:most]]
    width = ends[None, :] - starts[:, None]
    pairs = np.argwhere((width >= 0) & (width < longest))
    totals = scores[starts[pairs[:, 0]], 0] + scores[ends[pairs[:, 1]], 1]
    best = np.argsort(-totals, kind="stable")[:most]
    return [
        (float(totals[i]), int(offsets[starts[pairs[i, 0]], 0]), int(offsets[ends[pairs[i, 1]], 1]))
        for i in best
    ]


def ranked(
    windows: Sequence[tuple[np.ndarray, np.ndarray]], context: str, most: int, longest: int
) -> tuple[list[dict[str, Any]], float]:
    """The n-best answers of a question over all its windows, and the score of no answer.

    Args:
        windows: (scores [time, 2], offsets [time, 2]) each; token 0 stands for no answer.

    Returns:
        Answers with text, score and probability among the n-best and no answer (each text once, best first), and the lowest score
        of no answer: one window that holds an answer is enough (Devlin et al. 2019, section 4.3).
    """
    found: dict[str, float] = {}
    for scores, offsets in windows:
        for score, start, end in best_spans(scores, offsets, most, longest):
            text = context[start:end].strip()
            found[text] = max(score, found.get(text, -np.inf))
    none = min(float(scores[0].sum()) for scores, _ in windows)
    best = sorted(found.items(), key=lambda item: -item[1])[:most]
    weights = np.exp(
        np.array([score for _, score in best] + [none]) - max([score for _, score in best] + [none])
    )
    chances = weights / weights.sum()
    return [
        {"text": text, "score": score, "probability": float(p)}
        for (text, score), p in zip(best, chances, strict=False)
    ], none


def _cut_questions(questions: list[str], processor: PreTrainedTokenizerBase, room: int) -> list[str]:
    places = processor(questions, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]
    long = sum(len(place) > room for place in places)
    if long:
        logger.warning("%d questions are longer than %d tokens and were cut (--max_length)", long, room)
    return [
        text if len(place) <= room else text[: place[room - 1][1]]
        for text, place in zip(questions, places, strict=True)
    ]
