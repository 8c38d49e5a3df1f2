"""Chats that a library renders by itself → refused where their template leaves a part of one out. Knows rows
and tokenizers; knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from finetune.data.chat_contents import left_out, names_gone
from finetune.data.chats import MEND
from finetune.data.places import place_of
from finetune.errors import InputError
from finetune.templating import FAULTS


def check_rendered(rows: Dataset, sides: Sequence[str], processor: Any, where: str) -> None:
    """Every part of prompts with their answers, where they are chats, stands in what the tokenizer's template
    makes of them: TRL trains on that and looks for nothing.

    Args:
        sides: columns of answers, each of which goes behind `prompt`.
        where: what the rows are called in messages.

    Raises:
        InputError: a chat that the template refuses, or leaves a part of out, with its place.
    """
    for index, row in enumerate(rows):
        for side in sides:
            if isinstance(row["prompt"], list) and isinstance(row[side], list) and row[side]:
                reason = _reason([*row["prompt"], *row[side]], row.get("tools") or None, processor)
                if reason is not None:
                    raise InputError(f"The {where} {place_of(rows, index)}: {reason}. {MEND}")


def _reason(messages: list[dict[str, Any]], tools: Any, processor: Any) -> str | None:
    def text(said: list[dict[str, Any]], given: Any = tools) -> str:
        return processor.apply_chat_template(said, tools=given, tokenize=False)

    try:
        whole = text(messages)
        # the last answer is looked for in the whole: what TRL takes off as its prompt is TRL's own
        gone = left_out(messages, whole, whole)
        if gone is None and tools is not None and whole == text(messages, None):
            gone = "the column 'tools'"
    except FAULTS as error:
        return f"The chat template refuses it: {' '.join(str(error).split()).rstrip('.')}"
    gone = gone or names_gone(messages, text)
    return None if gone is None else f"The chat template does not render {gone}"
