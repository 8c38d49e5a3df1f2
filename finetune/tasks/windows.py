"""Texts that are longer than a model reads → windows that share tokens, and what a tokenizer puts around
them. Knows tokenizers.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from finetune.errors import InputError


def split_windows(
    firsts: Sequence[int], total: int, room: int, stride: int
) -> list[tuple[int, int, int, int]]:
    """Windows of at most `room` of `total` tokens that begin and end with whole words and share about
    `stride` tokens.

    Args:
        firsts: where words begin, ascending.

    Returns:
        (start, end, owned from, owned to) each: every token is owned by one window; of what two share, each
        owns half.
    """
    spans, start = [], 0
    while total - start > room:
        place = bisect.bisect_right(firsts, start + room) - 1
        # a word longer than the room is cut, else the window would not move
        end = firsts[place] if place >= 0 and firsts[place] > start else start + room
        spans.append((start, end))
        # at least one token on, so that windows get to the end
        place = bisect.bisect_left(firsts, max(end - stride, start + 1))
        # never behind the window before: no token falls between two
        start = min(firsts[place], end) if place < len(firsts) else end
    spans.append((start, total))
    edges = [0]
    for (_, before), (after, _) in itertools.pairwise(spans):
        # in the middle of what two share, each word has as much around it on either side as can be
        place = bisect.bisect_left(firsts, (after + before) // 2)
        edges.append(min(firsts[place], before) if place < len(firsts) else before)
    edges.append(total)
    return [(start, end, edges[i], edges[i + 1]) for i, (start, end) in enumerate(spans)]


def shared_tokens(stride: int | None, max_length: int, room: int) -> int:
    """Tokens that windows share, a quarter of `max_length` where `stride` is None.

    Raises:
        InputError: fewer than none, or so many that no window gets on.
    """
    overlap = max_length // 4 if stride is None else stride
    # a window that shares all its tokens would stand still
    if not 0 <= overlap < room:
        raise InputError(
            f"--stride {overlap} leaves nothing of {room} tokens; set --stride lower or --max_length higher"
        )
    return overlap


def want_places(processor: PreTrainedTokenizerBase) -> None:
    """The tokenizer says where its tokens stand in the text.

    Raises:
        InputError: it doesn't.
    """
    if not processor.is_fast:
        raise InputError(
            f"{type(processor).__name__} keeps no places of tokens; wanted a fast tokenizer. Set "
            "--model_name_or_path"
        )


def frame(processor: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Special tokens that the tokenizer puts in front of a text and behind it.

    Raises:
        InputError: a tokenizer that doesn't say where its tokens stand in the text, or knows no letter.
    """
    want_places(processor)
    # asked of the tokenizer: templates of special tokens differ, and lists of families go stale
    encoded = processor("a", return_special_tokens_mask=True)
    inner = [position for position, special in enumerate(encoded["special_tokens_mask"]) if not special]
    if not inner:
        raise InputError(
            f"{type(processor).__name__} has no token for the letter a; set --model_name_or_path to another "
            "model"
        )
    return encoded["input_ids"][: inner[0]], encoded["input_ids"][inner[-1] + 1 :]
