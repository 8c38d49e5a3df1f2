"""Sums of each row (see `loss.nats_and_hits`) → perplexity and accuracy. Knows arrays; knows no model and no
Trainer.

Evaluation keeps a few numbers a row instead of logits [rows, time, vocabulary], and every figure is exact: a
quotient of sums over all tokens, whatever the batches, the padding and the number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune.loss import IGNORED

Array = np.ndarray


def token_likelihood(
    sums: Array, gold: Array, names: Sequence[str] | None = None, *, byte_count: int | None = None
) -> dict[str, Any]:
    """Figures of a language model over all labelled tokens.

    Args:
        sums: nats and hits of each row, [rows, 2].
        gold: labels with -100 where there is none, [rows, time].
        byte_count: UTF-8 bytes of text in the labelled tokens.

    Returns:
        perplexity: exp(nats / tokens); token_accuracy; commonest: the accuracy of always saying the commonest
            token; tokens;
        with `byte_count` also bits_per_byte, which can be compared between tokenizers.
    """
    labels = gold[gold != IGNORED]
    counted, most = len(labels), int(np.bincount(labels).max(initial=0))
    # Float64: a corpus has millions of tokens. With `max`, no label at all gives 0.
    nats, hits = sums.sum(axis=0, dtype=np.float64) / max(counted, 1)
    figures = {
        "perplexity": _exp(nats),
        "token_accuracy": float(hits),
        "commonest": most / max(counted, 1),
        "tokens": counted,
    }
    # Per byte and in bits, so that tokenizers of different lengths can be compared.
    return figures | (
        {"bits_per_byte": float(nats * counted / math.log(2) / byte_count)} if byte_count else {}
    )


def masked_likelihood(sums: Array, gold: Array, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Figures of a masked language model: `token_likelihood` under the name that says of which tokens, those
    to predict.
    """
    figures = token_likelihood(sums, gold)
    return {"masked_accuracy": figures.pop("token_accuracy"), **figures}


def _exp(value: float) -> float:
    # Beyond 709 `exp` overflows, and raises in Python.
    return math.exp(value) if value < 700 else math.inf


def pair_likelihood(sums: Array, gold: Array, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Figures of masked tokens (see `masked_likelihood`) and `pair_accuracy`; sums [rows, 3], gold [rows, 1 +
    time].
    """
    # The third sum is of the pair, and the first label its class.
    return masked_likelihood(sums[:, :2], gold[:, 1:]) | {"pair_accuracy": float(sums[:, 2].mean())}
