"""Answers to rows → what is summed over them, and the figure of the sums. Knows arrays and strings; knows no
models.

A figure that follows from sums over rows (a share, F1, BLEU) is resampled by one matrix product: `drawn`
[samples, rows] says how often each row is in each bootstrap sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Any

import evaluate
import numpy as np
import sacrebleu
from rouge_score import rouge_scorer
from rouge_score.tokenizers import DefaultTokenizer

from finetune.errors import InputError
from finetune.metrics import bootstrap, spans, texts
from finetune.metrics.measure import Measure, mean_of
from prompts.templates.filters import Step, normalised

Array = np.ndarray
Counts = Callable[[Sequence[str], Sequence[Sequence[str]]], Array]
RESAMPLED = 200  # times that a metric of the evaluate library is computed anew, for its interval
# signs as people and models type them → those that comparisons know
TYPED = str.maketrans({**dict.fromkeys("“”„«»", '"'), **dict.fromkeys("‘’", "'"), "\u2212": "-"})
HUNDRED = ("bleu", "chrf")  # from 0 to 100


def of_labels(predicted: Array, gold: Array, classes: int) -> dict[str, Measure]:
    # -1 has a row of zeros: it is no class's
    """Accuracy, macro-F1 and Matthews' correlation; predicted, gold [rows], -1 where no label was said."""
    said, wanted = _one_hot(predicted, classes), _one_hot(gold, classes)
    right = (predicted == gold).astype(np.float64)
    # [rows, 3 × classes], which all figures are sums of
    both = np.concatenate([wanted * right[:, None], said, wanted], axis=1)

    def macro_f1(sums: Array) -> Array:
        hits, there = sums[:, :classes], sums[:, classes : 2 * classes] + sums[:, 2 * classes :]
        # a class that is neither said nor there counts as 0
        return np.divide(2 * hits, there, out=np.zeros_like(hits), where=there > 0).mean(axis=1)

    def matthews(sums: Array) -> Array:
        # of several classes: Gorodkin 2004, by the numbers said and there of each
        hits, p, t = sums[:, :classes].sum(1), sums[:, classes : 2 * classes], sums[:, 2 * classes :]
        rows = t.sum(1)
        unsaid = (rows - p.sum(1)) ** 2  # an answer that names no label is a class of its own
        spread = (rows**2 - (p**2).sum(1) - unsaid) * (rows**2 - (t**2).sum(1))
        covariance = hits * rows - (p * t).sum(1)
        # rounding may leave it just below 0
        return np.divide(
            covariance, np.sqrt(np.maximum(spread, 0)), out=np.zeros(len(rows)), where=spread > 0
        )

    return {
        "accuracy": mean_of(right),
        "macro_f1": Measure(both, macro_f1),
        "matthews": Measure(both, matthews),
    }


def _one_hot(numbers: Array, classes: int) -> Array:
    return (numbers[:, None] == np.arange(classes)).astype(np.float64)


def _best(score: Callable[[str, str], float]) -> Counts:
    """The best score against any of a row's references."""
    return lambda said, wanted: np.array(
        # a row is right by whichever reference it comes nearest
        [max(score(one, other) for other in references) for one, references in zip(said, wanted, strict=True)]
    )


def same_answer(said: str, wanted: str) -> float:
    """Whether two short answers say the same: by the last number where a number is wanted, else but for case,
    punctuation and articles."""
    said, wanted = said.translate(TYPED), wanted.translate(TYPED)
    # a sign and thousands' commas are no part of the number
    plain = wanted.strip().replace(",", "").lstrip("-$")
    if plain.replace(".", "", 1).isdigit():
        return float(texts.ends_in_same_number(said, wanted))
    # without its article nothing is left of it, and an empty answer would be right
    if wanted.strip() and not spans.normalised_answer(wanted):
        return float(said.strip().rstrip(".").casefold() == wanted.strip().rstrip(".").casefold())
    return spans.exact_match(said, wanted)


# made once: it loads a stemmer
@cache
def _rouge_scorer() -> rouge_scorer.RougeScorer:
    return rouge_scorer.RougeScorer(
        ("rouge1", "rouge2", "rougeL"), tokenizer=DefaultTokenizer(use_stemmer=True)
    )


# all three figures ask the same pairs
@lru_cache(maxsize=20_000)
def _rouges(said: str, wanted: str) -> dict[str, float]:
    """F1 of all three, once for each pair of texts."""
    return {name: score.fmeasure for name, score in _rouge_scorer().score(wanted, said).items()}


def _rouge(name: str) -> Callable[[str, str], float]:
    return lambda said, wanted: _rouges(said, wanted)[name]


MEANS: dict[str, Callable[[str, str], float]] = {
    "exact_match": lambda said, wanted: float(said == wanted),
    "token_f1": spans.word_f1,
    "same_number": lambda said, wanted: float(texts.ends_in_same_number(said, wanted)),
    "same_answer": same_answer,
    "rougeL": _rouge("rougeL"),
    "rouge1": _rouge("rouge1"),
    "rouge2": _rouge("rouge2"),
}


