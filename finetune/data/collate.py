"""Features → batch. Knows padding; knows no rows' meaning and no model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from finetune.loss import IGNORED

Batch = dict[str, Any]
Features = list[dict[str, Any]]


def sequences(processor: PreTrainedTokenizerBase) -> Callable[[Features], Batch]:
    """Pads `input_ids` (and `token_type_ids`) on the right to the longest row; everything else is one value a
    row.

    Returns a function: features → input_ids, attention_mask [batch, time], labels and row [batch].
    """

    def collate(features: Features) -> Batch:
        # alone: `pad` would make tensors of ragged labels and offsets too, and fail
        inputs = [{k: f[k] for k in ("input_ids", "token_type_ids") if k in f} for f in features]
        lines: dict[str, Any] = {k: [f[k] for f in inputs] for k in inputs[0]}
        # on the right whatever the tokenizer's habit: positions count from the first token
        batch = dict(processor.pad(lines, padding_side="right", return_tensors="pt"))
        for name in ("labels", "row"):
            if name in features[0]:
                batch[name] = torch.tensor([f[name] for f in features])
        return batch

    return collate


def token_labels(processor: PreTrainedTokenizerBase) -> Callable[[Features], Batch]:
    """Like `sequences`, for one label a token: labels [batch, time] are padded with -100."""
    pad = sequences(processor)

    def collate(features: Features) -> Batch:
        batch = pad([{k: v for k, v in f.items() if k != "labels"} for f in features])
        return batch | {"labels": _padded([f["labels"] for f in features], IGNORED)}

    return collate


def continuations(processor: PreTrainedTokenizerBase) -> Callable[[Features], Batch]:
    """Prompt and target as one text, padded on the right; logits are asked for from the first label of the
    batch on.

    Returns a function: features → input_ids, attention_mask [batch, time], labels [batch, kept] (the next
    token at each of the last `kept` places, -100 where it isn't wanted), logits_to_keep (kept, a number), row
    [batch].
    """
    pad = token_labels(processor)

    def collate(features: Features) -> Batch:
        batch = pad(features)
        # places that any row learns at; before the first the vocabulary's logits would be thrown away
        wanted = batch["labels"].ne(IGNORED).any(dim=0).nonzero()
        # one at least: a batch without labels still needs logits of some shape
        kept = batch["labels"].shape[1] - int(wanted[0]) if len(wanted) else 1
        return batch | {"labels": batch["labels"][:, -kept:], "logits_to_keep": kept}

    return collate


def packed_lines(processor: PreTrainedTokenizerBase) -> Callable[[Features], Batch]:
    """Rows one after the other in a single line without padding; positions restart, and edges say where rows
    begin.

    Returns a function: features → input_ids, position_ids [1, tokens], logits_to_keep (places with a label,
    ascending), cu_seq_lens_q and _k [rows + 1], max_length_q and _k (numbers), labels [rows, time] padded
    with -100, row [rows].
    """

    def collate(features: Features) -> Batch:
        rows, gold = [f["input_ids"] for f in features], [f["labels"] for f in features]
        # int32, which variable-length attention kernels ask for
        edges = torch.tensor([0, *map(len, rows)]).cumsum(0).to(torch.int32)
        longest = max(map(len, rows))
        # along the packed line; `labels` itself stays one row a text, for sums by row
        line = torch.tensor([label for row in gold for label in row])
        return {
            "input_ids": torch.tensor([[token for row in rows for token in row]]),
            "position_ids": torch.cat([torch.arange(len(row)) for row in rows])[None],
            "logits_to_keep": line.ne(IGNORED).nonzero()[:, 0],
            "cu_seq_lens_q": edges,
            "cu_seq_lens_k": edges,
            "max_length_q": longest,
            "max_length_k": longest,
            "labels": _padded(gold, IGNORED),
        } | {k: torch.tensor([f[k] for f in features]) for k in ("row",) if k in features[0]}

    return collate


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in rows], batch_first=True, padding_value=value
    )
