"""Labels ↔ words, and scores of words → scores of labels. Knows arrays and words; knows no models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.special import logsumexp

from finetune.errors import InputError

TOKENS: dict[str, Callable[[np.ndarray], float]] = {  # log-probabilities of a word's tokens → one number
    "sum": np.sum,  # the word's own log-probability, exactly
    "mean": np.mean,  # for each token, so that long words lose nothing
    "max": np.max,
    "first": lambda values: values[0],
}
WORDS: dict[
    str, Callable[[np.ndarray], np.ndarray]
] = {  # log-probabilities [examples, words] of a label's words → [examples]
    # the mean of the words' probabilities: labels with many words win nothing by their number
    "mean": lambda scores: logsumexp(scores, axis=1) - np.log(scores.shape[1]),
    "sum": lambda scores: logsumexp(scores, axis=1),
    "max": lambda scores: scores.max(axis=1),
    "first": lambda scores: scores[:, 0],
}


@dataclass(frozen=True)
class Verbalizer:
    """What each label is called.

    Attributes:
        name: how it is called: file/entry.
        words: for each label, in the order of the labels, the words that say it.
        tokens: how a word's tokens become its score: sum (exact), mean, max, first.
        combine: how a label's words become its score: mean (of their probabilities), sum, max, first.
    """

    name: str
    labels: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    tokens: str = "sum"
    combine: str = "mean"

    def __post_init__(self) -> None:
        for option, given, known in (("tokens", self.tokens, TOKENS), ("combine", self.combine, WORDS)):
            if given not in known:
                raise InputError(
                    f"{self.name}: unknown {option} '{given}'; wanted one of: {', '.join(known)}"
                )
        if len(self.labels) < 2:
            raise InputError(f"{self.name}: {len(self.labels)} labels; wanted two or more")
        taken: dict[str, str] = {}
        for label, words in zip(self.labels, self.words, strict=True):
            if not words or not all(isinstance(word, str) and word.strip() for word in words):
                raise InputError(
                    f"{self.name}: label '{label}' has {list(words)!r}; wanted one or more words for it"
                )
            for word in words:
                # white space around it doesn't make another word
                other = taken.setdefault(word.strip(), label)
                if other != label:
                    raise InputError(
                        f"{self.name}: labels '{other}' and '{label}' have the same word '{word}'; name "
                        "another"
                    )

    @property
    def flat(self) -> tuple[str, ...]:
        """All words, label by label."""
        return tuple(word for words in self.words for word in words)

    def answer(self, label: str | int) -> str:
        """The word that stands for a label in an example.

        Raises:
            InputError: no such label.
        """
        if isinstance(label, str) and label not in self.labels:
            raise InputError(f"{self.name}: no label '{label}'; wanted one of: {', '.join(self.labels)}")
        # the first word is the one that examples show
        return self.words[self.labels.index(label) if isinstance(label, str) else label][0]

    def word_scores(self, scored: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
        """Log-probabilities of tokens, [examples][words] of [tokens] → scores of words, float64 [examples,
        words]."""
        reduce = TOKENS[self.tokens]
        # in float64: sums of many tokens differ by little
        values = [[float(reduce(tokens.astype(np.float64))) for tokens in row] for row in scored]
        # no row leaves a table of the right width
        return np.array(values, dtype=np.float64).reshape(len(scored), len(self.flat))

    def label_scores(self, word_scores: np.ndarray) -> np.ndarray:
        """Scores of words [examples, words], in the order of `flat` → scores of labels [examples, labels]."""
        combine = WORDS[self.combine]
        edges = np.cumsum([0, *map(len, self.words)])
        return np.stack([combine(word_scores[:, a:b]) for a, b in pairwise(edges)], axis=1)


def make_verbalizer(
    name: str, labels: Sequence[str], words: Mapping[str, object] | str, **options: str
) -> Verbalizer:
    """A verbalizer from what a file says: `label: word` or `label: [word, …]`, or a pattern for the labels'
    own names.

    Args:
        words: "{name}" stands for a label's name with spaces for underscores.

    Raises:
        InputError: a label that isn't there, or one without a word.
    """
    given: dict[str, tuple[str, ...]]
    if isinstance(words, str):
        given = {label: (words.replace("{name}", label.replace("_", " ")),) for label in labels}
    else:
        strange = [str(label) for label in words if str(label) not in labels]
        if strange:
            raise InputError(
                f"{name}: no label '{strange[0]}'; the data has {', '.join(labels[:12])}. Rename it in "
                "the entry"
            )
        # YAML may have given numbers or nothing
        listed = {str(k): v if isinstance(v, (list, tuple)) else [v] for k, v in words.items()}
        given = {k: tuple("" if w is None else str(w) for w in v) for k, v in listed.items()}
        missing = [label for label in labels if label not in given]
        if missing:
            raise InputError(f"{name}: no word for the label '{missing[0]}'; name one in the entry")
    return Verbalizer(name, tuple(labels), tuple(given[label] for label in labels), **options)


def corrected(word_scores: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Scores of words [examples, words] less how likely each is anyway (Hu et al. 2022, eq. 4); prior: scores
    [inputs, words]."""
    return word_scores - (logsumexp(prior, axis=0) - np.log(len(prior)))


def probabilities(scores: np.ndarray) -> np.ndarray:
    """Scores of labels [examples, labels] → probabilities that add up to one."""
    return np.exp(scores - logsumexp(scores, axis=1, keepdims=True))
