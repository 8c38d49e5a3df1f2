"""Answers and references → numbers, by the rules of SQuAD's own script. Knows strings; knows no models and no
files.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

PUNCTUATION = frozenset(string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised_answer(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces (Rajpurkar et al. 2016, section 6.1)."""
    # SQuAD's order: case, punctuation, articles, blanks; another one gives other figures.
    bare = "".join(sign for sign in text.lower() if sign not in PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", bare).split())


def exact_match(predicted: str, gold: str) -> float:
    """1 where both say the same after normalising, else 0."""
    return float(normalised_answer(predicted) == normalised_answer(gold))


def word_f1(predicted: str, gold: str) -> float:
    """Overlap of two answers as bags of words; where either is empty, 1 for two empty ones, else 0 (Rajpurkar
    et al. 2018).
    """
    said, wanted = normalised_answer(predicted).split(), normalised_answer(gold).split()
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))


def answer_figures(predicted: Sequence[str], gold: Sequence[Sequence[str]]) -> dict[str, float]:
    """Figures of extracted answers, each against the best of its references; a question without any wants the
    answer "".

    Returns:
        exact_match, f1: means over questions, 0 to 1; where some questions have no answer, also the means
            over those
        that have one (`f1_answerable`) and over those that have none (`accuracy_unanswerable`).
    """
    # SQuAD leaves out references that are empty after normalising, and counts none as "".
    references = [[text for text in texts if normalised_answer(text)] or [""] for texts in gold]
    pairs = list(zip(predicted, references, strict=True))
    exact = [max(exact_match(said, text) for text in texts) for said, texts in pairs]
    overlap = [max(word_f1(said, text) for text in texts) for said, texts in pairs]
    figures = {"exact_match": _mean(exact), "f1": _mean(overlap)}
    empty = [texts == [""] for texts in references]
    if any(empty):
        figures["accuracy_unanswerable"] = _mean(
            [score for score, none in zip(exact, empty, strict=True) if none]
        )
        figures["f1_answerable"] = _mean(
            [score for score, none in zip(overlap, empty, strict=True) if not none]
        )
    return figures


def best_threshold(
    margins: Sequence[float], f1_answered: Sequence[float], answerable: Sequence[bool]
) -> tuple[float, float]:
    """The no-answer threshold with the highest mean F1: (threshold, that F1). Choose it on rows that aren't
    reported on.

    Args:
        margins: score of no answer minus score of the best answer; a question is left unanswered above the
            threshold.
        f1_answered: F1 of each best answer, were it given.
        answerable: whether a question has an answer.
    """
    count = len(margins)
    order = sorted(range(count), key=lambda index: margins[index])
    # From below: at first every question is left unanswered, and each step answers one more.
    total = float(sum(not has for has in answerable))  # everything left unanswered
    best, threshold = total, (margins[order[0]] - 1.0 if count else 0.0)
    for place, index in enumerate(order):
        total += f1_answered[index] if answerable[index] else -1
        tied = place + 1 < count and margins[order[place + 1]] == margins[index]
        # Equal margins are answered together or not at all.
        if total > best and not tied:
            best, threshold = total, margins[index]
    return threshold, best / max(count, 1)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