def of_corpus(metric: Any, said: Sequence[str], wanted: Sequence[Sequence[str]]) -> Measure:
    """BLEU or chrF as sacrebleu has it: its sums of each row, and its score of their sum (Post 2018)."""
    most = max(len(references) for references in wanted)
    # sacrebleu wants as many references for every row; one that is there twice changes nothing
    streams = [[row[min(i, len(row) - 1)] for row in wanted] for i in range(most)]
    # sacrebleu's own sums, which it adds up over rows before it scores
    counts = np.array(metric._extract_corpus_statistics(list(said), streams), dtype=np.float64)
    return Measure(
        counts, lambda sums: np.array([metric._compute_score_from_stats(list(line)).score for line in sums])
    )


def of_texts(
    said: Sequence[str], wanted: Sequence[Sequence[str]], names: Sequence[str], steps: Sequence[Step] = ()
) -> dict[str, Measure]:
    """Figures of written answers, each against the best of its references.

    Args:
        steps: what is done to both sides before `exact_match` compares them.
    """
    found = {}
    for name in names:
        if name in MEANS:
            sides: tuple[Sequence[str], Sequence[Sequence[str]]] = (said, wanted)
            # this figure alone compares letters, after what the entry says of case and signs
            if name == "exact_match":
                sides = (
                    [normalised(steps, t) for t in said],
                    [[normalised(steps, t) for t in row] for row in wanted],
                )
            found[name] = mean_of(_best(MEANS[name])(*sides))
        elif name in HUNDRED:
            found[name] = of_corpus(sacrebleu.BLEU() if name == "bleu" else sacrebleu.CHRF(), said, wanted)
    return found


@dataclass(frozen=True)
class Recomputed(Measure):
    """A metric of the evaluate library, which is computed anew for each sample; `counts` are the rows'
    numbers."""

    said: Sequence[str] = ()
    wanted: Sequence[Sequence[str]] = ()
    metric: Any = None
    key: str = ""

    def _compute(self, rows: Array) -> float:
        # the same row may stand in a sample several times
        pairs = [(self.said[i], self.wanted[i]) for i in rows]
        result = _computed(self.metric, [said for said, _ in pairs], [wanted for _, wanted in pairs])
        return float(np.mean(result[self.key]))

    @cached_property
    def value(self) -> float:
        return self._compute(self.counts[:, 0].astype(int))

    def values(self, drawn: Array) -> Array:
        numbers = self.counts[:, 0].astype(int)
        # [samples, rows] of how often, as indices; fewer samples, for each is computed anew
        return np.array([self._compute(np.repeat(numbers, times)) for times in drawn[:RESAMPLED].astype(int)])

    def of(self, rows: Array) -> Measure:
        return Recomputed(
            self.counts[rows], self.figure, False, self.said, self.wanted, self.metric, self.key
        )


def _computed(metric: Any, said: list[str], wanted: list[Sequence[str]]) -> Mapping[str, Any]:
    """Several references where the metric takes them, else each row's first."""
    # metrics say by their errors alone whether they take several
    try:
        return metric.compute(predictions=said, references=[list(row) for row in wanted])
    except (ValueError, TypeError):
        return metric.compute(predictions=said, references=[row[0] for row in wanted])


def of_evaluate(name: str, said: Sequence[str], wanted: Sequence[Sequence[str]]) -> Measure:
    """`evaluate:NAME` or `evaluate:NAME/KEY`: that key of its results, else the one of its name, else the
    first number.

    Raises:
        InputError: no such metric here, one that can't take texts, or no number in what it gives.
    """
    # a name may hold slashes, so that the key stands behind an @
    path, _, key = name.removeprefix("evaluate:").partition("@")
    try:
        metric = evaluate.load(path)
        result = _computed(metric, list(said), list(wanted))
    except Exception as error:  # whatever the metric's own script raises
        raise InputError(
            f"evaluate's metric '{path}' can't be had: {type(error).__name__}: {str(error)[:200]}. Set "
            "--metric"
        ) from error
    # a list of numbers by row is a mean
    numbers = [k for k, v in result.items() if isinstance(v, (int, float, list)) and np.isscalar(np.mean(v))]
    chosen = key or (metric.name if metric.name in numbers else next(iter(numbers), ""))
    if chosen not in numbers:
        raise InputError(
            f"evaluate's metric '{path}' gives {', '.join(result)}; wanted a number. Set --metric {name}@KEY"
        )
    # the row's number is all that is summed: figures are computed from the texts
    numbered = np.arange(len(said), dtype=np.float64)[:, None]
    return Recomputed(numbered, bootstrap.mean_figure, False, said, wanted, metric, chosen)
