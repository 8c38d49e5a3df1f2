"""What needs no model of ours: the figures that a tuned one has to beat. Knows texts, vectors and classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune.metrics.bootstrap import interval

TOO_MANY = 20_000  # rows; a bag of words learns little more from further ones and takes its time


def majority(gold: Sequence[str], train_labels: Sequence[str]) -> dict[str, object]:
    """Accuracy of always saying the commonest class of the training rows, with its 95 % interval."""
    # Of the training rows: the commonest class of the rows that are scored would be known to nobody.
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
    train_texts, train_labels = train_texts[:TOO_MANY], train_labels[:TOO_MANY]
    if len(set(train_labels)) < 2:
        return None
    try:
        model = fitted_bag_of_words(train_texts, train_labels)
    except ValueError:  # scikit-learn's word for texts without a single word of two letters
        return None
    right = np.array([said == label for said, label in zip(model.predict(texts), gold, strict=True)])
    return {"name": "bag of words", "accuracy": float(right.mean()), "interval": interval(right)}


def composition(
    train_texts: Sequence[str], train_labels: Sequence[str], texts: Sequence[str], gold: Sequence[str]
) -> dict[str, object] | None:
    """Accuracy of logistic regression over the share of each letter, with its 95 % interval: for sequences,
    which have no words."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.preprocessing import Normalizer

    letters = CountVectorizer(analyzer="char", lowercase=False).fit(train_texts)
    learnt, asked = (
        Normalizer("l1").fit_transform(letters.transform(part).astype(float)).toarray()
        for part in (train_texts, texts)
    )
    return linear_classes("composition + linear", (learnt, train_labels), (asked, gold))


def nearest_neighbours(
    train_vectors: np.ndarray, train_labels: Sequence[str], vectors: np.ndarray, gold: Sequence[str]
) -> dict[str, object] | None:
    """Accuracy of the commonest class among the three nearest training rows, with its 95 % interval.

    Args:
        train_vectors, vectors: [rows, width].
    """
    from sklearn.neighbors import KNeighborsClassifier

    # Fewer where there are fewer training rows: scikit-learn refuses more neighbours than rows.
    model = KNeighborsClassifier(n_neighbors=min(3, len(train_labels)))
    return _scored("3 nearest neighbours", model, (train_vectors, train_labels), (vectors, gold))


def support_vectors(
    train_vectors: np.ndarray, train_labels: Sequence[str], vectors: np.ndarray, gold: Sequence[str]
) -> dict[str, object] | None:
    """Accuracy of a support vector machine with Gaussian kernels and C=10, with its 95 % interval."""
    from sklearn.svm import SVC

    return _scored("support vector machine", SVC(C=10), (train_vectors, train_labels), (vectors, gold))


def linear_classes(
    name: str, train: tuple[np.ndarray, Sequence[str]], asked: tuple[np.ndarray, Sequence[str]]
) -> dict[str, object] | None:
    """Accuracy of logistic regression on standardised vectors [rows, width], with its 95 % interval."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # Standardised, or features of large scale would take all of the regression's regularisation.
    return _scored(name, make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)), train, asked)


def _scored(
    name: str,
    model: Any,
    train: tuple[np.ndarray, Sequence[str]],
    asked: tuple[np.ndarray, Sequence[str]],
) -> dict[str, object] | None:
    """A model of scikit-learn, learnt and scored; None where the training rows hold one class."""
    vectors, labels = train[0][:TOO_MANY], train[1][:TOO_MANY]
    # A class that stands alone is no choice, and most of scikit-learn's models refuse it.
    if len(set(labels)) < 2:
        return None
    said = model.fit(vectors, labels).predict(asked[0])
    right = np.array([one == wanted for one, wanted in zip(said, asked[1], strict=True)])
    return {"name": name, "accuracy": float(right.mean()), "interval": interval(right)}


def fitted_bag_of_words(texts: Sequence[str], labels: Sequence[Any]) -> Any:
    """scikit-learn's pipeline, trained: `tfidfvectorizer` of words and pairs of words, `logisticregression`.

    Raises:
        ValueError: one class alone, or no word of two letters or more.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    # The default of 100 steps may end before it has converged.
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(max_iter=1000, C=10)
    )
    return model.fit(texts, labels)
