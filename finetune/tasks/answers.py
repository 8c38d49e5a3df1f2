"""A model's outputs → one answer a raw row, its figures, its line in a file. Knows arrays and rows; knows no models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from finetune.data.columns import Columns
from finetune.metrics import classification, texts
from finetune.metrics.spans import best_threshold
from finetune.metrics.spans import spans as spans_figures
from finetune.tasks.examine import are_entities
from finetune.tasks.labels import named
from finetune.tasks.spans import ranked

Answer = dict[str, Any]
PREDICTIONS = "predictions.jsonl"


@dataclass(frozen=True)
class Asked:
    """Raw rows, and the features that were made of them: several of one row where it is read in windows.

    Attributes:
        rows: raw rows.
        features: in the order of the model's outputs; their column `row` says which raw row they are of.
        labels: names of the classes, None where there are none.
    """

    rows: Dataset
    columns: Columns
    features: Dataset
    labels: list[str] | None


def classes(kept: np.ndarray, asked: Asked) -> list[Answer]:
    """Logits [rows, classes] → the likeliest class of each row and its probability."""
    assert asked.labels is not None
    chances = _softmax(kept)[_in_order(asked)]
    gold = np.asarray(asked.features["labels"][:])[_in_order(asked)]
    return [
        {
            "gold": asked.labels[wanted],
            "prediction": asked.labels[int(row.argmax())],
            "score": float(row.max()),
        }
        for wanted, row in zip(gold, chances, strict=True)
    ]


def label_sets(kept: np.ndarray, asked: Asked) -> list[Answer]:
    """Logits [rows, classes] → the labels above one half; the score is the probability of just this set."""
    assert asked.labels is not None
    chances = (1 / (1 + np.exp(-kept.astype(np.float64))))[_in_order(asked)]
    gold = np.asarray(asked.features["labels"][:])[_in_order(asked)] > 0.5
    return [
        {
            "gold": [name for name, there in zip(asked.labels, wanted, strict=True) if there],
            "prediction": [name for name, chance in zip(asked.labels, row, strict=True) if chance > 0.5],
            "score": float(np.maximum(row, 1 - row).prod()),
        }
        for wanted, row in zip(gold, chances, strict=True)
    ]


def numbers(kept: np.ndarray, asked: Asked) -> list[Answer]:
    """Logits [rows, 1] → numbers; there is no probability, so that the score is the number itself."""
    values = kept.reshape(-1)[_in_order(asked)].tolist()
    return [
        {"gold": gold, "prediction": said, "score": said}
        for gold, said in zip(asked.rows[asked.columns.label], values, strict=True)
    ]


def choices(kept: np.ndarray, asked: Asked) -> list[Answer]:
    """Scores [rows, choices] → the place of the best choice and its probability."""
    chances = _softmax(kept)[_in_order(asked)]
    return [
        {"gold": gold, "prediction": int(row.argmax()), "score": float(row.max())}
        for gold, row in zip(asked.rows[asked.columns.label], chances, strict=True)
    ]


def tags(kept: np.ndarray, asked: Asked) -> list[Answer]:
    """Logits [windows, time, tags] → a tag for each word; the score is the mean probability of the tags given.

    A word that the tokenizer drops gets O, or the first tag where there is no O.
    """
    assert asked.labels is not None
    column = asked.columns.label
    gold = named(asked.rows.features[column], asked.rows[column][:])
    fallback = "O" if "O" in asked.labels else asked.labels[0]
    given = [[fallback] * len(row) for row in gold]
    chances: list[list[float]] = [[] for _ in gold]
    for logits, row, words in zip(kept, asked.features["row"], asked.features["words"], strict=True):
        for place, word in enumerate(words):
            if word >= 0:
                weights = _softmax(logits[place])
                given[row][word] = asked.labels[int(weights.argmax())]
                chances[row].append(float(weights.max()))
    return [
        {"gold": wanted, "prediction": said, "score": float(np.mean(weights))}
        for wanted, said, weights in zip(gold, given, chances, strict=True)
    ]


def spans(
    kept: np.ndarray,
    asked: Asked,
    *,
    n_best: int = 20,
    max_answer_length: int = 30,
    no_answer_threshold: float | None = None,
) -> list[Answer]:
    """Start and end scores [windows, time, 2] → the best answer of each question over its windows, and the n best.

    With a threshold, a question is left unanswered where the score of no answer beats the best answer's by more than it.
    """
    windows: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(len(asked.rows))]
    for scores, row, offsets in zip(kept, asked.features["row"], asked.features["offsets"], strict=True):
        windows[row].append((scores[: len(offsets)], np.asarray(offsets)))
    answers = []
    for found, context, gold in zip(
        windows, asked.rows[str(asked.columns.pair)], asked.rows[asked.columns.label], strict=True
    ):
        best, none = ranked(found, context, n_best, max_answer_length)
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


def tag_figures(answers: Sequence[Answer], labels: Sequence[str]) -> dict[str, Any]:
    """Entity precision, recall and F1, strict IOB2; of other tags micro-F1 over words, which is their accuracy."""
    gold, said = [a["gold"] for a in answers], [a["prediction"] for a in answers]
    if are_entities(labels):
        return classification.entities(said, gold)
    right = [one == other for g, s in zip(gold, said, strict=True) for one, other in zip(g, s, strict=True)]
    return {"f1": sum(right) / max(len(right), 1)}


def span_figures(answers: Sequence[Answer], labels: Sequence[str] | None) -> dict[str, Any]:
    """Exact match and F1; where some questions have no answer, also the threshold that would have been best on these rows."""
    figures: dict[str, Any] = spans_figures([a["prediction"] for a in answers], [a["gold"] for a in answers])
    if "f1_answerable" in figures:
        answered = [a["n_best"][0]["text"] if a["n_best"] else "" for a in answers]
        overlap = [
            max((spans.word_f1(said, text) for text in a["gold"]), default=0.0)
            for said, a in zip(answered, answers, strict=True)
        ]
        margins = [a["no_answer_margin"] for a in answers]
        best = best_threshold(margins, overlap, [bool(a["gold"]) for a in answers])
        figures |= dict(zip(("best_threshold", "f1_at_best_threshold"), best, strict=True))
    return figures


def text_figures(answers: Sequence[Answer], labels: Sequence[str] | None) -> dict[str, Any]:
    """ROUGE, BLEU, chrF, length ratio, and what BLEU and chrF were computed with."""
    return texts.texts([a["prediction"] for a in answers], [a["gold"] for a in answers]) | texts.signatures()


def instruction_figures(answers: Sequence[Answer], labels: Sequence[str] | None) -> dict[str, Any]:
    """Figures of texts; where references end in `#### number`, also the share of answers that end in that number."""
    figures = text_figures(answers, labels)
    if all(texts.MARK in a["gold"] for a in answers):
        right = [texts.same_number(a["prediction"], a["gold"]) for a in answers]
        figures["answer_accuracy"] = sum(right) / len(right)
    return figures


def references(rows: Dataset, column: str) -> list[str]:
    """Texts of a column; of chats, the assistant's last message."""
    values = rows[column][:]
    if values and isinstance(values[0], str):
        return list(values)
    return [
        next((m["content"] or "" for m in reversed(chat) if m["role"] == "assistant"), "") for chat in values
    ]


def save_answers(answers: Sequence[Answer], asked: Asked, folder: str) -> Path:
    """Writes predictions.jsonl, a line a row: id (its number where there is none), text, gold, prediction, score, and more."""
    rows, columns = asked.rows, asked.columns
    ids = rows["id"][:] if "id" in rows.column_names else range(len(rows))
    asked = (
        rows[columns.text][:]
        if columns.pair is None
        else list(zip(rows[columns.text], rows[columns.pair], strict=True))
    )
    records = (
        {"id": name, "text": text} | answer for name, text, answer in zip(ids, asked, answers, strict=True)
    )
    file = Path(folder) / PREDICTIONS
    file.write_text(
        "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8"
    )
    return file


def _in_order(asked: Asked) -> np.ndarray:
    """Place of each raw row's one feature."""
    return np.argsort(np.asarray(asked.features["row"][:]), kind="stable")


def _softmax(values: np.ndarray) -> np.ndarray:
    weights = np.exp(values.astype(np.float64) - values.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)
