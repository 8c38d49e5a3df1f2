"""RNN, LSTM and GRU as transformers' models: the body, and heads for classes, tags and the next token.

They are made by `--from_config rnn|irnn|lstm|gru`, saved, loaded, tuned and served like any other model.
Knows layers and auto classes; knows no rows and no training.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GenerationMixin,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from finetune.models.recurrent_config import RecurrentConfig
from finetune.models.recurrent_layers import (
    RecurrentStack,
    RecurrentState,
    VariantLSTM,
    draw_kernel,
    merged_states,
)


class WordVectorModel(PreTrainedModel):
    """A model over word vectors, of which some stay as they are (`frozen_vectors`): after loading too."""

    supports_gradient_checkpointing = False

    def frozen_vectors(self) -> list[nn.Module]:
        """Embeddings that are not trained."""
        return []

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """transformers' own, which makes every weight a trained one."""
        loaded = super().from_pretrained(*args, **kwargs)
        # with `output_loading_info` it gives a report too
        network = loaded[0] if isinstance(loaded, tuple) else loaded
        for vectors in network.frozen_vectors():
            vectors.requires_grad_(False)
        return loaded

    def _init_weights(self, module: nn.Module) -> None:
        draw_weights(module, self.config)


class RecurrentPreTrainedModel(WordVectorModel):
    """What the body and its heads share."""

    config_class = RecurrentConfig
    base_model_prefix = "model"

    def frozen_vectors(self) -> list[nn.Module]:
        """Those of the vocabulary, where the configuration freezes them."""
        return [self.get_input_embeddings()] if self.config.freeze_embeddings else []

    def get_input_embeddings(self) -> nn.Module:
        """Of the vocabulary."""
        return self.base_model.embeddings  # type: ignore[return-value]

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Others in their place."""
        self.base_model.embeddings = value


def draw_weights(module: nn.Module, config: Any) -> None:
    """A module's weights where nothing was loaded: recurrent ones as their configuration says, vectors
    normal, linear ones by Glorot & Bengio 2010."""
    if isinstance(module, (nn.RNNBase, VariantLSTM)):
        draw_kernel(module, config)
    elif isinstance(module, nn.Embedding):
        init.normal_(module.weight, std=config.initializer_range)
        # a loaded row of padding is the checkpoint's
        if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
            init.zeros_(module.weight[module.padding_idx])
    elif isinstance(module, (nn.Linear, nn.Conv1d)):
        init.xavier_uniform_(module.weight)
        if module.bias is not None:
            init.zeros_(module.bias)


def word_vectors(config: Any, frozen: bool) -> nn.Embedding:
    """Vectors of a vocabulary, [vocab_size, embedding_size]; padding's is zero."""
    vectors = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id)
    return vectors.requires_grad_(not frozen)


def embedded(model: Any, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """Vectors of tokens, or those that were given in their place.

    Raises:
        ValueError: both were given, or neither.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Wanted input_ids or inputs_embeds, and one of them alone.")
    return model.embeddings(input_ids) if inputs_embeds is None else inputs_embeds


class RecurrentModel(RecurrentPreTrainedModel):
    """Token ids → a state for each, and what the line has left in each layer."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config)
        config.check()
        self.embeddings = word_vectors(config, config.freeze_embeddings)
        self.stack = RecurrentStack(config.embedding_size, config)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: RecurrentState | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Ids and mask [batch, time] → last_hidden_state [batch, time, width], and the states after each row.

        With states of what came before, ids are those that follow it. An LSTM's states are whole, so that one
        may go on from them, where all rows have one length or `use_cache` is set.
        """
        vectors = self.dropout(embedded(self, input_ids, inputs_embeds))
        before, seen = (
            (None, 0) if past_key_values is None else (past_key_values.layers, past_key_values.seen)
        )
        # generation hands on the mask of the whole text, and the new tokens alone
        mask = None if attention_mask is None else attention_mask[:, -vectors.shape[1] :]
        states, ends = self.stack(vectors, mask, before, use_cache)
        return BaseModelOutputWithPast(
            last_hidden_state=states,
            past_key_values=RecurrentState(ends, seen + vectors.shape[1]),  # type: ignore[arg-type]
        )


class RecurrentClassifier(RecurrentPreTrainedModel):
    """The body with a linear layer over the classes; what that layer reads is the subclass's."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = RecurrentModel(config)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.width, config.num_labels)
        self.post_init()


class RecurrentForSequenceClassification(RecurrentClassifier):
    """One vector of a text → its classes: its last states, the mean or the largest of all."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Ids and mask [batch, time] → logits [batch, classes]."""
        outputs = self.model(input_ids, attention_mask, inputs_embeds=inputs_embeds)
        states = outputs.last_hidden_state
        if self.config.pooling == "last":
            end = outputs.past_key_values.layers[-1][0]
            # two directions end at both ends of the text; of one, [batch, 1, width] → [batch, width]
            vector = merged_states(end, self.config.merge) if self.config.bidirectional else end[:, 0]
        else:
            vector = pooled(states, attention_mask, self.config.pooling)
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(vector)))


