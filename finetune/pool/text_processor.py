"""Texts ↔ tokens for many threads: each text within its own limit, chats by the tokenizer's template. Knows a
tokenizer; knows no adapters and no models."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from finetune.data.chat_contents import names_gone
from finetune.data.encode import as_columns
from finetune.errors import InputError
from finetune.templating import FAULTS, Limits, render_chat

BOUNDS = Limits(seconds=2.0)
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
        # Fast tokenizers keep cutting and padding as state: two threads at once fail with "Already borrowed".
        with self._turn:
            # One call for each limit and not for each text: a batch of equal limits is one.
            for limit in dict.fromkeys(limits) if truncate else (None,):
                chosen = [i for i, own in enumerate(limits) if limit in (None, own)]
                cut = {} if limit is None else {"truncation": True, "max_length": limit}
                columns = as_columns([texts[i] for i in chosen], self.processor)
                found = self.processor(*columns, is_split_into_words=split, **cut)
                for place, index in enumerate(chosen):
                    words = found.word_ids(place) if split else []
                    rows[index] = ({key: value[place] for key, value in found.items()}, words)
            # On the right, whatever the tokenizer was set to: callers cut rows by their length.
            whole = self.processor.pad(
                [row for row, _ in rows], padding=True, padding_side="right", return_tensors="pt"
            )
        lengths = whole["attention_mask"].sum(1).tolist()
        for index, (length, limit) in enumerate(zip(lengths, limits, strict=True)):
            if length > limit:
                raise InputError(
                    f"Text {index} has {length} tokens, its adapter and base take {limit}; shorten it, or "
                    "set "
                    "truncate"
                )
        return dict(whole), [words for _, words in rows]

    def check(self, place: int, text: Any) -> None:
        """A text (or pair, or tokens) holds something.

        Raises:
            InputError: it doesn't.
        """
        if isinstance(text, list) and text:  # tokens
            return
        for part in text if isinstance(text, tuple) else (text,):
            if not isinstance(part, str) or not part.strip():
                raise InputError(f"Text {place} is empty; wanted one or more words")

    def ids(self, text: str, special: bool = True) -> list[int]:
        """Tokens of one text, with what the tokenizer adds around it or without."""
        with self._turn:
            return self.processor(text, add_special_tokens=special)["input_ids"]

    def decode(self, ids: list[int], special: bool = False) -> str:
        """The text of tokens, without special ones unless they are asked for."""
        with self._turn:
            return self.processor.decode(ids, skip_special_tokens=not special)

    def chat(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()) -> str:
        """A chat as the text that its answer continues.

        Raises:
            InputError: the tokenizer has no chat template, or the template refuses the messages, leaves the
                tools out, or takes too long over them.
        """
        template = self._template(tools)
        try:
            text = self._rendered(template, messages, tools)
            # A template that drops them would answer as though no tool were there, and nobody would know.
            if tools and text == self._rendered(template, messages, ()):
                raise InputError(
                    "This base's chat template says nothing of tools; wanted a request without them"
                )
        except FAULTS as error:
            raise InputError(f"The chat template refuses these messages: {error}") from error
        return text

    def names_unread(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()) -> bool:
        """Whether the template leaves out who speaks (OpenAI's `name`) in a chat that it takes."""
        template = self._template(tools)
        return names_gone(messages, lambda said: self._rendered(template, said, tools)) is not None

    def _template(self, tools: Sequence[dict[str, Any]]) -> str:
        template = self.processor.chat_template
        if isinstance(template, dict):
            template = template.get("tool_use" if tools else "default") or template.get("default")
        if template is None:
            raise InputError("This base has no chat template; ask for completions of plain text")
        return template

    def _rendered(
        self, template: str, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]
    ) -> str:
        # Templates write the marks themselves, so that the text is encoded without special tokens after it.
        marks = {key: str(value) for key, value in self.processor.special_tokens_map.items()}
        given = marks | {"messages": list(messages), "add_generation_prompt": True}
        return render_chat(template, given | {"tools": list(tools) or None}, BOUNDS)[0]
