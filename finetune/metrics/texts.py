"""Texts and references → numbers: ROUGE, BLEU, chrF, length. Knows strings; knows no models, tokenizers and
files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import sacrebleu
from rouge_score import rouge_scorer
from rouge_score.tokenizers import DefaultTokenizer

MARK = "####"
NUMBER = re.compile(r"(?:(?<![\w)])-)?\d[\d,]*(?:\.\d+)?")  # a minus, but no dash between two numbers
ROUGE = ("rouge1", "rouge2", "rougeL")


@cache
# Made once: a stemmer and tokenizers take a while.
def _measures() -> tuple[sacrebleu.BLEU, sacrebleu.CHRF, rouge_scorer.RougeScorer]:
    return (
        sacrebleu.BLEU(),
        sacrebleu.CHRF(),
        rouge_scorer.RougeScorer(ROUGE, tokenizer=DefaultTokenizer(use_stemmer=True)),
    )


def text_figures(predicted: Sequence[str], gold: Sequence[str]) -> dict[str, float]:
    """Figures of generated texts against one reference each.

    Returns:
        rouge1, rouge2, rougeL: mean F1 over rows, 0 to 1, with Porter's stemmer (Lin 2004).
        bleu, chrf: of the whole corpus, 0 to 100 (Post 2018; Popović 2015); `signatures` names their
            settings.
        length_ratio: words predicted for each word of reference.
        exact_match: share of texts that equal their reference but for space at the ends.

    Raises:
        ValueError: unequal numbers of texts, or none.
    """
    if len(predicted) != len(gold) or not gold:
        raise ValueError(
            f"Got {len(predicted)} texts and {len(gold)} references; wanted as many of both, and one at least"
        )
    bleu, chrf, rouge = _measures()
    # (reference, text): ROUGE's precision and recall go by the order.
    scores = [rouge.score(reference, text) for text, reference in zip(predicted, gold, strict=True)]
    return {
        **{name: sum(score[name].fmeasure for score in scores) / len(scores) for name in ROUGE},
        "bleu": bleu.corpus_score(list(predicted), [list(gold)]).score,
        "chrf": chrf.corpus_score(list(predicted), [list(gold)]).score,
        "length_ratio": sum(len(text.split()) for text in predicted)
        / max(sum(len(text.split()) for text in gold), 1),
        "exact_match": sum(
            text.strip() == reference.strip() for text, reference in zip(predicted, gold, strict=True)
        )
        / len(gold),
    }


def rouge_l(predicted: str, gold: str) -> float:
    """ROUGE-L of one text, F1, as in `text_figures`."""
    return float(_measures()[2].score(gold, predicted)["rougeL"].fmeasure)


def signatures() -> dict[str, Any]:
    """What BLEU and chrF were computed with, in sacrebleu's notation, so that two figures can be compared."""
    text_figures(["a"], ["a"])  # a signature says how many references there were and needs one scoring
    bleu, chrf, _ = _measures()
    return {"bleu_signature": str(bleu.get_signature()), "chrf_signature": str(chrf.get_signature())}


def ends_in_same_number(predicted: str, gold: str) -> bool:
    """Whether a text ends in the number that its reference ends in; never where the reference has none."""
    wanted = final_number(gold)
    return wanted is not None and final_number(predicted) == wanted


def final_number(text: str) -> float | None:
    """The number behind `####`, else the last number of a text; None where there is none (Cobbe et al. 2021
    mark answers so).
    """
    # The first number behind the mark; without it the last, which ends a solution mostly.
    marked = text.partition(MARK)[2]
    numbers = NUMBER.findall(marked) if marked else NUMBER.findall(text)[-1:]
    return float(numbers[0].replace(",", "")) if numbers else None


def word_error_rate(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """Words to insert, delete or replace for each word of reference, over all texts; above 1 where texts are
    long.

    Of phonemes with spaces between them it is the phoneme error rate.

    Raises:
        ValueError: unequal numbers of texts, or no word of reference.
    """
    pairs = [(one.split(), other.split()) for one, other in zip(predicted, gold, strict=True)]
    # Over all texts: a mean of rates would give a short reference as much weight as a long one.
    words = sum(len(wanted) for _, wanted in pairs)
    if not words:
        raise ValueError("No reference has a word; wanted one at least")
    return sum(edit_distance(said, wanted) for said, wanted in pairs) / words


def edit_distance(one: Sequence[str], other: Sequence[str]) -> int:
    """Fewest insertions, deletions and replacements that make one sequence the other (Levenshtein 1966)."""
    row = list(range(len(other) + 1))
    # One row of the table at a time; `before` is what stood diagonally above.
    for place, unit in enumerate(one, start=1):
        before, row[0] = row[0], place
        for column, wanted in enumerate(other, start=1):
            before, row[column] = (
                row[column],
                min(row[column] + 1, row[column - 1] + 1, before + (unit != wanted)),
            )
    return row[-1]
