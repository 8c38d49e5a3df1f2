"""A model and a secret, or one's rows and others of the same source → was it trained on them? Knows models
and secrets; marks nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune.artefacts.hashes import hash_processor
from finetune.data.sources import load_rows, read_splits
from finetune.errors import InputError
from finetune.provenance import asking
from finetune.provenance.canaries import rank_test
from finetune.provenance.dataset_inference import infer, measured_texts
from finetune.provenance.marking import ROWS, SECRET, text_column, texts_of
from finetune.provenance.options import CANARIES, TraceArguments, TraceRowsArguments
from finetune.provenance.watermark import new_grams, radioactivity, read_secret, watermark_of


def look_for(trace: TraceArguments, data: TraceRowsArguments) -> dict[str, Any]:
    """What the test found: `p`, one-sided and uniform for a model that never saw the rows, and what it
    counted.

    Raises:
        InputError: no model, no secret, texts that are too few, or a model whose tokens are others.
    """
    if trace.model is None:
        raise InputError("No model to test; set --model to a name, a folder or a run")
    if trace.trace is None:
        return _inferred(trace, data)
    # the folder holds the rows that are asked for; others beside it would be read by nobody
    if trace.held_out is not None or data != TraceRowsArguments():
        raise InputError(
            "--trace brings the rows that are asked for; --dataset_name and --held_out are for rows that "
            "carry no mark. Leave them out, or --trace"
        )
    secret = read_secret(trace.trace, SECRET)
    if secret["how"] == CANARIES:
        return _canaries(trace, secret)
    return _radioactive(trace, secret)


def _radioactive(trace: TraceArguments, secret: dict[str, Any]) -> dict[str, Any]:
    """Watermarked texts are read, and the tokens that the model would write are held to the secret."""
    processor, network = asking.suspect(str(trace.model))
    mark = watermark_of(secret)
    # the mark is on ids: another vocabulary has other ids
    if hash_processor(processor)["tokenizer"] != mark.tokenizer:
        raise InputError(
            f"{trace.model} has another tokenizer than {secret['writer']}, which wrote the marked texts, so "
            "that its tokens know nothing of the secret. Mark by a --writer of its kind, or by --how canaries"
        )
    texts = read_splits(str(Path(str(trace.trace)) / ROWS))["train"][secret["column"]][:]
    # over all texts: a window that comes twice would count its coins twice
    seen: set[tuple[int, ...]] = set()
    grams = []
    for _, ids, likeliest, _ in asking.read_texts(
        processor, network, texts, trace.max_length, trace.batch_size
    ):
        # what the model would write, not what stands there: the text itself holds the mark in any case
        grams += new_grams(ids, likeliest, mark.width, seen)
    # a suspect may have more logits than the writer, for which the secret has no coin
    found = radioactivity(mark, [gram for gram in grams if max(gram) < mark.vocabulary])
    said = (
        f"{found['hits']} of {found['coins']} coins of new windows fall on the secret's side: "
        f"{found['share']:.4f}, where {found['chance']:.4f} is expected"
    )
    return found | {"test": f"radioactivity of the watermark '{mark.scheme}'", "said": said}


def _canaries(trace: TraceArguments, secret: dict[str, Any]) -> dict[str, Any]:
    """Planted rows are told from the candidates that they were drawn from by what they cost."""
    canaries = secret["canaries"]
    losses = (
        _label_costs(trace, canaries) if canaries[0]["labels"] is not None else _text_costs(trace, canaries)
    )
    found = rank_test(losses)
    said = (
        f"{found['canaries']} canaries stand at {found['rank']:.3f} of the way from the cheapest to the "
        "dearest candidate on average, where 0.500 is expected"
    )
    return found | {"test": "ranks of canaries", "said": said}


def _text_costs(trace: TraceArguments, canaries: Sequence[dict[str, Any]]) -> np.ndarray:
    """Mean nats a token of each candidate, [canaries, candidates]."""
    texts = [text for one in canaries for text in one["texts"]]
    costs = np.zeros(len(texts))
    processor, network = asking.suspect(str(trace.model))
    for place, _, _, nats in asking.read_texts(processor, network, texts, trace.max_length, trace.batch_size):
        # a mean, as candidates differ in their number of tokens
        costs[place] = nats.mean()
    return costs.reshape(len(canaries), -1)


def _label_costs(trace: TraceArguments, canaries: Sequence[dict[str, Any]]) -> np.ndarray:
    """Nats of each candidate's label, [canaries, labels]."""
    classifier = asking.suspected_classifier(str(trace.model))
    strange = sorted({label for one in canaries for label in one["labels"]} - set(classifier.labels))
    if strange:
        raise InputError(
            f"{trace.model} tells {', '.join(classifier.labels)} apart, and the canaries have the label "
            f"'{strange[0]}'; wanted a model of the same labels"
        )
    # with labels all candidates are one text: it is read once
    chances = classifier.logits([one["texts"][0] for one in canaries], trace.batch_size).log_softmax(-1)
    places = [[classifier.labels.index(label) for label in one["labels"]] for one in canaries]
    return -np.take_along_axis(chances.double().numpy(), np.array(places), axis=1)


def _inferred(trace: TraceArguments, data: TraceRowsArguments) -> dict[str, Any]:
    """One's own rows against rows of the same source that nobody has trained on."""
    if trace.held_out is None:
        raise InputError(
            "Set --trace to the folder of `trace mark`; or, for rows without a mark, --dataset_name to them "
            "and --held_out to rows of the same source that nobody can have trained on"
        )
    rows, others = load_rows(data).train, read_splits(trace.held_out)
    assert rows is not None
    column = text_column(rows, data)
    held = others["test"] if "test" in others else next(iter(others.values()))
    if column not in held.column_names:
        raise InputError(f"No column '{column}' in {trace.held_out}; set --text_column, or rename it")
    # each once: a text in both halves, of which one is learnt from, would tell itself apart
    own, unseen = (
        list(dict.fromkeys(texts_of(part, column, name)))
        for part, name in ((rows, data.name), (held, trace.held_out))
    )
    # a text in both would be a member among the others
    both = set(own) & set(unseen)
    if both:
        raise InputError(
            f"{len(both)} texts stand in both {data.name} and {trace.held_out}; held-out rows are others, "
            "or the test says nothing"
        )
    if data.max_train_rows is not None:
        # behind the check: texts beyond the limit may not overlap either
        own, unseen = own[: data.max_train_rows], unseen[: data.max_train_rows]
    processor, network = asking.suspect(str(trace.model))
    tables = []
    for texts in (own, unseen):
        read = asking.read_texts(processor, network, texts, trace.max_length, trace.batch_size)
        tables.append(measured_texts([(nats, texts[place]) for place, _, _, nats in read]))
    found = infer(*tables)
    said = (
        f"{found['texts']} own and {found['held_out']} held-out texts: one of each half that was kept for "
        f"the test is told apart in {found['auc']:.3f} of pairs, where 0.500 is expected"
    )
    return found | {"test": "data-set inference", "said": said}