def pooled(states: Tensor, mask: Tensor | None, how: str) -> Tensor:
    """The mean or the largest of each text's states: [batch, time, width] → [batch, width]."""
    there = states.new_ones(states.shape[:2]) if mask is None else mask.to(states.dtype)
    if how == "max":
        # the least number, which no state goes below
        return states.masked_fill(there[..., None] == 0, torch.finfo(states.dtype).min).amax(dim=1)
    # a row of padding alone has nothing to divide by
    return (states * there[..., None]).sum(dim=1) / there.sum(dim=1, keepdim=True).clamp(min=1)


class RecurrentForTokenClassification(RecurrentClassifier):
    """Each token's state → its classes."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Ids and mask [batch, time] → logits [batch, time, classes]."""
        states = self.model(input_ids, attention_mask, inputs_embeds=inputs_embeds).last_hidden_state
        return TokenClassifierOutput(logits=self.classifier(self.dropout(states)))


class RecurrentForCausalLM(RecurrentPreTrainedModel, GenerationMixin):
    """Each token's state → the next token. Reads one way alone: it would see what it has to predict."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embeddings.weight"}
    # transformers then refuses ways of generating that would have to take tokens back
    _is_stateful = True

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config)
        if config.bidirectional:
            raise ValueError(
                "bidirectional=true reads from the end too, and would see the token that it has to predict."
            )
        if config.tie_word_embeddings and config.width != config.embedding_size:
            raise ValueError(
                f"tie_word_embeddings wants embedding_size = hidden_size; they are {config.embedding_size} "
                "and "
                f"{config.width}."
            )
        self.model = RecurrentModel(config)
        self.dropout = nn.Dropout(config.dropout)
        self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # its states are its cache

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: RecurrentState | None = None,
        inputs_embeds: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        use_cache: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Ids and mask [batch, time] → logits [batch, kept, vocabulary] of the last `logits_to_keep` places
        (all where 0), and the states to go on from."""
        outputs = self.model(input_ids, attention_mask, past_key_values, inputs_embeds, use_cache)
        # -0 is 0, and the slice then takes all
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        states = self.dropout(outputs.last_hidden_state[:, kept])
        return CausalLMOutputWithPast(logits=self.lm_head(states), past_key_values=outputs.past_key_values)

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        past_key_values: RecurrentState | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The whole prompt at first, then the last token and the states before it."""
        # the states hold everything before it
        ids = input_ids if past_key_values is None else input_ids[:, -1:]
        return {
            "input_ids": ids, "past_key_values": past_key_values, "attention_mask": attention_mask,
            "logits_to_keep": kwargs.get("logits_to_keep", 1), "use_cache": True,
        }  # fmt: skip


for _auto, _model in (
    (AutoModel, RecurrentModel),
    (AutoModelForSequenceClassification, RecurrentForSequenceClassification),
    (AutoModelForTokenClassification, RecurrentForTokenClassification),
    (AutoModelForCausalLM, RecurrentForCausalLM),
):
    _auto.register(RecurrentConfig, _model, exist_ok=True)
