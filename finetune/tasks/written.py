"""Answers that a model writes: can it, what it wrote, and its figures. Knows models and texts; knows no
trainer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset

from finetune.errors import InputError
from finetune.methods import room
from finetune.metrics import texts
from finetune.models import generate
from finetune.tasks.options import TaskArguments
from finetune.tasks.task import Answer, Asked


def writer(
    options: TaskArguments, processor: Any, asked: Asked, batch_size: int
) -> Callable[[Any], list[Answer]]:
    """network → the answer that it writes to each raw row.

    Raises:
        InputError: options of generation that are no JSON mapping.
    """
    further = _further(options)

    def write(network: Any) -> list[Answer]:
        config = generate.generation_settings(
            network, processor, options.max_target_length, options.num_beams, further
        )
        # one prompt a row, in the order of the references
        features = asked.features.select(asked.in_order())
        ids = features["input_ids"][:]
        if "prompt" in features.column_names:
            # a decoder's inputs hold the answer too, which it must not see
            ids = [row[:n] for row, n in zip(ids, features["prompt"], strict=True)]
        written = generate.texts(network, ids, processor, config, batch_size)
        gold = references(asked.rows, asked.columns.label)
        return [
            {"gold": wanted, "prediction": text, "score": score}
            for wanted, (text, score) in zip(gold, written, strict=True)
        ]

    return write


def _further(options: TaskArguments) -> dict[str, Any]:
    try:
        return dict(json.loads(options.generation_kwargs or "{}"))
    except (ValueError, TypeError) as error:
        raise InputError(
            f"--generation_kwargs '{options.generation_kwargs}' is no JSON mapping ({error})"
        ) from error


def check_writing(options: TaskArguments, network: Any, processor: Any, features: Dataset) -> None:
    """What evaluation lets a model write can be written; said before the training that comes first.

    Raises:
        InputError: options that generation doesn't have, or prompts that leave too few positions for what
            follows them.
    """
    config = generate.generation_settings(
        network, processor, options.max_target_length, options.num_beams, _further(options)
    )
    # an encoder-decoder's own line begins with one start token
    prompt = max(features["prompt"][:]) if "prompt" in features.column_names else 1
    limit, needed = (
        room(network),
        prompt + config.max_new_tokens - 1,
    )  # the last token written is read by nobody
    # rotary positions go on behind the limit; a table of positions ends
    if limit is not None and needed > limit and "rope_parameters" not in network.config.to_dict():
        raise InputError(
            f"A prompt of {prompt} tokens and {config.max_new_tokens} new ones take {needed} positions and "
            f"the model has {limit}; "
            "set fewer new tokens, or a lower --max_length"
        )


def written_figures(answers: Sequence[Answer], labels: Sequence[str] | None) -> dict[str, Any]:
    """ROUGE, BLEU, chrF, length ratio, and what BLEU and chrF were computed with."""
    return (
        texts.text_figures([a["prediction"] for a in answers], [a["gold"] for a in answers])
        | texts.signatures()
    )


def references(rows: Dataset, column: str) -> list[str]:
    """Texts of a column; of chats, the assistant's last message."""
    values = rows[column][:]
    if values and isinstance(values[0], str):
        return list(values)
    return [
        next((m["content"] or "" for m in reversed(chat) if m["role"] == "assistant"), "") for chat in values
    ]
