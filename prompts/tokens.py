"""Rendered text → token ids, context and answer in one go. Knows tokenizers; knows no templates and no models.

An answer's tokens are those that hold one of its characters after the *whole* text was tokenised: tokenised apart, the
boundary can fall elsewhere, and every log-probability with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune.errors import InputError
from prompts.tree import Scored


def encode_pairs(tokenizer: Any, pairs: Sequence[tuple[str, str]], special: bool = True) -> list[Scored]:
    """(context, answer) → token ids of both, and where the answer begins.

    A text that begins with its answer gets a beginning-of-sequence token (end-of-sequence where there is none).

    Args:
        special: let the tokenizer add its special tokens; False for texts of a chat template, which hold them.

    Raises:
        InputError: an answer that no token holds.
    """
    if not pairs:
        return []
    texts = [context + answer for context, answer in pairs]
    encoded = tokenizer(texts, add_special_tokens=special, return_offsets_mapping=tokenizer.is_fast)
    found = []
    for index, (context, answer) in enumerate(pairs):
        ids = encoded["input_ids"][index]
        if tokenizer.is_fast:
            inside = [i for i, (_, end) in enumerate(encoded["offset_mapping"][index]) if end > len(context)]
            first, last = (inside[0], inside[-1] + 1) if inside else (0, 0)
        else:
            first, last = len(tokenizer(context, add_special_tokens=special)["input_ids"]), len(ids)
        if last <= first:
            raise InputError(f"The answer {answer!r} tokenises to nothing; name another word for its label")
        ids = ids[:last]
        if first == 0:
            first, ids = 1, [beginning(tokenizer), *ids]
        found.append(Scored(tuple(ids), first))
    return found


def beginning(tokenizer: Any) -> int:
    """The token that stands before a text which has nothing before it."""
    candidates = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id, tokenizer.pad_token_id)
    return next(token for token in candidates if token is not None)


def word_ids(tokenizer: Any, word: str) -> list[int]:
    """Tokens of a word that stands by itself.

    Raises:
        InputError: there are none, or the word is unknown to the vocabulary.
    """
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if not ids or (tokenizer.unk_token_id is not None and all(i == tokenizer.unk_token_id for i in ids)):
        what = "is unknown to the vocabulary" if ids else "tokenises to nothing"
        raise InputError(f"The answer {word!r} {what}; name another word for its label")
    return ids


def count_tokens(tokenizer: Any, text: str, special: bool = True) -> int:
    """Tokens of a text."""
    return len(tokenizer(text, add_special_tokens=special)["input_ids"])
