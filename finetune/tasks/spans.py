"""The part of a text that answers a question: from raw rows to figures. Knows columns, tokenizers, scores and
how heads are called.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from finetune.data.answered import lay_out_spans
from finetune.data.checks import checked_splits
from finetune.data.columns import Columns
from finetune.data.encode import mapped, want_tokens
from finetune.data.laying import laid_out
from finetune.data.places import check_each
from finetune.data.sources import DataArguments, Rows
from finetune.errors import InputError
from finetune.metrics import spans
from finetune.metrics.bootstrap import Counts, each, mean_figure
from finetune.models.heads import OUT
from finetune.tasks.options import TaskArguments
from finetune.tasks.task import Answer, Asked, Examined
from finetune.tasks.windows import shared_tokens, want_places

logger = logging.getLogger(__name__)

NOWHERE = (-1, -1)


def examine(rows: Rows, data: DataArguments) -> Examined:
    """Questions, contexts and answers {text: [...], answer_start: [...]} that stand in them (SQuAD's format).

    Raises:
        InputError: no such answers, answers that don't stand where they say, no answer in any training row.
    """
    rows, columns = laid_out(rows, data, lay_out_spans)
    assert rows.train is not None
    examined = checked_splits(rows, data, columns, check_answers)
    # on all rows, before the sample: a few of them may all be unanswered by chance
    # rows without any answers at all were left out where that was asked for
    count = sum(not (answers or {}).get("text") for answers in rows.train[columns.label][:])
    # a set to be assessed may well hold none
    if count == len(rows.train) and rows.train is not rows.eval:
        raise InputError(f"No training row has an answer in '{columns.label}'; set --label_column")
    if count:
        logger.warning(
            "%d of %d training questions have no answer (--no_answer_threshold says when to give none)",
            count,
            len(rows.train),
        )
    return Examined(*examined, None)


def check_answers(rows: Dataset, columns: Columns, where: str) -> None:
    """Every answer stands in its context where it says."""
    feature = rows.features[columns.label]
    if not isinstance(feature, dict) or not {"text", "answer_start"} <= set(feature):
        wanted = "a mapping of text and answer_start, both lists"
        raise InputError(f"The column '{columns.label}' holds {feature}; wanted {wanted}. Set --label_column")

    def fault(context: str, answers: dict[str, Any] | None) -> str | None:
        # Arrow may give None for an empty list
        starts = (answers or {}).get("answer_start") or ()
        if answers is None or len(answers["text"] or ()) != len(starts) or None in starts:
            return f"has the answers {answers!r:.200}; wanted as many texts as starts"
        for text, start in zip(answers["text"] or (), starts, strict=True):
            # a negative place would count from the end
            found = context[start : start + len(text)] if start >= 0 else ""
            if found != text or not text.strip():
                return f"says that {text!r} stands at character {start} of its context; there is {found!r}"
        return None

    remedy = "Mend what stands there, or leave it out"
    check_each(rows, where, [str(columns.pair), columns.label], fault, remedy)


def encode(
    rows: Dataset,
    columns: Columns,
    processor: PreTrainedTokenizerBase,
    max_length: int,
    labels: list[str] | None,
    *,
    stride: int | None = None,
) -> Dataset:
    """Question, context and answers a row → windows: input_ids, labels, offsets, row, length.

    `labels` is the first and last token of the first answer, or (0, 0) in windows that don't hold the whole
    of it. Windows share `stride` tokens of context (a quarter of `max_length` where none is given). `offsets`
    gives each token's first and last character in the context, (-1, -1) outside. Questions beyond half of
    `max_length` are cut.

    Raises:
        InputError: a slow tokenizer, a stride that leaves no room, or a question or context without a single
            token.
    """
    want_places(processor)
    # the room that is left to a context when the question takes its half
    overlap = shared_tokens(
        stride, max_length, max_length - max_length // 2 - processor.num_special_tokens_to_add(pair=True)
    )

    def encode(batch: dict[str, list]) -> dict[str, list]:
        # questions are cut first: `only_second` fails where the question alone fills the window
        asked, contexts = (
            _cut_questions(batch[columns.text], processor, max_length // 2),
            batch[str(columns.pair)],
        )
        # the tokenizer itself makes the windows, special tokens and token types in each
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
        # windows come row by row, several of one row
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
            # offsets of the question count from its own beginning and must not pass for places in the context
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
    # one span is learnt; the other references count in evaluation
    start = answers["answer_start"][0]
    return start, start + len(answers["text"][0])


def token_span(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """First and last token (inclusive) of the characters start..end; (0, 0) where the tokens don't hold all
    of them.
    """
    # special tokens and question have no characters here
    inside = [index for index, (first, last) in enumerate(offsets) if last > first]
    # an answer that is cut by the window's edge is none there: another window holds it whole
    if start < 0 or not inside or offsets[inside[0]][0] > start or offsets[inside[-1]][1] < end:
        return 0, 0
    # an answer may begin or end within a token, which then belongs to it
    begins = next(index for index in inside if offsets[index][1] > start)
    ends = next(index for index in reversed(inside) if offsets[index][0] < end)
    return (begins, ends) if begins <= ends else (0, 0)


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


def forward(model: Any, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Start and end logits of a head for extractive answers, [batch, 2, time]; padding can't be chosen.

    The heads' own loss lets padding into the softmax, so that it changes with the longest row of a batch.
    """
    # without labels, as the head's own loss is not wanted
    outputs = model(**batch)
    time = batch["input_ids"].shape[1]  # made-up tokens of a tuning method stand in front
    logits = torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=1)[..., -time:].float()
    return logits.masked_fill(batch["attention_mask"][:, None].eq(0), OUT)


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
    # the best of each side suffice: all pairs of a window would be time²
    starts = inside[np.argsort(-scores[inside, 0], kind="stable")[:most]]
    ends = inside[np.argsort(-scores[inside, 1], kind="stable")[:most]]
    # [starts, ends]; an end may be the start's own token
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
        Answers with text, score and probability among the n-best and no answer (each text once, best first),
        and the lowest score
        of no answer: one window that holds an answer is enough (Devlin et al. 2019, section 4.3).
    """
    found: dict[str, float] = {}
    for scores, offsets in windows:
        for score, start, end in best_spans(scores, offsets, most, longest):
            # sub-words bring the blank before them
            text = context[start:end].strip()
            # windows overlap: the same words count once, with their best score
            found[text] = max(score, found.get(text, -np.inf))
    none = min(float(scores[0].sum()) for scores, _ in windows)
    best = sorted(found.items(), key=lambda item: -item[1])[:most]
    # less the maximum, so that large scores don't overflow
    weights = np.exp(
        np.array([score for _, score in best] + [none]) - max([score for _, score in best] + [none])
    )
    chances = weights / weights.sum()
    return [
        {"text": text, "score": score, "probability": float(p)}
        for (text, score), p in zip(best, chances, strict=False)
    ], none


def read(
    kept: np.ndarray,
    asked: Asked,
    *,
    n_best: int = 20,
    max_answer_length: int = 30,
    no_answer_threshold: float | None = None,
) -> list[Answer]:
    """Start and end scores [windows, time, 2] → the best answer of each question over its windows, and the n
    best.

    With a threshold, a question is left unanswered where the score of no answer beats the best answer's by
    more than it.
    """
    windows: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(len(asked.rows))]
    for scores, row, offsets in zip(kept, asked.features["row"], asked.features["offsets"], strict=True):
        # scores are padded to the longest of all batches
        windows[row].append((scores[: len(offsets)], np.asarray(offsets)))
    answers = []
    for found, context, gold in zip(
        windows, asked.rows[str(asked.columns.pair)], asked.rows[asked.columns.label], strict=True
    ):
        best, none = ranked(found, context, n_best, max_answer_length)
        # without any span no answer wins at any threshold
        margin = none - best[0]["score"] if best else float("inf")
        silent = not best or (no_answer_threshold is not None and margin > no_answer_threshold)
        answers.append(
            {
                "gold": list(gold["text"]),
                "prediction": "" if silent else best[0]["text"],
                "score": 1 - sum(a["probability"] for a in best) if silent else best[0]["probability"],
                "no_answer_margin": margin,
                "n_best": best,
            }
        )
    return answers


def bind(options: TaskArguments) -> dict[str, Callable]:
    """The row's functions that take options."""
    reading = partial(
        read,
        n_best=options.n_best,
        max_answer_length=options.max_answer_length,
        no_answer_threshold=options.no_answer_threshold,
    )
    return {"encode": partial(encode, stride=options.stride), "read": reading}


