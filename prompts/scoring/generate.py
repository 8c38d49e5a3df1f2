"""Prompts → texts that a model writes, greedily. Knows models' own generation; knows no labels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch

from finetune.errors import InputError
from prompts.scoring.prefix_tree import batches
from prompts.scoring.score import Request, Scorer
from prompts.scoring.tokens import beginning
from prompts.templates.entries import Ending


def generate(scorer: Scorer, requests: Sequence[Request], ending: Ending) -> list[str]:
    """What the model writes at the end of each prompt, up to the ending, without space around it.

    Raises:
        InputError: a masked model, or text after the slot.
    """
    if scorer.family == "masked":
        raise InputError(
            f"{type(scorer.network).__name__} is a masked model, which writes no text; set --models to "
            "another kind"
        )
    late = next((r.rest for r in requests if r.rest.strip()), None)
    if late:
        raise InputError(
            f"The text goes on after its slot ({late.strip()[:40]!r}); to generate, {{{{ mask }}}} has to "
            "stand at the end"
        )
    tokenizer, texts = scorer.tokenizer, [""] * len(requests)
    ids = [
        tokenizer(r.context, add_special_tokens=r.special)["input_ids"] or [beginning(tokenizer)]
        for r in requests
    ]
    side = (
        "left" if scorer.family == "causal" else "right"
    )  # an encoder may count positions from its first token, padding or not
    for batch in _batches(ids, ending.tokens, scorer):
        padded = tokenizer.pad(
            {"input_ids": [ids[i] for i in batch]}, padding_side=side, return_tensors="pt"
        ).to(scorer.network.device)
        with torch.inference_mode():
            written = scorer.network.generate(
                **padded,
                max_new_tokens=ending.tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=tokenizer.pad_token_id,
            )
        if scorer.family == "causal":
            written = written[:, padded["input_ids"].shape[1] :]
        for index, text in zip(batch, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
            texts[index] = cut(text, ending.until)
    return texts


def _batches(ids: Sequence[Sequence[int]], further: int, scorer: Scorer) -> list[list[int]]:
    """Numbers of the texts that are written together; of one length alone where padding would part a method's
    made-up tokens."""
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    sized = [(len(ids[i]) + further, i) for i in order]
    if not scorer.virtual_tokens:
        return batches(sized, scorer.batch_tokens)
    return [
        batch
        for _, alike in groupby(sized, key=lambda pair: pair[0])
        for batch in batches([*alike], scorer.batch_tokens)
    ]


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of some endings; a full stop that ends it stays."""
    text = text.lstrip()
    places = [(text.find(mark) + mark.startswith(".")) for mark in until if mark in text]
    return text[: min(places)].strip() if places else text.strip()
