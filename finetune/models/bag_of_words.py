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
    """Logits = W · tfidf + b over words and pairs of neighbours, tfidf of length 1.

    A unit is a token of the vocabulary, or behind these one of the `pairs`: two tokens a, b in a row as the
    number a · vocab_size + b, ascending. A unit of rarity 0 (padding, what is unknown) counts for nothing.
    """

    config_class = BagOfWordsConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = False

    def __init__(self, config: BagOfWordsConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        units = config.vocab_size + config.pair_count
        # a buffer: saved with the weights, and trained by nobody
        self.register_buffer("pairs", torch.zeros(config.pair_count, dtype=torch.long))
        self.rarity, self.weights = nn.Embedding(units, 1), nn.Embedding(units, config.num_labels)
        self.bias = nn.Parameter(torch.zeros(config.num_labels))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            # transformers' own functions, which leave weights alone that a checkpoint has brought
            init.zeros_(module.weight)
        elif module is self:
            init.zeros_(self.bias)
            init.zeros_(self.pairs)

    def get_input_embeddings(self) -> nn.Module:
        """What a unit is worth, before classes: its rarity."""
        return self.rarity

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Refused: tokens that were not counted have no rarity.

        Raises:
            ValueError: always.
        """
        raise ValueError("A bag of words keeps the tokens that it was trained on.")

    def units(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Row, unit and tfidf of each unit that stands in a row, [units found] each; ids [batch, time].

        (1 + log count) times rarity, divided by a row's length: scikit-learn's TfidfVectorizer with
        sublinear_tf.
        """
        size = self.config.vocab_size
        there = input_ids.ne(self.config.gap_token_id)
        there &= torch.ones_like(there) if attention_mask is None else attention_mask.bool()
        # units in front, in their own order: words with a gap between them become neighbours
        order = there.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
        ids, there = input_ids.gather(1, order), there.gather(1, order)
        both = ids[:, :-1] * size + ids[:, 1:]
        # what is greater than all of them is found behind the last, where there is nothing to read
        place = torch.searchsorted(self.pairs, both).clamp(max=max(len(self.pairs) - 1, 0))
        known = there[:, 1:] & (
            self.pairs[place] == both if len(self.pairs) else torch.zeros_like(there[:, 1:])
        )
        # pairs are units behind the vocabulary's
        found = torch.cat([ids, place + size], dim=1)
        rows, columns = torch.cat([there, known], dim=1).nonzero(as_tuple=True)
        total = size + len(self.pairs)
        # row and unit in one number, so that one pass counts each unit of each row
        single, counts = (rows * total + found[rows, columns]).unique(return_counts=True)
        rows, units = single // total, single % total
        # float32: in bf16 a logarithm of a count has two digits
        weighed = (1 + counts.float().log()) * self.rarity.weight[units, 0].float()
        norms = weighed.new_zeros(len(ids)).index_add(0, rows, weighed**2).sqrt()
        # a text without any known unit has a length of 0
        return rows, units, weighed / norms[rows].clamp(min=1e-12)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> SequenceClassifierOutput:
        """Ids and mask [batch, time] → logits [batch, classes]."""
        # sums over what is there: a table [batch, units] would be mostly zeros
        rows, units, worth = self.units(input_ids, attention_mask)
        sums = worth.new_zeros(len(input_ids), self.num_labels)
        logits = sums.index_add(0, rows, self.weights.weight[units].float() * worth[:, None])
        return SequenceClassifierOutput(logits=logits + self.bias.float())


AutoModelForSequenceClassification.register(
    BagOfWordsConfig, BagOfWordsForSequenceClassification, exist_ok=True
)
