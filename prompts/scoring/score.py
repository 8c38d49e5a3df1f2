"""The narrow waist: questions with possible answers → log-probabilities. Knows models of three families;
knows no templates.

Whatever is asked, of whatever model, comes out as one array of token log-probabilities for each answer;
verbalizers make [examples, labels] of it, and calibration and ensembles are functions of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import MODEL_FOR_MASKED_LM_MAPPING

from finetune.errors import InputError
from finetune.models.load import FROM_TWO, POSITIONS
from prompts.scoring.causal import Causal
from prompts.scoring.cloze import EncoderDecoder, Masked
from prompts.scoring.tokens import encode_pairs, word_ids


@dataclass(frozen=True)
class Request:
    """A rendered prompt and the answers that are weighed at its slot.

    Attributes:
        context: the text before the slot, without the space before the answer.
        answers: what may stand in the slot, with the space that stands before it.
        rest: the text after the slot; empty for causal models.
        special: whether the tokenizer adds its special tokens; a chat template has put them in already.
        turns: (role, text) of a chat, for an endpoint that lays it out itself; prefill begins its answer.
    """

    context: str
    answers: tuple[str, ...]
    rest: str = ""
    special: bool = True
    turns: tuple[tuple[str, str], ...] = ()
    prefill: str = ""


def family(network: Any) -> str:
    """Which kind of language model it is: causal, masked or seq2seq."""
    # an adapter wraps the model that has the head
    bare = network.get_base_model() if hasattr(network, "peft_config") else network
    if bare.config.is_encoder_decoder:
        return "seq2seq"
    masked = (
        type(bare.config) in MODEL_FOR_MASKED_LM_MAPPING
        # exactly that class: an encoder with another head names no words
        and type(bare) is MODEL_FOR_MASKED_LM_MAPPING[type(bare.config)]
    )
    return "masked" if masked else "causal"


class Scorer:
    """Asks one model. Calls take turns nowhere: give each thread its own, or a lock."""

    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        batch_tokens: int = 2048,
        share: bool = True,
        fill: str = "left_to_right",
    ) -> None:
        """
        Args:
            network: a causal, masked or encoder-decoder model with its head, bare or with an adapter.
            batch_tokens: tokens of one pass, padding included.
            share: compute shared beginnings once; False scores every sequence whole (slower, the same
                numbers).
            fill: how a masked model scores words of several tokens, one of cloze.FILLS.

        Raises:
            InputError: a model without a language-modelling head.
        """
        bare = network.get_base_model() if hasattr(network, "peft_config") else network
        # a trunk alone gives states and no words
        if bare.get_output_embeddings() is None:
            raise InputError(
                f"{type(bare).__name__} has no head that names words; wanted a language model's class"
            )
        self.network, self.tokenizer, self.family, self.batch_tokens = (
            network,
            tokenizer,
            family(network),
            batch_tokens,
        )
        self.options = {"share": share, "fill": fill if self.family == "masked" else None}
        self.model: Any
        if self.family == "causal":
            # virtual tokens stand in front of every row, where no shared prefix may
            self.model = Causal(network, batch_tokens, share and not self.virtual_tokens)
        elif self.family == "masked":
            self.model = Masked(network, tokenizer, batch_tokens, fill)
        else:
            self.model = EncoderDecoder(network, tokenizer, batch_tokens, share=not self.virtual_tokens)

    @property
    def virtual_tokens(self) -> int:
        """Made-up tokens that an adapter puts in front of every text (prompt, prefix, p-tuning)."""
        config = self.network.active_peft_config if hasattr(self.network, "peft_config") else None
        return config.num_virtual_tokens if config is not None and config.is_prompt_learning else 0

    @property
    def longest(self) -> int:
        """Most tokens that a sequence may have."""
        config = self.network.config.to_dict()
        limits = [config.get(name) for name in POSITIONS] + [self.tokenizer.model_max_length]
        # families that count positions from two on have two less
        offset = 2 if config.get("model_type") in FROM_TWO else 0
        return (
            min(limit for limit in limits if isinstance(limit, int) and limit > 0)
            # an adapter's own tokens take positions too
            - offset
            - self.virtual_tokens
        )

    def __call__(self, requests: Sequence[Request]) -> list[list[np.ndarray]]:
        """Log-probability of every token of every answer: one list a request, one float32 [tokens] an answer.

        Raises:
            InputError: text after a causal model's slot, an answer without tokens, a text longer than the
                model reads,
                scores that are no numbers.
        """
        if self.family == "causal":
            flat = self._causal(requests)
        else:
            flat = self.model([(r.context, answer, r.rest) for r in requests for answer in r.answers])
        # before anything is summed: a comparison with nan is silently false
        if any(np.isnan(tokens).any() for tokens in flat):
            raise InputError(
                "The model's scores are no numbers (NaN): its weights or their type don't bear this "
                "text. Set --dtype float32"
            )
        values = iter(flat)
        return [[next(values) for _ in request.answers] for request in requests]

    def distributions(self, requests: Sequence[Request]) -> np.ndarray:
        """Log-probabilities of the whole vocabulary as the answer's first token: float32 [requests,
        vocabulary]."""
        if self.family != "causal":
            return self.model.distributions(
                # the space before the answer is the text's where a mask stands in its place
                [(r.context + " " * r.answers[0].startswith(" "), r.rest) for r in requests]
            )
        pairs = self._encode(requests)
        # the first pair of each request: its context is that of all
        firsts = np.cumsum([0, *(len(r.answers) for r in requests)])[:-1]
        return self.model.distributions([pairs[i].ids[: pairs[i].start] for i in firsts])

    def states(self, requests: Sequence[Request]) -> np.ndarray:
        """Hidden states that the head reads at the slot: float32 [requests, width]; what soft verbalizers are
        trained on.

        Raises:
            InputError: an encoder-decoder, whose slot has no place in the text, or an adapter of made-up
                tokens.
        """
        if self.virtual_tokens:
            kind = self.network.active_peft_config.peft_type.value
            raise InputError(
                f"Soft label words can't be learnt behind made-up tokens ({kind}). Set --soft_rows 0, or "
                "other --models"
            )
        if self.family == "seq2seq":
            raise InputError(
                f"{type(self.network).__name__} answers in its decoder; soft label words need a causal or "
                "masked model"
            )
        if self.family == "masked":
            return self.model.states(
                [(r.context + " " * r.answers[0].startswith(" "), r.rest) for r in requests]
            )
        pairs = self._encode(requests)
        firsts = np.cumsum([0, *(len(r.answers) for r in requests)])[:-1]
        return self.model.states([pairs[i].ids[: pairs[i].start] for i in firsts])

    def word_vectors(self, words: Sequence[str]) -> np.ndarray:
        """Output embeddings of words, the mean over their tokens: float32 [words, width]."""
        bare = self.network.get_base_model() if hasattr(self.network, "peft_config") else self.network
        table = bare.get_output_embeddings().weight.detach().float()
        return np.stack([table[word_ids(self.tokenizer, word)].mean(0).cpu().numpy() for word in words])

    def _encode(self, requests: Sequence[Request]) -> list[Any]:
        for request in requests:
            if request.rest.strip():
                raise InputError(
                    f"The text goes on after its slot ({request.rest.strip()[:40]!r}), which a causal "
                    "model can't see; "
                    "wanted a template whose {{ mask }} stands at the end, or a masked model. Set "
                    "--prompts or --models"
                )
        encoded: dict[bool, list[Any]] = {}
        # chat texts have their special tokens already, so that both kinds are tokenised apart
        for special in {r.special for r in requests}:
            pairs = [(r.context, answer) for r in requests if r.special == special for answer in r.answers]
            encoded[special] = encode_pairs(self.tokenizer, pairs, special)
        queues = {special: iter(found) for special, found in encoded.items()}
        # back in the requests' order
        return [next(queues[r.special]) for r in requests for _ in r.answers]

    def _causal(self, requests: Sequence[Request]) -> list[np.ndarray]:
        sequences = self._encode(requests)
        longest = max((len(s.ids) for s in sequences), default=0)
        if longest > self.longest:
            raise InputError(
                f"A prompt has {longest} tokens, the model reads {self.longest}; set --max_length to cut "
                "its input"
            )
        return self.model(sequences)
