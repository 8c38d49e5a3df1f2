"""Seq2Seq of recurrent layers, with attention (Bahdanau et al. 2015; Luong et al. 2015) and without
(Sutskever
et al. 2014), as a transformers model: teacher forcing in training, `generate` with beams afterwards.

Knows layers and auto classes; knows no rows and no training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, GenerationMixin
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils import ModelOutput

from finetune.models.recurrent import WordVectorModel, embedded, word_vectors
from finetune.models.recurrent_config import RecurrentSeq2SeqConfig
from finetune.models.recurrent_layers import RecurrentStack, RecurrentState, States, merged_states


@dataclass
class RecurrentEncoderOutput(ModelOutput):
    """What a decoder gets of a source.

    Attributes:
        last_hidden_state: [batch, time, width].
        ends: hidden states at each source's end, [batch, layers, width].
    """

    last_hidden_state: Tensor | None = None
    ends: Tensor | None = None


class RecurrentEncoder(nn.Module):
    """A source → a state for each of its tokens, and those at its end."""

    main_input_name = "input_ids"

    def __init__(self, config: RecurrentSeq2SeqConfig, embeddings: nn.Embedding) -> None:
        super().__init__()
        self.config, self.embeddings = config, embeddings
        self.stack = RecurrentStack(config.embedding_size, config)
        self.dropout = nn.Dropout(config.dropout)

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of the source's tokens, under transformers' name for it."""
        return self.embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> RecurrentEncoderOutput:
        """Ids and mask [batch, time] → see `RecurrentEncoderOutput`."""
        vectors = self.dropout(embedded(self, input_ids, inputs_embeds))
        states, ends = self.stack(vectors, attention_mask)
        # of one direction there is nothing to concatenate: its sum is itself
        merge = self.config.merge if self.config.bidirectional else "sum"
        each = [merged_states(layer[0], merge) for layer in ends]
        return RecurrentEncoderOutput(last_hidden_state=states, ends=torch.stack(each, dim=1))


