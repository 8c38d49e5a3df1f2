"""Token ids → damaged token ids. Knows ids and positions; knows no tokenizer, no batch and no model.

Functions called `draw_...` are random and take the generator; what they draw is applied by functions without
chance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

from finetune.loss import IGNORED

Span = tuple[int, int]


def draw_places(rng: Generator, words: Sequence[int], rate: float, whole_words: bool = False) -> list[int]:
    """Positions of the tokens to predict: `rate` of those that may be masked, one at least (Devlin et al.
    2019, appendix A.2).

    Args:
        words: the number of the word each token belongs to, -1 for special tokens, which stay as they are.
            [time]
        whole_words: take all tokens of a word or none; a word that would go beyond the rate is passed over.

    Returns:
        positions in rising order; none where every token is special.
    """
    numbers = np.asarray(words)
    # special tokens are -1
    able = np.flatnonzero(numbers >= 0)
    if len(able) == 0:
        return []
    # at least one, or the row would have no loss
    wanted = max(1, round(rate * len(able)))
    if not whole_words:
        # a permutation's beginning is a draw without repetition
        return sorted(rng.permutation(able)[:wanted].tolist())
    chosen: list[int] = []
    # a word ends where the number changes, or where a token between is not in it
    members = np.split(able, np.flatnonzero((np.diff(numbers[able]) != 0) | (np.diff(able) > 1)) + 1)
    for index in rng.permutation(len(members)):
        # the first word always, or a row whose words are all longer than the rate would have no label
        if not chosen or len(chosen) + len(members[index]) <= wanted:
            chosen += members[index].tolist()
        if len(chosen) >= wanted:
            break
    return sorted(chosen)


def draw_replacements(
    rng: Generator, ids: Sequence[int], places: Sequence[int], mask: int, vocabulary: np.ndarray
) -> list[int]:
    """What stands at each place afterwards: 80 % mask, 10 % any other token of `vocabulary`, 10 % what stood
    there.
    """
    # one draw a place for what happens, and one for the token, used or not
    chance = rng.random(len(places))
    others = vocabulary[rng.integers(0, len(vocabulary), len(places))].tolist()
    return [
        mask if draw < 0.8 else other if draw < 0.9 else ids[place]
        for draw, other, place in zip(chance, others, places, strict=True)
    ]


def mask_tokens(
    ids: Sequence[int], places: Sequence[int], replacements: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Ids with `replacements` at `places`, and labels that hold the original there and -100 elsewhere."""
    damaged, labels = list(ids), [IGNORED] * len(ids)
    # labels are the undamaged ids, also where the token stays what it was
    for place, new in zip(places, replacements, strict=True):
        damaged[place], labels[place] = new, ids[place]
    return damaged, labels


def draw_spans(rng: Generator, length: int, rate: float, mean: float) -> list[Span]:
    """Spans to leave out: `rate` of `length` tokens in spans of `mean` tokens on average; no two touch and
    none comes first.

    Both numbers are exact, as in Raffel et al. 2020 (section 3.1.4): only where the spans are is random.

    Returns:
        (start, end) pairs in rising order; none for fewer than two tokens.
    """
    gone, spans = span_counts(length, rate, mean)
    if not spans:
        # the same number of kept and removed parts, kept first: so none touch and none is at the start
        return []
    kept_parts, gone_parts = _draw_parts(rng, length - gone, spans), _draw_parts(rng, gone, spans)
    ends = np.cumsum([kept + part for kept, part in zip(kept_parts, gone_parts, strict=True)]).tolist()
    return [(end - part, end) for end, part in zip(ends, gone_parts, strict=True)]


def span_counts(length: int, rate: float, mean: float) -> tuple[int, int]:
    """(tokens left out, spans) in a text of `length` tokens; a text of one token stays whole."""
    if length < 2:
        return 0, 0
    # a token stays at least, and no more spans than tokens on either side
    gone = min(max(round(length * rate), 1), length - 1)
    return gone, min(max(round(gone / mean), 1), gone, length - gone)


def _draw_parts(rng: Generator, total: int, parts: int) -> list[int]:
    """`total` cut at random into `parts` numbers of one or more, every such cut as likely as any other."""
    # cuts between tokens, drawn without repetition: no part is empty
    borders = (
        np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1 if parts > 1 else np.zeros(0, dtype=int)
    )
    return np.diff(np.concatenate([[0], borders, [total]])).astype(int).tolist()


def corrupt(
    ids: Sequence[int], spans: Sequence[Span], sentinels: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Each span becomes one sentinel; the target is every sentinel with its span, closed by one sentinel
    more.

    Args:
        spans: (start, end) pairs in rising order.
        sentinels: one more than there are spans; the last one closes the target.
    """
    damaged: list[int] = []
    target: list[int] = []
    before = 0
    for (start, end), sentinel in zip(spans, sentinels, strict=False):
        damaged += [*ids[before:start], sentinel]
        target += [sentinel, *ids[start:end]]
        before = end
    # the last sentinel closes the target, as T5 does
    return [*damaged, *ids[before:]], [*target, sentinels[len(spans)]]


def raw_length(input_length: int, rate: float, mean: float) -> tuple[int, int]:
    """How many tokens of text fill an input of `input_length` tokens, end token included, and how long the
    target then is.

    For 512 tokens, 15 % and a mean of 3: 568 and 114, the numbers of Raffel et al. 2020.
    """

    def lengths(raw: int) -> tuple[int, int]:
        gone, spans = span_counts(raw, rate, mean)
        return raw - gone + spans + 1, gone + spans + 1

    raw = max(input_length - 1, 1)
    while lengths(raw + 1)[0] <= input_length:
        raw += 1
    return raw, lengths(raw)[1]


def draw_infilling(rng: Generator, length: int, rate: float, mean: float) -> list[Span]:
    """Spans for text infilling (Lewis et al. 2020, section 2.2): lengths from Poisson(`mean`), together
    `rate` of `length`.

    A span of no tokens stands for a mask put where nothing is missing. Spans don't overlap and don't touch.
    """
    wanted = round(rate * length)
    sizes: list[int] = []
    while sum(sizes) < wanted:
        # the last span gives way to the rate; spans of no tokens go on being drawn
        sizes.append(min(int(rng.poisson(mean)), wanted - sum(sizes)))
    room = length - sum(sizes)
    sizes = sizes[: room + 1]  # a token that stays between any two
    # gaps in the text that stays: two spans in one gap would touch
    gaps = np.sort(rng.choice(room + 1, len(sizes), replace=False)) if sizes else np.zeros(0, dtype=int)
    spans: list[Span] = []
    gone = 0
    for gap, size in zip(gaps, sizes, strict=True):
        spans.append((int(gap) + gone, int(gap) + gone + size))
        gone += size
    return spans


def infill(ids: Sequence[int], spans: Sequence[Span], mask: int) -> list[int]:
    """Each span becomes one mask, whatever its length: how many tokens are missing has to be learnt too."""
    return corrupt(ids, spans, [mask] * (len(spans) + 1))[0]


def permute(ids: Sequence[int], ends: Sequence[int], order: Sequence[int]) -> list[int]:
    """Sentences in another order; `ends` says where each one ends, the last at the end of `ids`."""
    starts = [0, *ends[:-1]]
    return [token for index in order for token in ids[starts[index] : ends[index]]]


def delete(ids: Sequence[int], places: Sequence[int]) -> list[int]:
    """Ids without those at `places`: unlike with a mask, where something is missing has to be learnt too."""
    gone = set(places)
    return [token for place, token in enumerate(ids) if place not in gone]
