"""Bag of words as a transformers model: TF-IDF of a text's tokens, and one weight for each token and class.

scikit-learn finds the weights (`finetune/training/baselines.py`); as a model they are saved, assessed and
served like any other. Knows tensors; knows no rows and no training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput

from finetune.models.recurrent_config import BagOfWordsConfig


class BagOfWordsForSequenceClassification(PreTrainedModel):
    """Logits = W · tfidf + b, tfidf of length 1 (scikit-learn's TfidfVectorizer with sublinear_tf)."""

    config_class = BagOfWordsConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = False

    def __init__(self, config: BagOfWordsConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.rarity = nn.Parameter(torch.ones(config.vocab_size))
        self.classifier = nn.Linear(config.vocab_size, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif module is self:
            init.ones_(self.rarity)

    def get_input_embeddings(self) -> nn.Module:
        """None: a token has a weight for each class, and no vector."""
        raise NotImplementedError("A bag of words has no vectors of tokens")

    def features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(1 + log count) times rarity of each token, of length 1: ids [batch, time] → [batch, vocabulary].

        A token without rarity (padding, unknown words) counts for nothing.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        counts = torch.zeros(len(input_ids), self.config.vocab_size, device=input_ids.device)
        counts.scatter_add_(1, input_ids, mask.float())
        weighed = torch.where(counts > 0, 1 + counts.clamp(min=1).log(), 0.0) * self.rarity.float()
        return nn.functional.normalize(weighed, dim=1)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> SequenceClassifierOutput:
        """Ids and mask [batch, time] → logits [batch, classes]."""
        with torch.autocast(input_ids.device.type, enabled=False):
            return SequenceClassifierOutput(
                logits=self.classifier(
                    self.features(input_ids, attention_mask).to(self.classifier.weight.dtype)
                )
            )


AutoModelForSequenceClassification.register(
    BagOfWordsConfig, BagOfWordsForSequenceClassification, exist_ok=True
)
