"""Which of several texts fits a text: from raw rows to figures. Knows columns, tokenizers and how heads are
called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from finetune.data.answered import lay_out_choices
from finetune.data.checks import checked_splits, want_lists
from finetune.data.collate import Batch, Features, sequences
from finetune.data.columns import Columns
from finetune.data.encode import apart, mapped, report_cut, want_tokens
from finetune.data.laying import laid_out
from finetune.data.places import check_each
from finetune.data.sources import DataArguments, Rows
from finetune.errors import InputError
from finetune.models.heads import OUT
from finetune.tasks.task import Answer, Asked, Examined, softmax


def examine(rows: Rows, data: DataArguments) -> Examined:
    """A text, two or more choices, and the place of the right one.

    Raises:
        InputError: a column that is missing, fewer than two choices, an empty one, an answer that is none of
            them.
    """
    rows, columns = laid_out(rows, data, lay_out_choices)
    assert rows.train is not None
    want_lists(rows.train, str(columns.pair))
    return Examined(*checked_splits(rows, data, columns, check_choices, lists=True), None)


def check_choices(rows: Dataset, columns: Columns, where: str) -> None:
    """Two or more texts to choose from, and the answer is the place of one of them."""

    def fault(offered: list[Any], answer: Any) -> str | None:
        if len(offered) < 2 or not all(isinstance(text, str) and text.strip() for text in offered):
            return f"offers {offered!r} in '{columns.pair}'; wanted two texts or more"
        if not isinstance(answer, int) or not 0 <= answer < len(offered):
            return f"has the answer {answer!r} in '{columns.label}'; wanted 0 to {len(offered) - 1}"
        return None

    remedy = "Mend what stands there, or set --text_pair_column and --label_column"
    check_each(rows, where, [str(columns.pair), columns.label], fault, remedy)


def encode(
    rows: Dataset,
    columns: Columns,
    processor: PreTrainedTokenizerBase,
    max_length: int,
    labels: list[str] | None,
) -> Dataset:
    """A text, several others, and which of them fits it → input_ids [choices, time], labels, row, length (of
    all choices).

    Each choice is read together with the text; where they are too long, the text is cut.

    Raises:
        InputError: a choice that leaves no room for its text, or a text or choice without a single token.
    """
    assert columns.pair is not None
    # for a text and a choice together
    room = max_length - processor.num_special_tokens_to_add(pair=True)

    def encode(batch: dict[str, list]) -> dict[str, list]:
        features: dict[str, list] = {
            "input_ids": [],
            "length": [],
            "labels": [int(answer) for answer in batch[columns.label]],
            "cut": [],
        }
        for text, offered in zip(batch[columns.text], batch[str(columns.pair)], strict=True):
            # the text once for each choice
            both = apart([text] * len(offered), list(offered), processor)
            alone = [
                len(ids)
                for ids in processor([text, *both[1]], add_special_tokens=False, verbose=False)["input_ids"]
            ]
            # choices are never cut: two that are cut alike could not be told apart
            longest = max(alone[1:])
            if longest >= room:
                raise InputError(
                    f"A choice for {text!r:.80} has {longest} tokens, which leaves no room for the text "
                    f"within {max_length}; "
                    "set --max_length higher"
                )
            encoded = processor(*both, truncation="only_first", max_length=max_length)
            want_tokens(encoded, both, max_length)
            kept = sum(map(len, encoded["input_ids"]))
            features["input_ids"].append(encoded["input_ids"])
            if "token_type_ids" in encoded:
                features.setdefault("token_type_ids", []).append(encoded["token_type_ids"])
            features["length"].append(kept)
            # the text is cut once for each choice, and counted so
            features["cut"].append(sum(max(alone[0] + one - room, 0) for one in alone[1:]))
        return features

    return report_cut(mapped(rows, columns, encode, processor, {"max_length": max_length}), max_length)


def collate(processor: PreTrainedTokenizerBase) -> Callable[[Features], Batch]:
    """Several texts a row, one line each: input_ids, attention_mask [lines, time]; choices (how many),
    labels, row [batch].
    """
    pad = sequences(processor)

    def stack(features: Features) -> Batch:
        names: list[str] = [k for k in ("input_ids", "token_type_ids") if k in features[0]]
        # rows of choices → lines, as the model reads one text a line
        lines: Features = [{k: f[k][i] for k in names} for f in features for i in range(len(f["input_ids"]))]
        batch = pad(lines) | {"choices": torch.tensor([len(f["input_ids"]) for f in features])}
        return batch | {
            k: torch.tensor([f[k] for f in features]) for k in ("labels", "row") if k in features[0]
        }

    return stack


def forward(model: Any, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
    """One score for each choice of each row: [batch, most choices]; rows with fewer choices are filled up.

    `batch["choices"]` [batch] counts the choices of each row; the inputs have one line a choice, row by row.
    """
    counts = batch["choices"]
    scores = (
        model(**{name: value for name, value in batch.items() if name != "choices"})["logits"]
        .float()
        .squeeze(-1)
    )
    # OUT leaves places without a choice no probability
    table = scores.new_full((len(counts), int(counts.max())), OUT)
    # the mask fills row by row, which is the lines' order
    table[torch.arange(table.shape[1], device=counts.device) < counts[:, None]] = scores
    return table


def read(kept: np.ndarray, asked: Asked) -> list[Answer]:
    """Scores [rows, choices] → the place of the best choice and its probability."""
    # back in the order of the rows
    chances = softmax(kept)[asked.in_order()]
    return [
        {"gold": gold, "prediction": int(row.argmax()), "score": float(row.max())}
        for gold, row in zip(asked.rows[asked.columns.label], chances, strict=True)
    ]