def figures(answers: Sequence[Answer], labels: Sequence[str] | None) -> dict[str, Any]:
    """Exact match and F1; where some questions have no answer, also the threshold that would have been best
    on these rows.
    """
    found: dict[str, Any] = spans.answer_figures(
        [a["prediction"] for a in answers], [a["gold"] for a in answers]
    )
    if "f1_answerable" in found:
        # the best span whether or not it was given: the threshold is what is looked for
        answered = [a["n_best"][0]["text"] if a["n_best"] else "" for a in answers]
        overlap = [
            max((spans.word_f1(said, text) for text in a["gold"]), default=0.0)
            for said, a in zip(answered, answers, strict=True)
        ]
        margins = [a["no_answer_margin"] for a in answers]
        best = spans.best_threshold(margins, overlap, [bool(a["gold"]) for a in answers])
        found |= dict(zip(("best_threshold", "f1_at_best_threshold"), best, strict=True))
    return found


def best_of(score: Callable[[str, str], float]) -> Counts:
    """The best score of an answer against any of its references; a question without any wants the
    answer "".
    """

    def best(answer: Answer) -> float:
        # a reference that normalises to nothing (an article) can't be matched
        gold = [text for text in answer["gold"] if spans.normalised_answer(text)] or [""]
        return max(score(answer["prediction"], text) for text in gold)

    return each(best)


INTERVALS = {
    "exact_match": (best_of(spans.exact_match), mean_figure),
    "f1": (best_of(spans.word_f1), mean_figure),
}
