"""Predictions → numbers. Knows arrays; knows no models and no files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata
from seqeval import metrics as seqeval
from seqeval.scheme import IOB2
from sklearn.metrics import confusion_matrix, f1_score, matthews_corrcoef, precision_recall_fscore_support

Array = np.ndarray


def class_figures(logits: Array, gold: Array, names: Sequence[str]) -> dict[str, Any]:
    """Figures of a classifier: logits [rows, classes], gold [rows] → accuracy, macro- and micro-F1, Matthews
    correlation.
    """
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
    figures = precision_recall_fscore_support(
        gold, predicted, labels=np.arange(len(names)), zero_division=0.0
    )
    keys = ("precision", "recall", "f1", "rows")
    return {
        name: {k: float(v[i]) for k, v in zip(keys, figures, strict=True)} for i, name in enumerate(names)
    }


def class_confusion(predicted: Array, gold: Array, names: Sequence[str]) -> list[list[int]]:
    """Rows are gold classes, columns predicted ones."""
    return confusion_matrix(gold, predicted, labels=np.arange(len(names))).tolist()


def label_set_figures(logits: Array, gold: Array, names: Sequence[str]) -> dict[str, Any]:
    """Figures of several labels a row, each taken where its probability is above one half: logits, gold (0 or
    1) [rows, classes].

    `accuracy` is the share of rows whose whole set is right.
    """
    predicted = logits > 0
    wanted = gold > 0.5
    alone = wanted.shape[1] == 1  # which scikit-learn takes for two classes, there and not there
    return {
        "accuracy": float((predicted == wanted).all(axis=1).mean()),
        "macro_f1": float(
            f1_score(wanted, predicted, average="binary" if alone else "macro", zero_division=0.0)
        ),
        "micro_f1": float(
            f1_score(wanted, predicted, average="binary" if alone else "micro", zero_division=0.0)
        ),
        "label_accuracy": float((predicted == wanted).mean()),
    }


def number_figures(logits: Array, gold: Array, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Figures of a regression, logits [rows, 1], gold [rows]: correlations (0 where either side is constant)
    and mean errors.
    """
    predicted = np.asarray(logits, dtype=np.float64).reshape(len(gold))
    gold = np.asarray(gold, dtype=np.float64)
    return {
        "pearson": _correlation(predicted, gold),
        "spearman": _correlation(rankdata(predicted), rankdata(gold)),
        "mse": float(((predicted - gold) ** 2).mean()),
        "mae": float(np.abs(predicted - gold).mean()),
    }


def _correlation(one: Array, other: Array) -> float:
    one, other = one - one.mean(), other - other.mean()
    # Both constant, or one: no correlation, and no division by 0.
    size = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / size if size > 0 else 0.0


def choice_figures(logits: Array, gold: Array, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Accuracy of a choice, logits [rows, choices], gold [rows]; `chance` is what guessing would get."""
    absent = (logits < -1e8) | (logits == -100)  # filled up in a batch, and between batches
    # A choice that isn't there must not be the likeliest, however low the others are.
    predicted = np.where(absent, -np.inf, logits).argmax(-1)
    return {
        "accuracy": float((predicted == gold).mean()),
        "chance": float((1 / (~absent).sum(axis=1)).mean()),
    }


def token_figures(hits: Array, gold: Array, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Share of labelled tokens that were the likeliest: hits [rows] (`loss.hits`), gold [rows, time] with
    -100 where none is.
    """
    # No labelled token at all: 0 and not a division by 0.
    return {"token_accuracy": float(hits.sum() / max((gold != -100).sum(), 1))}


def tag_accuracy(logits: Array, gold: Array, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Share of labelled words with the right tag: logits [rows, time, tags], gold [rows, time] with -100
    where none is.
    """
    counted = gold != -100
    return {"accuracy": float((logits.argmax(-1) == gold)[counted].mean()) if counted.any() else 0.0}


def entity_figures(predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Precision, recall and F1 of whole entities (Tjong Kim Sang & De Meulder 2003), strict IOB2: what starts
    with I- is none.

    Returns:
        precision, recall, f1 over all entities, and `per_type` the same for each type; 0 where there is
        nothing to count.
    """
    wanted, said = [list(tags) for tags in gold], [list(tags) for tags in predicted]
    # seqeval divides by nothing where neither side has an entity.
    if not any(tag.startswith("B-") for tags in wanted + said for tag in tags):
        return {"precision": 0.0, "recall": 0.0, "f1": 0.0, "per_type": {}}
    report = seqeval.classification_report(
        wanted, said, mode="strict", scheme=IOB2, output_dict=True, zero_division=0
    )
    keys = {"precision": "precision", "recall": "recall", "f1": "f1-score"}
    figures = {name: {key: float(row[k]) for key, k in keys.items()} for name, row in report.items()}
    per_type = {
        k: v | {"entities": int(report[k]["support"])} for k, v in figures.items() if not k.endswith(" avg")
    }
    return figures["micro avg"] | {"per_type": per_type}


def window_figures(scores: Array, gold: Array, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Share of windows whose likeliest first and last token are both right: scores [windows, time, 2], gold
    [windows, 2].
    """
    return {"window_accuracy": float((scores.argmax(axis=1) == gold).all(axis=1).mean())}
