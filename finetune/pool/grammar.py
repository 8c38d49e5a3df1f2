"""What a text must obey while it is written: JSON, a JSON schema, a regular expression or one of some
choices. Knows llguidance and a tokenizer; knows no models and no requests."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.errors import InputError

LARGEST = 65_536  # characters of a schema


class Matcher:
    """Where one text stands in its grammar."""

    def __init__(self, matcher: Any, ends: set[int]) -> None:
        self._matcher, self._ends = matcher, sorted(ends)

    def allowed(self, logits: Tensor) -> Tensor:
        """Logits [vocabulary] with those of tokens that the grammar forbids at minus infinity."""
        # After the last token nothing but the end may follow: all masked would leave no chance to draw from.
        if self._matcher.is_stopped():
            bits = torch.zeros(len(logits), dtype=torch.bool)
            bits[self._ends] = True
        else:
            packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            # One bit a token, lowest first. The mask covers whole words of 32, more or fewer than the logits.
            found = torch.from_numpy(np.unpackbits(packed, bitorder="little").astype(bool))[: len(logits)]
            bits = torch.nn.functional.pad(found, (0, len(logits) - len(found)))
        if self._matcher.is_error():
            raise InputError(f"The grammar can't go on: {self._matcher.get_error()[:200]}")
        return logits.masked_fill(~bits, float("-inf"))

    def take(self, token: int) -> bool:
        """Go on by a token; gives back whether the text is complete and can't grow."""
        self._matcher.consume_token(token)
        return bool(self._matcher.is_stopped())


class Grammars:
    """Grammars over one tokenizer's tokens.

    Args:
        size: of the model's vocabulary.
        ends: ids of the tokens that end a text.
    """

    def __init__(self, processor: Any, size: int, ends: set[int]) -> None:
        self.processor, self.size, self.ends = processor, size, ends
        self._tokenizer: Any = None
        self._turn = threading.Lock()

    def json(self, schema: dict[str, Any] | None = None) -> Callable[[], Matcher]:
        """JSON that a schema allows; without one, any object.

        Raises:
            InputError: a schema that can't be followed, or one beyond the limits.
        """
        text = json.dumps({"type": "object"} if schema is None else schema)
        if len(text) > LARGEST:
            raise InputError(f"The schema has {len(text)} characters; {LARGEST} at most")
        library = _library()
        # between its parts a model may write blanks for ever; one blank is enough for any reader
        options = {"whitespace_flexible": True, "whitespace_pattern": r"[\x20\x0A]?"}
        return self._made(library.LLMatcher.grammar_from_json_schema(text, overrides=options), "schema")

    def regex(self, pattern: str) -> Callable[[], Matcher]:
        """A text that the whole of a regular expression matches.

        Raises:
            InputError: an expression that can't be followed.
        """
        return self._made(_library().LLMatcher.grammar_from_regex(pattern), "regular expression")

    def choice(self, texts: Sequence[str]) -> Callable[[], Matcher]:
        """One of these texts."""
        rules = " | ".join(json.dumps(text) for text in texts)
        return self._made(_library().LLMatcher.grammar_from_lark(f"start: {rules}"), "choice")

    def _made(self, grammar: str, what: str) -> Callable[[], Matcher]:
        library, tokenizer = _library(), self._whole()
        # The library's messages quote the whole grammar otherwise.
        limits = library.LLParserLimits(verbose_errors=False)

        def fresh() -> Matcher:
            # One for each text: a matcher moves on with every token.
            matcher = library.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
            if matcher.is_error():
                raise InputError(f"The {what} can't be followed: {matcher.get_error()[:200]}")
            return Matcher(matcher, self.ends)

        fresh()  # what is wrong is said before anything is written
        return fresh

    def _whole(self) -> Any:
        from llguidance.hf import from_tokenizer

        # Held while it is made: it takes a pass over the vocabulary, and two requests would both do it.
        with self._turn:
            if self._tokenizer is None:
                try:
                    ends = sorted(self.ends)
                    self._tokenizer = from_tokenizer(
                        self.processor, max(self.size, len(self.processor)), ends
                    )
                except Exception as error:  # the library's own, of no common class
                    raise InputError(f"No grammar can be held over this base's tokenizer: {error}") from error
            return self._tokenizer


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise InputError("Grammars need the package llguidance; install the extra 'serve'") from error
    return llguidance
