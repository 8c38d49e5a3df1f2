"""Answers → 95 % intervals of a task's figures. Knows answers; knows no models and no rows.

A figure that is a function of sums over rows (a mean, F1, a correlation) is resampled by multinomial draws: every bootstrap
sample of rows is a line of weights, and one matrix product gives the sums of all samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from seqeval.scheme import IOB2, Entities

from finetune.metrics import classification, spans, texts

Array = np.ndarray
Answer = dict[str, Any]
Counts = Callable[[Sequence[Answer]], Array]  # answers → what is summed, [rows, sums]
Figure = Callable[[Array], Array]  # sums of each sample, [samples, sums] → [samples]


def bootstrap(counts: Array, figure: Figure, samples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of `figure` over resampled rows (Efron & Tibshirani 1993, chapter 13); counts [rows, sums]."""
    step = max(1, 20_000_000 // max(len(counts), 1))  # draws in parts of bounded memory
    parts = [
        classification.draws(len(counts), min(step, samples - start), seed + start) @ counts
        for start in range(0, samples, step)
    ]
    low, high = np.quantile(figure(np.concatenate(parts)), [0.025, 0.975])
    return float(low), float(high)


def mean(sums: Array) -> Array:
    """[samples, 2]: sum and number of rows."""
    return sums[:, 0] / sums[:, 1]


def f1(sums: Array) -> Array:
    """[samples, 3]: right ones, those said, those there are."""
    both = sums[:, 1] + sums[:, 2]
    return np.divide(2 * sums[:, 0], both, out=np.zeros(len(sums)), where=both > 0)


def correlation(sums: Array) -> Array:
    """[samples, 6]: rows, x, y, xy, xx, yy; 0 where either side is constant."""
    count, x, y, xy, xx, yy = sums.T
    spread = (count * xx - x**2) * (count * yy - y**2)
    return np.divide(
        count * xy - x * y, np.sqrt(np.maximum(spread, 0)), out=np.zeros(len(sums)), where=spread > 0
    )


def each(score: Callable[[Answer], float]) -> Counts:
    """The score of each answer, and that it is one."""
    return lambda answers: np.array([[score(answer), 1.0] for answer in answers])


def right(answer: Answer) -> float:
    return float(answer["prediction"] == answer["gold"])


def sets(answers: Sequence[Answer]) -> Array:
    """Labels said and right, said, and there, of each row."""
    pairs = [(set(answer["prediction"]), set(answer["gold"])) for answer in answers]
    return np.array([[len(said & gold), len(said), len(gold)] for said, gold in pairs], dtype=float)


def entities(answers: Sequence[Answer]) -> Array:
    """Entities said and right, said, and there, of each row, as `metrics.entities` counts them."""
    found = []
    for answer in answers:
        said, gold = (_entities(list(answer[side])) for side in ("prediction", "gold"))
        found.append([len(said & gold), len(said), len(gold)])
    return np.array(found, dtype=float)


def _entities(tags: list[str]) -> set[tuple]:
    return {one.to_tuple() for one in Entities([tags], IOB2).entities[0]}


def moments(answers: Sequence[Answer]) -> Array:
    """Each row's part in the sums of a correlation, around the means, which keeps large numbers apart from small differences."""
    x, y = (np.array([float(answer[side]) for answer in answers]) for side in ("prediction", "gold"))
    x, y = x - x.mean(), y - y.mean()
    return np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=1)


def best_of(score: Callable[[str, str], float]) -> Counts:
    """The best score of an answer against any of its references; a question without any wants the answer ""."""

    def best(answer: Answer) -> float:
        gold = [text for text in answer["gold"] if spans.normalised(text)] or [""]
        return max(score(answer["prediction"], text) for text in gold)

    return each(best)


def number(answer: Answer) -> float:
    return float(texts.same_number(answer["prediction"], answer["gold"]))


ACCURACY: dict[str, tuple[Counts, Figure]] = {"accuracy": (each(right), mean)}
FIGURES: dict[str, dict[str, tuple[Counts, Figure]]] = {
    "classification": ACCURACY,
    "pairs": ACCURACY,
    "choice": ACCURACY,
    "multilabel": ACCURACY | {"micro_f1": (sets, f1)},
    "regression": {"pearson": (moments, correlation)},
    "tokens": {"f1": (entities, f1)},
    "spans": {"exact_match": (best_of(spans.exact_match), mean), "f1": (best_of(spans.word_f1), mean)},
    "seq2seq": {"rougeL": (each(lambda answer: texts.rouge_l(answer["prediction"], answer["gold"])), mean)},
    "sft": {"answer_accuracy": (each(number), mean)},
}


def intervals(
    task: str, answers: Sequence[Answer], figures: dict[str, Any], samples: int = 2000
) -> dict[str, list[float]]:
    """The interval of each of the `figures` that has one: {"accuracy": [low, high]}; none without answers."""
    if not answers:
        return {}
    entitled = {name: how for name, how in FIGURES.get(task, {}).items() if name in figures}
    if task == "tokens" and "per_type" not in figures:  # tags that are of no entities
        entitled = {"f1": (_tags, mean)}
    return {
        name: list(bootstrap(counts(answers), figure, samples)) for name, (counts, figure) in entitled.items()
    }


def _tags(answers: Sequence[Answer]) -> Array:
    """Tags right, and tags, of each row."""
    pairs = [list(zip(answer["prediction"], answer["gold"], strict=True)) for answer in answers]
    return np.array([[sum(said == gold for said, gold in row), len(row)] for row in pairs], dtype=float)
