"""Rendered text → token ids, context and answer in one go. Knows tokenizers; knows no templates and no
models.

An answer's tokens are those that hold one of its characters after the *whole* text was tokenised: tokenised
apart, the boundary can fall elsewhere, and every log-probability with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune.errors import InputError
from prompts.scoring.prefix_tree import Scored


def encode_pairs(tokenizer: Any, pairs: Sequence[tuple[str, str]], special: bool = True) -> list[Scored]:
    """(context, answer) → token ids of both, and where the answer begins.

    A text that begins with its answer gets a beginning-of-sequence token (end-of-sequence where there is
    none). Of answers to the same context, those after the first are tokenised with the context's last words
    alone, where this was seen to change nothing.

    Args:
        special: let the tokenizer add its special tokens; False for texts of a chat template, which hold
            them.

    Raises:
        InputError: an answer that no token holds.
    """
    # of answers to one context the first is tokenised whole
    firsts: dict[str, int] = {}
    for index, (context, _) in enumerate(pairs):
        firsts.setdefault(context, index)
    whole = dict(
        zip(firsts.values(), _encode(tokenizer, [pairs[i] for i in firsts.values()], special), strict=True)
    )
    cuts = {context: _last_words(context) for context in firsts} if tokenizer.is_fast else {}
    others = [i for i in range(len(pairs)) if i not in whole]
    tails = _tails(tokenizer, [pairs[i] for i in others], cuts)
    # the first answer's tail, which has to come out as the whole did: else the cut changed something
    checks = _tails(tokenizer, [pairs[firsts[pairs[i][0]]] for i in others], cuts)
    for index, tail, check in zip(others, tails, checks, strict=True):
        ids, start = whole[firsts[pairs[index][0]]]
        if (
            tail is None
            or check is None
            or ids[len(ids) - len(check[0]) :] != check[0]
            # also the place of the answer in it
            or len(ids) - len(check[0]) + check[1] != start
        ):
            whole[index] = _encode(tokenizer, [pairs[index]], special)[0]
        else:
            # what the first has before its tail stands before each
            head = ids[: len(ids) - len(check[0])]
            whole[index] = (head + tail[0], len(head) + tail[1])
    found = []
    for index, (_, answer) in enumerate(pairs):
        ids, start = whole[index]
        if len(ids) <= start:
            raise InputError(f"The answer {answer!r} tokenises to nothing; name another word for its label")
        # nothing stands before the first token to predict it by
        if start == 0:
            start, ids = 1, [beginning_ids(tokenizer), *ids]
        found.append(Scored(tuple(ids), start))
    return found


def _encode(tokenizer: Any, pairs: Sequence[tuple[str, str]], special: bool) -> list[tuple[list[int], int]]:
    """Ids up to the answer's last token, and the place of its first (the ids' length where it has none)."""
    if not pairs:
        return []
    texts = [context + answer for context, answer in pairs]
    encoded = tokenizer(
        texts,
        add_special_tokens=special,
        return_offsets_mapping=tokenizer.is_fast,
        return_attention_mask=False,
    )
    found = []
    for index, (context, _) in enumerate(pairs):
        ids = encoded["input_ids"][index]
        if tokenizer.is_fast:
            # by the end of each token: one that begins in the context and ends in the answer is the answer's
            inside = [i for i, (_, end) in enumerate(encoded["offset_mapping"][index]) if end > len(context)]
            first, last = (inside[0], inside[-1] + 1) if inside else (len(ids), len(ids))
        else:
            # slow tokenizers know no offsets: the context's own length must do
            first, last = len(tokenizer(context, add_special_tokens=special)["input_ids"]), len(ids)
        found.append((ids[:last], first))
    return found


def _tails(
    tokenizer: Any, pairs: Sequence[tuple[str, str]], cuts: dict[str, int]
) -> list[tuple[list[int], int] | None]:
    """The same for the context's last words and the answer; None where a context has no place to cut."""
    places = [cuts.get(context, 0) for context, _ in pairs]
    cut = [(context[place:], answer) for (context, answer), place in zip(pairs, places, strict=True) if place]
    encoded = dict(
        # each text once, and special tokens none: they stand at the front, which was cut off
        zip(dict.fromkeys(cut), _encode(tokenizer, list(dict.fromkeys(cut)), special=False), strict=True)
    )
    return [
        encoded[context[place:], answer] if place else None
        for (context, answer), place in zip(pairs, places, strict=True)
    ]


def _last_words(context: str) -> int:
    """Place of a space between two words some way before the end; 0 where there is none."""
    # not too near the answer, where it may change tokens, nor so far that nothing is saved
    for place in range(len(context) - 16, max(len(context) - 80, 0), -1):
        # between two letters: a space beside a sign may be part of a token
        if context[place] == " " and context[place - 1].isalpha() and context[place + 1].isalpha():
            return place
    return 0


def beginning_ids(tokenizer: Any) -> int:
    """The token that stands before a text which has nothing before it."""
    # encoders have a beginning under another name
    candidates = (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.cls_token_id,
        tokenizer.pad_token_id,
    )
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
