"""TextCNN (Kim 2014) as a transformers model: filters over windows of words, the strongest answer of each.

Knows tensors and auto classes; knows no rows and no training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from finetune.models.recurrent import WordVectorModel, word_vectors
from finetune.models.recurrent_config import TextCNNConfig


class TextCNNForSequenceClassification(WordVectorModel):
    """Kim 2014, section 2, without the bound on the head's norm, which made no difference in Zhang & Wallace
    2015."""

    config_class = TextCNNConfig
    base_model_prefix = "model"

    def __init__(self, config: TextCNNConfig) -> None:
        super().__init__(config)
        config.check()
        self.num_labels = config.num_labels
        self.model = TextCNNModel(config)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def frozen_vectors(self) -> list[nn.Module]:
        """Those of the channel that the configuration freezes."""
        parts = {"tuned": [], "frozen": [self.model.embeddings], "both": [self.model.frozen]}
        return parts[self.config.channels]

    def get_input_embeddings(self) -> nn.Module:
        """Of the vocabulary."""
        return self.model.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Others in their place."""
        self.model.embeddings = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Ids and mask [batch, time] → logits [batch, classes]."""
        vectors = self.model(input_ids, attention_mask, inputs_embeds)
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(vectors)))


class TextCNNModel(nn.Module):
    """Token ids → the strongest answer of each filter, [batch, filters of all widths]."""

    def __init__(self, config: TextCNNConfig) -> None:
        super().__init__()
        self.embeddings = word_vectors(config, frozen=config.channels == "frozen")
        self.frozen = word_vectors(config, frozen=True) if config.channels == "both" else None
        self.filters = nn.ModuleList(
            # zeros on both sides: a text shorter than a filter has windows too
            nn.Conv1d(config.embedding_size, config.filters, width, padding=width - 1)
            for width in config.widths
        )

    def forward(
        self, input_ids: Tensor | None, mask: Tensor | None, inputs_embeds: Tensor | None = None
    ) -> Tensor:
        """Ids and mask [batch, time], padding on the right; windows of padding alone count for nothing."""
        vectors = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if self.frozen is not None:
            # one filter over two channels, their answers added up, is the filter over the sum
            vectors = vectors + self.frozen(input_ids)
        # vectors that are given in place of ids needn't be zero at padding
        mask = vectors.new_ones(vectors.shape[:2]) if mask is None else mask.to(vectors.dtype)
        lines = (vectors * mask[..., None]).transpose(1, 2)
        lengths, found = mask.sum(dim=1, keepdim=True), []
        for one in self.filters:
            answers = one(lines).relu()
            windows = torch.arange(answers.shape[2], device=answers.device)
            # with zeros on both sides a text has so many windows more
            beyond = windows >= lengths + one.kernel_size[0] - 1
            # after relu nothing is below 0, so that 0 wins nothing
            found.append(answers.masked_fill(beyond[:, None], 0).amax(dim=2))
        return torch.cat(found, dim=1)


AutoModelForSequenceClassification.register(TextCNNConfig, TextCNNForSequenceClassification, exist_ok=True)
