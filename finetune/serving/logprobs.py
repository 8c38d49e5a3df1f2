"""What was noted of tokens → OpenAI's two forms of it. Knows tokens' texts; knows no models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from finetune.pool.sampling import Noted

AROUND = 8  # tokens before one that may change how it reads


class TokenWords:
    """Texts of tokens as they stand in a text, told one after the other.

    Args:
        decode: tokens → their text, special ones too.
        as_ids: call each token by its number (vLLM's `return_tokens_as_token_ids`).
    """

    def __init__(self, decode: Callable[[list[int]], str], as_ids: bool = False) -> None:
        self.decode, self.as_ids = decode, as_ids
        self.offset, self._before = 0, list[int]()

    def read(self, token: int) -> str:
        """A token in its place in place of the next one."""
        if self.as_ids:
            return f"token_id:{token}"
        # Among the tokens before it: alone, many tokenizers drop a leading blank.
        return self.decode([*self._before, token])[len(self.decode(self._before)) :]

    def go_on(self, token: int) -> None:
        """The token is the next one."""
        self.offset += len(self.decode([*self._before, token])) - len(self.decode(self._before))
        # The last few alone: the whole text would be decoded anew for each token.
        self._before = [*self._before, token][-AROUND:]


def of_completion(noted: Sequence[Noted], words: TokenWords) -> dict[str, list[Any]]:
    """Parallel lists; the likeliest tokens hold the chosen one too."""
    found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for one in noted:
        own = words.read(one.token)
        found["tokens"].append(own)
        # None is a text's first token, before which there are no logits.
        found["token_logprobs"].append(one.logprob)
        top = {words.read(token): value for token, value in one.top}
        # OpenAI's form is a mapping by text, in which tokens of equal text are one.
        found["top_logprobs"].append(None if one.logprob is None else top | {own: one.logprob})
        found["text_offset"].append(words.offset)
        words.go_on(one.token)
    return found


def of_chat(noted: Sequence[Noted], words: TokenWords) -> dict[str, Any]:
    """One object a token."""
    content = []
    for one in noted:
        top = [_entry(words.read(token), value) for token, value in one.top]
        content.append(_entry(words.read(one.token), one.logprob) | {"top_logprobs": top})
        words.go_on(one.token)
    return {"content": content, "refusal": None}


def _entry(text: str, value: float | None) -> dict[str, Any]:
    # A token may be a part of a character; clients put characters together from bytes.
    return {"token": text, "logprob": value, "bytes": list(text.encode("utf-8", "replace"))}
