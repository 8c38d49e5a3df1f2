"""This project's metrics as `evaluate.Metric`s, to be combined with any other of `evaluate`'s:
`evaluate.combine([...])`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import evaluate
import numpy as np
from datasets import Features, List, Value

from finetune.metrics import classification, spans, texts


class Own(evaluate.Metric):
    """A metric whose figures a function of this package computes: `features` say what it takes."""

    features: Features
    figures: Callable[[Any, Any], dict[str, Any]]

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description="predictions and references, as `features` say",
            features=self.features,
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:  # type: ignore[override]
        # By the class: a function kept on an instance would be bound to it.
        return type(self).figures(predictions, references)


def _class_figures(predicted: Any, gold: Any) -> dict[str, Any]:
    # As many classes as the highest number says, wherever it stands.
    count = max(*predicted, *gold) + 1
    # Logits of what was said, so that the same function serves.
    return classification.class_figures(
        np.eye(count)[predicted], np.asarray(gold), [str(i) for i in range(count)]
    )


def _number_figures(predicted: Any, gold: Any) -> dict[str, Any]:
    return classification.number_figures(np.asarray(predicted), np.asarray(gold))


class ClassFigures(Own):
    """Accuracy, macro- and micro-F1 and Matthews correlation of classes."""

    features = Features({"predictions": Value("int64"), "references": Value("int64")})
    figures = staticmethod(_class_figures)


class NumberFigures(Own):
    """Correlations and mean errors of numbers."""

    features = Features({"predictions": Value("float64"), "references": Value("float64")})
    figures = staticmethod(_number_figures)


class EntityFigures(Own):
    """Precision, recall and F1 of whole entities in strict IOB2."""

    features = Features({"predictions": List(Value("string")), "references": List(Value("string"))})
    figures = staticmethod(classification.entity_figures)


class AnswerFigures(Own):
    """Exact match and F1 of extracted answers, each against the best of its references (SQuAD)."""

    features = Features({"predictions": Value("string"), "references": List(Value("string"))})
    figures = staticmethod(spans.answer_figures)


class TextFigures(Own):
    """ROUGE, BLEU, chrF and exact match of generated texts against one reference each."""

    features = Features({"predictions": Value("string"), "references": Value("string")})
    figures = staticmethod(texts.text_figures)


def _word_errors(predicted: Any, gold: Any) -> dict[str, Any]:
    return {"word_error_rate": texts.word_error_rate(predicted, gold)}


class WordErrors(Own):
    """Words to change for each word of reference; of phonemes, the phoneme error rate."""

    features = Features({"predictions": Value("string"), "references": Value("string")})
    figures = staticmethod(_word_errors)


OWN: dict[str, type[Own]] = {
    "class_figures": ClassFigures, "number_figures": NumberFigures, "entity_figures": EntityFigures,
    "answer_figures": AnswerFigures, "text_figures": TextFigures,
    "word_error_rate": WordErrors,
}  # fmt: skip
