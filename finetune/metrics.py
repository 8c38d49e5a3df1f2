"""Predictions → numbers. Knows arrays; knows no models and no files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, f1_score, matthews_corrcoef, precision_recall_fscore_support

Array = np.ndarray


def labels(logits: Array, gold: Array, names: Sequence[str]) -> dict[str, Any]:
    """Figures of a classifier: logits [rows, classes], gold [rows] → accuracy, macro- and micro-F1, Matthews correlation."""
    predicted = logits.argmax(-1)
    present = np.arange(len(names))
    return {
        "accuracy": float((predicted == gold).mean()),
        "macro_f1": float(f1_score(gold, predicted, labels=present, average="macro", zero_division=0.0)),
        "micro_f1": float(f1_score(gold, predicted, labels=present, average="micro", zero_division=0.0)),
        "matthews": float(matthews_corrcoef(gold, predicted)),
    }


def per_class(predicted: Array, gold: Array, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and number of gold rows of each class; predicted and gold [rows]."""
    figures = precision_recall_fscore_support(gold, predicted, labels=np.arange(len(names)), zero_division=0.0)
    keys = ("precision", "recall", "f1", "rows")
    return {name: {k: float(v[i]) for k, v in zip(keys, figures, strict=True)} for i, name in enumerate(names)}


def confusion(predicted: Array, gold: Array, names: Sequence[str]) -> list[list[int]]:
    """Rows are gold classes, columns predicted ones."""
    return confusion_matrix(gold, predicted, labels=np.arange(len(names))).tolist()


def draws(rows: int, samples: int, seed: int) -> Array:
    """How often each row is in each bootstrap sample: [samples, rows], every line adding up to `rows`.

    One multinomial draw instead of resampled rows: figures that are sums over rows become one matrix product.
    """
    return np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=samples)


def interval(values: Array, samples: int = 2000, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` [rows] (Efron & Tibshirani 1993, chapter 13)."""
    values = np.asarray(values, dtype=np.float64)
    means = np.concatenate([part @ values for part in _parts(len(values), samples, seed)]) / len(values)
    return _percentiles(means, level)


def macro_f1_interval(
    predicted: Array, gold: Array, classes: int, samples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of macro-F1 over resampled rows; predicted and gold [rows]."""
    one_hot = np.eye(classes)
    hits = one_hot[gold] * (predicted == gold)[:, None]
    scores = []
    for part in _parts(len(gold), samples, seed):
        both = part @ one_hot[predicted] + part @ one_hot[gold]
        scores.append(np.divide(2 * (part @ hits), both, out=np.zeros_like(both), where=both > 0).mean(axis=1))
    return _percentiles(np.concatenate(scores), level)


def _parts(rows: int, samples: int, seed: int) -> list[Array]:
    """The draws in parts of bounded memory."""
    step = max(1, min(samples, 20_000_000 // max(rows, 1)))
    return [draws(rows, min(step, samples - start), seed + start) for start in range(0, samples, step)]


def _percentiles(values: Array, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


