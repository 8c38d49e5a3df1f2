"""What needs no language model: the figures that a tuned one has to beat. Knows texts and classes; knows no
models of ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from finetune.metrics.bootstrap import interval

TOO_MANY = 20_000  # rows; a bag of words learns little more from further ones and takes its time


def majority(gold: Sequence[str], train_labels: Sequence[str]) -> dict[str, object]:
    """Accuracy of always saying the commonest class of the training rows, with its 95 % interval."""
    commonest = Counter(train_labels).most_common(1)[0][0]
    right = np.array([label == commonest for label in gold])
    return {"name": f"always “{commonest}”", "accuracy": float(right.mean()), "interval": interval(right)}


def bag_of_words(
    train_texts: Sequence[str], train_labels: Sequence[str], texts: Sequence[str], gold: Sequence[str]
) -> dict[str, object] | None:
    """Accuracy of logistic regression over TF-IDF of words and pairs of words, with its 95 % interval.

    Both steps are scikit-learn's with its defaults. None where the training rows hold one class, or no word
    twice.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    train_texts, train_labels = train_texts[:TOO_MANY], train_labels[:TOO_MANY]
    if len(set(train_labels)) < 2:
        return None
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(max_iter=1000, C=10)
    )
    try:
        model.fit(train_texts, train_labels)
    except ValueError:  # scikit-learn's word for texts without a single word of two letters
        return None
    right = np.array([said == label for said, label in zip(model.predict(texts), gold, strict=True)])
    return {"name": "bag of words", "accuracy": float(right.mean()), "interval": interval(right)}
