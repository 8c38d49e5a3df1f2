"""Features → batch. Knows padding; knows no rows' meaning and no model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

Batch = dict[str, torch.Tensor]
Features = list[dict[str, Any]]


def sequences(processor: PreTrainedTokenizerBase) -> Callable[[Features], Batch]:
    """Pads `input_ids` (and `token_type_ids`) on the right to the longest row; everything else is one value a row.

    Returns a function: features → input_ids, attention_mask [batch, time], labels and row [batch].
    """

    def collate(features: Features) -> Batch:
        inputs = [{k: f[k] for k in ("input_ids", "token_type_ids") if k in f} for f in features]
        batch = dict(processor.pad({k: [f[k] for f in inputs] for k in inputs[0]}, padding_side="right", return_tensors="pt"))
        for name in ("labels", "row"):
            if name in features[0]:
                batch[name] = torch.tensor([f[name] for f in features])
        return batch

    return collate