class SourceAttention(nn.Module):
    """Where a decoder's state looks in a source, and what it sees there.

    additive: score = v · tanh(W s + U h)      Bahdanau et al. 2015, section 3.1 and appendix A.1.2
    dot:      score = s · U h                  Luong et al. 2015, equation 8; U brings h to the width of s
    """

    def __init__(self, source: int, width: int, kind: str) -> None:
        super().__init__()
        self.keys = nn.Linear(source, width, bias=False)
        self.query = nn.Linear(width, width) if kind == "additive" else None
        self.score = nn.Linear(width, 1, bias=False) if kind == "additive" else None

    def forward(
        self, states: Tensor, keys: Tensor, source: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What is seen [batch, steps, source width], and the weights [batch, steps, time].

        Args:
            states: of the decoder, [batch, steps, width].
            keys: `self.keys(source)`, which is the same for all steps.
            source: states of the encoder, [batch, time, source width].
            mask: [batch, time]; padding has a weight of 0.
        """
        if self.query is None or self.score is None:
            scores = states @ keys.transpose(1, 2)
        else:
            # [batch, steps, 1, width] + [batch, 1, time, width] → [batch, steps, time]
            scores = self.score((self.query(states)[:, :, None] + keys[:, None]).tanh())[..., 0]
        if mask is not None:
            scores = scores.masked_fill(mask[:, None] == 0, torch.finfo(scores.dtype).min)
        # in float32: a softmax over a long source is too coarse in bf16
        weights = scores.float().softmax(dim=-1).to(source.dtype)
        return weights @ source, weights


class RecurrentDecoder(nn.Module):
    """Tokens so far and a source → states that tell the next token.

    Dot attention looks after each state is made, so that torch's kernel reads all tokens at once; additive
    attention feeds what the state before has seen into each step, which is a loop.
    """

    def __init__(self, config: RecurrentSeq2SeqConfig) -> None:
        super().__init__()
        # a decoder can't read what it has yet to write
        plain = RecurrentSeq2SeqConfig(**(config.to_dict() | {"bidirectional": False, "merge": "concat"}))
        self.kind = config.attention
        fed = config.width if self.kind == "additive" else 0
        self.stack = RecurrentStack(config.embedding_size + fed, plain)
        states = 2 if config.cell == "lstm" else 1
        self.bridges = nn.ModuleList(nn.Linear(config.width, config.hidden_size) for _ in range(states))
        if self.kind != "none":
            self.attention = SourceAttention(config.width, config.hidden_size, self.kind)
            self.readout = nn.Linear(config.width + config.hidden_size, config.hidden_size)

    def begin(self, ends: Tensor) -> list[States]:
        """States of the first step: tanh of a linear layer over the source's last (Bahdanau 2015, A.2.2); an
        LSTM's cell has one of its own."""
        # [batch, layers, width] → each layer's [batch, 1 direction, width]
        return [tuple(bridge(layer)[:, None].tanh() for bridge in self.bridges) for layer in ends.unbind(1)]

    def forward(
        self, vectors: Tensor, source: Tensor, mask: Tensor | None, states: list[States]
    ) -> tuple[Tensor, list[States], Tensor | None]:
        """Vectors of the tokens so far [batch, steps, size] → [batch, steps, width], states, and where each
        step looked [batch, steps, time], None without attention."""
        if self.kind == "none":
            return *self.stack(vectors, None, states), None
        keys = self.attention.keys(source)
        if self.kind == "dot":
            found, states = self.stack(vectors, None, states)
            seen, weights = self.attention(found, keys, source, mask)
        else:
            found, seen, weights, states = self._step_by_step(vectors, (keys, source), mask, states)
        return self.readout(torch.cat([seen, found], dim=-1)).tanh(), states, weights

    def _step_by_step(
        self, vectors: Tensor, source: tuple[Tensor, Tensor], mask: Tensor | None, states: list[States]
    ) -> tuple[Tensor, Tensor, Tensor, list[States]]:
        steps: list[tuple[Tensor, Tensor, Tensor]] = []
        for now in vectors.split(1, dim=1):
            # the top layer's state, [batch, 1, width]: its one direction is the one step
            seen, weights = self.attention(states[-1][0], *source, mask)
            found, states = self.stack(torch.cat([now, seen.to(now.dtype)], dim=-1), None, states)
            steps.append((found, seen, weights))
        found, seen, weights = (torch.cat(part, dim=1) for part in zip(*steps, strict=True))
        return found, seen, weights, states


class RecurrentForSeq2SeqLM(WordVectorModel, GenerationMixin):
    """Source and target so far → the target's next token; both share one vocabulary and its vectors."""

    config_class = RecurrentSeq2SeqConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _is_stateful = True
    # one table, saved once under its own name
    _tied_weights_keys: ClassVar[dict[str, str]] = {"encoder.embeddings.weight": "shared.weight"}

    def __init__(self, config: RecurrentSeq2SeqConfig) -> None:
        super().__init__(config)
        config.check()
        if config.tie_word_embeddings:
            raise ValueError(
                "tie_word_embeddings is a language model's; a Seq2Seq keeps its own output layer."
            )
        self.shared = word_vectors(config, config.freeze_embeddings)
        self.encoder = RecurrentEncoder(config, self.shared)
        self.decoder = RecurrentDecoder(config)
        self.dropout = nn.Dropout(config.dropout)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def frozen_vectors(self) -> list[nn.Module]:
        """Those of the vocabulary, where the configuration freezes them."""
        return [self.shared] if self.config.freeze_embeddings else []

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # its states are its cache

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """What reads the source."""
        return self.encoder

    def get_decoder(self, modality: str | None = None) -> nn.Module:
        """What writes the target."""
        return self.decoder

    def get_input_embeddings(self) -> nn.Module:
        """Of source and target."""
        return self.shared

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Others in their place."""
        # both names, or the encoder would go on with the old one
        self.shared = self.encoder.embeddings = value  # type: ignore[assignment]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: RecurrentState | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Source [batch, time] and target so far [batch, steps] → logits [batch, steps, vocabulary].

        With `output_attentions`, `cross_attentions` holds where each step looked, [batch, 1, steps, time].

        Raises:
            ValueError: no target, or attention asked of a model that has none.
        """
        if decoder_input_ids is None:
            raise ValueError("Wanted decoder_input_ids, the target so far.")
        if output_attentions and self.config.attention == "none":
            raise ValueError("This model has no attention to look at: its configuration says attention=none.")
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask)
        before = past_key_values or RecurrentState(self.decoder.begin(encoder_outputs.ends))
        vectors = self.encoder.dropout(self.shared(decoder_input_ids))
        source = encoder_outputs.last_hidden_state
        found, states, weights = self.decoder(vectors, source, attention_mask, before.layers)
        return Seq2SeqLMOutput(
            logits=self.lm_head(self.dropout(found)),
            past_key_values=RecurrentState(states, before.seen + vectors.shape[1]),  # type: ignore[arg-type]
            # one head: attention of these models has no others
            cross_attentions=(weights[:, None],) if output_attentions and weights is not None else None,
            encoder_last_hidden_state=source,
        )

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        past_key_values: RecurrentState | None = None,
        attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The last token, the states before it, and the source."""
        ids = input_ids if past_key_values is None else input_ids[:, -1:]
        return {
            "decoder_input_ids": ids, "past_key_values": past_key_values, "attention_mask": attention_mask,
            "encoder_outputs": encoder_outputs, "output_attentions": kwargs.get("output_attentions"),
        }  # fmt: skip


AutoModelForSeq2SeqLM.register(RecurrentSeq2SeqConfig, RecurrentForSeq2SeqLM, exist_ok=True)
