"""Texts ↔ tokens for many threads: each text within its own limit, chats by the tokenizer's template. Knows a
tokenizer; knows no adapters and no models."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from finetune.data.encode import as_columns
from finetune.errors import InputError

Text = str | tuple[str, str]


class TextProcessor:
    """A tokenizer that threads take turns on.

    Args:
        context: most tokens that the base takes.
    """

    def __init__(self, processor: Any, context: int) -> None:
        self.processor, self.context = processor, context
        self._turn = threading.Lock()

    def encode(
        self, texts: Sequence[Any], limits: Sequence[int], truncate: bool, split: bool = False
    ) -> tuple[dict[str, Tensor], list[list[int | None]]]:
        """A padded batch [rows, time], and for each row which word every token is of.

        Args:
            limits: most tokens of each text. A text is cut at its own limit, whatever its neighbours' are.
            split: texts are lists of words.

        Raises:
            InputError: a text is longer than its limit and `truncate` isn't set.
        """
        rows: list[Any] = [None] * len(texts)
        with self._turn:
            for limit in dict.fromkeys(limits) if truncate else (None,):
                chosen = [i for i, own in enumerate(limits) if limit in (None, own)]
                cut = {} if limit is None else {"truncation": True, "max_length": limit}
                columns = as_columns([texts[i] for i in chosen], self.processor)
                found = self.processor(*columns, is_split_into_words=split, **cut)
                for place, index in enumerate(chosen):
                    words = found.word_ids(place) if split else []
                    rows[index] = ({key: value[place] for key, value in found.items()}, words)
            whole = self.processor.pad(
                [row for row, _ in rows], padding=True, padding_side="right", return_tensors="pt"
            )
        lengths = whole["attention_mask"].sum(1).tolist()
        for index, (length, limit) in enumerate(zip(lengths, limits, strict=True)):
            if length > limit:
                raise InputError(
                    f"Text {index} has {length} tokens, its adapter and base take {limit}; shorten it, or set "
                    "truncate"
                )
        return dict(whole), [words for _, words in rows]

    def ids(self, text: str, special: bool = True) -> list[int]:
        """Tokens of one text, with what the tokenizer adds around it or without."""
        with self._turn:
            return self.processor(text, add_special_tokens=special)["input_ids"]

    def decode(self, ids: list[int]) -> str:
        """The text of tokens, without special ones."""
        with self._turn:
            return self.processor.decode(ids, skip_special_tokens=True)

    def chat(self, messages: Sequence[dict[str, Any]]) -> str:
        """A chat as the text that its answer continues.

        Raises:
            InputError: the tokenizer has no chat template, or the template refuses the messages.
        """
        if self.processor.chat_template is None:
            raise InputError("This base has no chat template; ask for completions of plain text")
        try:
            return self.processor.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # whatever a template raises: the fault is the messages'
            raise InputError(f"The chat template refuses these messages: {error}") from error
