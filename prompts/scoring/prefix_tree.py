"""Token sequences → what is computed once: shared prefixes, and trees of what follows them. Knows integers;
knows no model.

Sequences that stand side by side in sorted order share the most, so that sorting them finds every shared
prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

MIN_PREFIX = 32  # a shorter prefix costs about as much to look up as to compute again
SPARE = 0.02  # of a pass's tokens that may be padding where it is full


@dataclass(frozen=True)
class Scored:
    """A token sequence whose tokens from `start` on are to be scored; start is 1 or more."""

    ids: tuple[int, ...]
    start: int


@dataclass
class Tree:
    """Sequences with their common beginnings merged; the last token of a sequence needs no node, as nothing
    follows it.

    Attributes:
        tokens, parents, depths: one entry a node; the parent of a root is -1; depth counts from the tree's
            first token.
        wanted: (node, token, sequence, place): the log-probability of `token` after `node` is the `place`-th
            of `sequence`.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    wanted: list[tuple[int, int, int, int]] = field(default_factory=list)

    @property
    def is_chain(self) -> bool:
        return all(parent == node - 1 for node, parent in enumerate(self.parents))


@dataclass
class Segment:
    """Sequences that begin with the same `tokens` after those of the segment above; `members` end here,
    `below` share more."""

    tokens: tuple[int, ...]
    members: list[int]
    below: list[Segment]


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common prefix: `common([1, 2, 3], [1, 2, 4]) == 2`."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    # By halves: slices are compared in C, a loop over tokens in Python.
    low, high = 0, length  # the prefix of length `low` is common, that of length `high` is not
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


def segments(sequences: Sequence[Scored], worth: int) -> Segment:
    """The shared prefixes that pay: at least MIN_PREFIX tokens, with at least `worth` different tokens after
    them.

    No prefix reaches the token before a sequence's first scored one, so that all scored tokens lie in trees.
    """
    # Sorted, any group with a common beginning is a run of neighbours, and what a run shares is the least of
    # what its neighbours share: no trie of single tokens is built, which would be an object for each of
    # hundreds of thousands.
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].ids)
    shared = [0, *(common(sequences[a].ids, sequences[b].ids) for a, b in pairwise(order))]
    # Tokens that each adds to the one before it; sums over a run in one subtraction.
    fresh = np.cumsum([0, *(len(sequences[i].ids) - shared[k] for k, i in enumerate(order))])
    top = Segment((), [], [])
    work = [(top, 0, 0, len(order))]  # (segment above, its end, first, last + 1)
    while work:
        above, end, first, last = work.pop()
        # The token before the first scored one predicts it, so that its own logits are needed: a prefix is
        # computed without any.
        reach = min(sequences[i].start for i in order[first:last]) - 1
        split = min(shared[first + 1 : last], default=len(sequences[order[first]].ids))
        # Of the run's first sequence only what lies behind the split counts, whatever it shared with the run
        # before.
        after = int(fresh[last] - fresh[first]) + shared[first] - split
        if last - first < 2 or after < worth:
            above.members += order[first:last]
            continue
        # A shorter stretch is left with what follows it: each segment is a pass of its own over the model.
        if min(reach, split) - end >= MIN_PREFIX:
            cut = min(reach, split)
            above.below.append(Segment(sequences[order[first]].ids[end:cut], [], []))
            above, end = above.below[-1], cut
        # They share scored tokens too, which trees take.
        if split > reach:
            above.members += order[first:last]
            continue
        # A stack and no recursion: a thousand examples in a row would be a thousand levels.
        edges = [first, *(k for k in range(first + 1, last) if shared[k] == split), last]
        work += [(above, end, a, b) for a, b in reversed(list(pairwise(edges)))]
    return top


def trees(sequences: Sequence[Scored], members: Sequence[int], cut: int, largest: int) -> list[Tree]:
    """Trees over what follows the first `cut` tokens; sequences that share half of their tokens stand in one
    tree.

    Args:
        largest: number of nodes after which a new tree is begun.
    """
    order = sorted(members, key=lambda i: sequences[i].ids)
    found: list[Tree] = []
    path: list[int] = []  # nodes of the sequence before
    before: tuple[int, ...] = ()
    for index in order:
        ids, start = sequences[index].ids[cut:], sequences[index].start - cut
        same = common(before, ids)
        if (
            not found
            # In a tree every node pays for a mask over all others; sequences with little in common are
            # in sorted order the nearest relative stands just before
            # cheaper apart.
            or 2 * same < max(len(ids), len(before))
            or len(found[-1].tokens) + len(ids) - same > largest
        ):
            found.append(Tree())
            path, same = [], 0
        # nodes that both share; the rest of the path was the sequence before's
        path = path[: min(same, len(path))]
        _insert(found[-1], ids, path)
        # the token at t is predicted by the node before it
        found[-1].wanted += [(path[t - 1], ids[t], index, t - start) for t in range(start, len(ids))]
        before = ids
    return found


def _insert(tree: Tree, ids: Sequence[int], path: list[int]) -> None:
    """Add nodes for all but the last of `ids`; `path` holds those that are there and grows by the new
    ones."""
    for depth in range(len(path), len(ids) - 1):
        tree.parents.append(path[-1] if path else -1)
        tree.tokens.append(ids[depth])
        tree.depths.append(depth)
        path.append(len(tree.tokens) - 1)


def ancestors(tree: Tree) -> np.ndarray:
    """Which nodes each node sees: its ancestors and itself; bool [nodes, nodes]."""
    seen = np.eye(len(tree.tokens), dtype=bool)
    for node, parent in enumerate(tree.parents):
        if parent >= 0:
            # Parents come before their children, so that one pass is enough.
            seen[node] |= seen[parent]
    return seen


def batches(
    sized: list[tuple[int, int]], tokens: int, rows: int | None = None, full: int | None = None
) -> list[list[int]]:
    """(size, item), smallest first → batches of at most `tokens` after padding (a larger item stands
    alone).

    Args:
        full: tokens of a pass from which on more go no faster: padding is loss alone there, and kept SPARE.
    """
    found: list[list[int]] = []
    own = 0  # tokens of the last batch without its padding
    for size, item in sized:
        wide = size * (len(found[-1]) + 1) if found else 0
        padded = bool(full) and own >= full and wide - own - size > SPARE * wide
        if not found or wide > tokens or padded or (rows and len(found[-1]) >= rows):
            found.append([])
            own = 0
        found[-1].append(item)
        own += size
    return found
