"""Model and batch → logits, for each kind of head. Knows how models are called; knows no rows and no Trainer."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.loss import IGNORED

OUT = -1e9  # a logit that wins nothing and, unlike -inf, stays a number when it is multiplied by 0


def unwrapped(model: Any) -> Any:
    """The model without what distributed training and compilation put around it; PEFT's model stays.

    accelerate's own walks through every module of the model, which takes longer than a small model's step.
    """
    while not isinstance(model, (PreTrainedModel, PeftModel)):
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    return model


def computed_in(part: Tensor) -> torch.dtype:
    """What a product with it is computed in: autocast's type, else its own."""
    kind = part.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else part.dtype


def plain(model: Any, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
    """The head's own logits: [batch, classes] or [batch, time, classes]."""
    return model(**batch)["logits"]


def spans(model: Any, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Start and end logits of a head for extractive answers, [batch, 2, time]; padding can't be chosen.

    The heads' own loss lets padding into the softmax, so that it changes with the longest row of a batch.
    """
    outputs = model(**batch)
    time = batch["input_ids"].shape[1]  # made-up tokens of a tuning method stand in front
    logits = torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=1)[..., -time:].float()
    return logits.masked_fill(batch["attention_mask"][:, None].eq(0), OUT)


def choices(model: Any, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
    """One score for each choice of each row: [batch, most choices]; rows with fewer choices are filled up.

    `batch["choices"]` [batch] counts the choices of each row; the inputs have one line a choice, row by row.
    """
    counts = batch["choices"]
    scores = (
        model(**{name: value for name, value in batch.items() if name != "choices"})["logits"]
        .float()
        .squeeze(-1)
    )
    table = scores.new_full((len(counts), int(counts.max())), OUT)
    table[torch.arange(table.shape[1], device=counts.device) < counts[:, None]] = scores
    return table


def encoder_decoder(model: Any, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Logits [batch, target time, vocabulary] of a target that is fed to the decoder one place to the right."""
    config = unwrapped(model).config
    return model(
        **batch, decoder_input_ids=shifted_right(labels, config.decoder_start_token_id, config.pad_token_id)
    )["logits"]


def shifted_right(labels: Tensor, start: int, pad: int) -> Tensor:
    """[batch, time] with the start token in front and the last token gone; ignored places become padding."""
    shifted = labels.roll(1, dims=1)
    shifted[:, 0] = start
    return shifted.masked_fill(shifted == IGNORED, pad)
