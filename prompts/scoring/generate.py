"""Prompts → texts that a model writes, greedily or drawn. Knows models' own generation; knows no labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from finetune.errors import InputError
from prompts.scoring.prefix_tree import batches
from prompts.scoring.score import Request, Scorer
from prompts.scoring.tokens import beginning_ids
from prompts.templates.entries import Ending


@dataclass(frozen=True)
class Drawing:
    """How answers are drawn: by temperature and nucleus (Holtzman et al. 2020); `repeat` numbers a row's
    answers."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    repeat: int = 0

    def number(self, text: str) -> int:
        """The seed of one text's answer: the same whatever else is written beside it."""
        # of the text alone, so that batches and processes draw alike
        told = f"{self.seed}\n{self.repeat}\n{text}".encode()
        return int.from_bytes(sha256(told).digest()[:4], "little")


class _Gumbel(LogitsProcessor):
    """Noise under which the likeliest token is a drawn one (Gumbel-max), from a generator of each row's
    own."""

    def __init__(self, drawing: Drawing, texts: Sequence[str]) -> None:
        self.drawing = drawing
        self.generators = [torch.Generator().manual_seed(drawing.number(text)) for text in texts]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # in float32: noise and logits in 16 bits have ties
        logits = scores.float() / self.drawing.temperature
        if self.drawing.top_p < 1:
            ordered, order = logits.sort(dim=-1, descending=True)
            chances = ordered.softmax(-1)
            # the first token that passes the border stays, so that one is left always
            outside = chances.cumsum(-1) - chances >= self.drawing.top_p
            # the inverse of the sort puts the mark back to its token
            logits = logits.masked_fill(outside.gather(-1, order.argsort(-1)), -torch.inf)
        # a generator for each row: the draw of one must not depend on how many others write still
        noise = torch.stack([torch.rand(scores.shape[1], generator=g) for g in self.generators])
        # never 0 and never 1, of which the logarithms aren't finite
        return logits - torch.log(-torch.log(noise.clamp(1e-20, 1 - 1e-7))).to(logits.device)


def generate(
    scorer: Scorer, requests: Sequence[Request], ending: Ending, drawing: Drawing | None = None
) -> list[str]:
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
        # an empty prompt has to begin with some token
        tokenizer(r.context, add_special_tokens=r.special)["input_ids"] or [beginning_ids(tokenizer)]
        for r in requests
    ]
    side = (
        "left" if scorer.family == "causal" else "right"
    )  # an encoder may count positions from its first token, padding or not
    for batch in _batches(ids, ending.tokens, scorer):
        padded = tokenizer.pad(
            {"input_ids": [ids[i] for i in batch]}, padding_side=side, return_tensors="pt"
        ).to(scorer.network.device)
        noise = [_Gumbel(drawing, [requests[i].context for i in batch])] if drawing else []
        with torch.inference_mode():
            written = scorer.network.generate(
                **padded,
                max_new_tokens=ending.tokens,
                # drawn by the noise: the likeliest under it is a draw (Gumbel-max)
                do_sample=False,
                logits_processor=LogitsProcessorList(noise),
                num_beams=1,
                pad_token_id=tokenizer.pad_token_id,
            )
        if scorer.family == "causal":
            # a decoder gives back its prompt too
            written = written[:, padded["input_ids"].shape[1] :]
        for index, text in zip(batch, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
            texts[index] = cut(text, ending)
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
        # one length: padding would stand between a method's own tokens and the text
        for _, alike in groupby(sized, key=lambda pair: pair[0])
        for batch in batches([*alike], scorer.batch_tokens)
    ]


def cut(text: str, ending: Ending) -> str:
    """The text before the first of an ending's marks; a full stop that ends it stays, unless the text is kept
    as it is."""
    # kept as written for code, where white space in front counts
    if ending.keep:
        for mark in ending.until:
            text = text.split(mark)[0] if mark else text
        return text
    text = text.lstrip()
    # a full stop is part of the sentence that it ends
    places = [(text.find(mark) + mark.startswith(".")) for mark in ending.until if mark in text]
    return text[: min(places)].strip() if places else text.strip()
