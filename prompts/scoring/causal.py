"""Token sequences → log-probabilities by a causal model. Knows how to share work; knows no text.

A shared prefix goes through the model once, as a key-value cache. What follows it goes through as trees: one
pass for a context with all of its continuations, each node seeing its ancestors only (tree attention, Cai et
al. 2024). The head is computed at the needed nodes, in float32 whatever the trunk does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import DynamicCache

from finetune.models.load import POSITIONS
from prompts.scoring.prefix_tree import Scored, Segment, Tree, ancestors, batches, segments, trees

logger = logging.getLogger(__name__)
KEPT_ROWS = 256  # rows of the head's output, [rows, vocabulary], that are held at once
# attention over a multiple of so many keys takes two thirds of the time of others (torch's CPU kernel, bf16)
BLOCK = 16
FULL = 448  # tokens of a pass from which on more go no faster, in float32 on a CPU
Layers = list[tuple[torch.Tensor, torch.Tensor]]


class Causal:
    """Scores sequences with one causal model; falls back to whole sequences where a model can't share (and
    says so)."""

    def __init__(self, network: Any, batch_tokens: int = 2048, share: bool = True) -> None:
        self.network, self.batch_tokens = network.eval(), batch_tokens
        # an adapter's layers are inside the base; its wrapper has no trunk of its own
        bare: Any = network.get_base_model() if hasattr(network, "peft_config") else network
        self.trunk: Any = bare.base_model
        head: Any = bare.get_output_embeddings()
        self.vocabulary = head.weight.shape[0]
        # float32 once, and not at each call
        self.weight = head.weight.detach().float()
        self.bias = None if head.bias is None else head.bias.detach().float()
        config = bare.config.to_dict()
        self.longest = config.get("sliding_window")  # a tree's mask knows of no window
        self.positions = min(
            (config[name] for name in POSITIONS if isinstance(config.get(name), int)), default=0
        )
        slow = network.device.type == "cpu" and self.trunk.dtype == torch.float32
        # float32 has nothing of round numbers, and loses by padding what 16 bits do in no time
        self.block = 1 if slow else BLOCK
        self.full = FULL if slow else None
        self.kept: tuple[tuple[int, ...], Layers] = ((), [])  # the last prefix, and its keys and values
        self.share = share and self._agrees()

    def __call__(self, sequences: Sequence[Scored]) -> list[np.ndarray]:
        # nan until it is written: a place that was forgotten can't pass for a score
        """Log-probabilities of the scored tokens, float32 [tokens] for each sequence."""
        found = [np.full(len(s.ids) - s.start, np.nan, dtype=np.float32) for s in sequences]
        # beyond the window a tree would see what the model does not
        long = self.longest is not None and max((len(s.ids) for s in sequences), default=0) > self.longest
        with torch.inference_mode():
            if self.share and not long:
                self._descend(segments(sequences, self.batch_tokens), sequences, [], 0, found)
            else:
                self._whole(sequences, found)
        return found

    def distributions(self, contexts: Sequence[tuple[int, ...]]) -> np.ndarray:
        """Log-probabilities of the whole vocabulary after each context, float32 [contexts, vocabulary]."""
        rows = np.empty((len(contexts), self.vocabulary), dtype=np.float32)
        # rows of like length together, so that little is padded
        order = sorted(range(len(contexts)), key=lambda i: len(contexts[i]))
        with torch.inference_mode():
            for batch in batches([(len(contexts[i]), i) for i in order], self.batch_tokens):
                logits = self._logits([contexts[i] for i in batch])
                for row, index in enumerate(batch):
                    # the last token of a row, before its padding
                    rows[index] = logits[row, len(contexts[index]) - 1].float().log_softmax(-1).cpu().numpy()
        return rows

    def states(self, contexts: Sequence[tuple[int, ...]]) -> np.ndarray:
        """The trunk's state after each context, float32 [contexts, width]."""
        found: dict[int, np.ndarray] = {}
        order = sorted(range(len(contexts)), key=lambda i: len(contexts[i]))
        with torch.inference_mode():
            for batch in batches([(len(contexts[i]), i) for i in order], self.batch_tokens):
                hidden = self.trunk(
                    input_ids=self._tensor([contexts[i] for i in batch]), use_cache=False
                ).last_hidden_state
                found.update(
                    {
                        index: hidden[row, len(contexts[index]) - 1].float().cpu().numpy()
                        for row, index in enumerate(batch)
                    }
                )
        return np.stack([found[index] for index in range(len(contexts))])

    def _agrees(self) -> bool:
        """Whether sharing gives what the model itself says, tried on a small tree behind a small prefix."""
        # drawn with a seed: the answer must not change from run to run
        ids = torch.randint(0, self.vocabulary, (20,), generator=torch.Generator().manual_seed(0)).tolist()
        prefix, tail = tuple(ids[:6]), ids[6:]
        # branches that share some tokens, one that shares none, and scored tokens in the middle
        tried = [
            Scored((*prefix, *tail[:5]), 8),
            Scored((*prefix, *tail[:3], *tail[5:8]), 8),
            Scored((*prefix, *tail[8:12]), 8),
        ]
        shared = [np.zeros(len(s.ids) - s.start, dtype=np.float32) for s in tried]
        whole = [values.copy() for values in shared]
        with torch.inference_mode():
            self._whole(tried, whole)
            try:
                self._descend(Segment((), [], [Segment(prefix, [0, 1, 2], [])]), tried, [], 0, shared)
            # what families raise that take no 4-dimensional masks or no cache of this form
            except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
                logger.warning(
                    "%s can't share prefixes (%s): every sequence is scored whole",
                    type(self.network).__name__,
                    error,
                )
                return False
        # in the mean: single values in bf16 differ by more
        difference = float(np.abs(np.concatenate(shared) - np.concatenate(whole)).mean())
        # two orders of summing in 16 bits may be so far apart; wrong attention is further
        allowed = 1e-4 if next(self.network.parameters()).dtype == torch.float32 else 0.3
        # `not <=`, which nan doesn't pass
        if not difference <= allowed:
            name = type(self.network).__name__
            logger.warning(
                "%s: shared scores differ by %.3g: every sequence is scored whole", name, difference
            )
        return difference <= allowed

    def _descend(
        self, segment: Segment, sequences: Sequence[Scored], past: Layers, cut: int, found: list[np.ndarray]
    ) -> None:
        """Score a segment's own sequences behind its prefix, then those of the segments below."""
        if segment.tokens:
            past, cut = self._behind(segment.tokens, past), cut + len(segment.tokens)
        forest = sorted(
            trees(sequences, segment.members, cut, self.batch_tokens), key=lambda tree: len(tree.tokens)
        )
        # each row of a batch holds keys and values of the whole prefix
        held = max(
            1, 16 * self.batch_tokens // max(cut, 1)
        )  # rows whose copies of the prefix are held at once
        for batch in batches(
            [(self._width(len(tree.tokens), cut), i) for i, tree in enumerate(forest)],
            self.batch_tokens,
            held,
            self.full,
        ):
            self._score([forest[i] for i in batch], past, cut, found)
        for below in segment.below:
            self._descend(below, sequences, past, cut, found)

    def _behind(self, tokens: tuple[int, ...], past: Layers) -> Layers:
        """Keys and values of a prefix behind another, computed once, without the head."""
        # work comes in blocks of rows, and the same examples stand before those of the next one
        if not past and tokens == self.kept[0]:
            return self.kept[1]
        cache: Any = _cache(past, 1)
        self.trunk(input_ids=self._tensor([tokens]), past_key_values=cache, use_cache=True)
        found = [(layer.keys, layer.values) for layer in cache.layers]
        if not past:
            self.kept = (tokens, found)
        return found

    def _score(self, batch: list[Tree], past: Layers, cut: int, found: list[np.ndarray]) -> None:
        further: dict[str, Any] = {"past_key_values": _cache(past, len(batch))} if past else {}
        width = self._width(max(len(tree.tokens) for tree in batch), cut)
        if not all(tree.is_chain for tree in batch):
            # positions by depth: branches stand one behind the other in the row
            further["position_ids"] = self._tensor([tree.depths for tree in batch], width) + cut
            further["attention_mask"] = self._mask(batch, cut, width)
        # chains padded on the right need neither mask nor positions: no token sees what comes after it
        ids = self._tensor([tree.tokens for tree in batch], width)
        hidden = self.trunk(input_ids=ids, use_cache=bool(past), **further).last_hidden_state
        # nodes of several answers are computed once
        nodes = sorted({(row, node) for row, tree in enumerate(batch) for node, *_ in tree.wanted})
        place = {pair: i for i, pair in enumerate(nodes)}
        rows, columns = (torch.tensor(part, device=hidden.device) for part in zip(*nodes, strict=True))
        wanted = sorted(
            (place[row, node], token, i, j)
            for row, tree in enumerate(batch)
            # in the order of nodes, so that a part of the head's rows finds its own together
            for node, token, i, j in tree.wanted
        )
        # picked in the trunk's type, and cast after: the rows that count are few
        kept = hidden[rows, columns].float()
        # a few rows at a time: [nodes, vocabulary] in float32 would be gigabytes
        for first in range(0, len(nodes), KEPT_ROWS):
            part = functional.linear(kept[first : first + KEPT_ROWS], self.weight, self.bias).log_softmax(-1)
            here = [w for w in wanted if first <= w[0] < first + KEPT_ROWS]
            values = part[[w[0] - first for w in here], [w[1] for w in here]].cpu().numpy()
            for (_, _, i, j), value in zip(here, values, strict=True):
                found[i][j] = value

    def _mask(self, batch: list[Tree], cut: int, width: int) -> torch.Tensor:
        """What each node may see, as numbers added to attention: [rows, 1, width, cut + width]."""
        # itself at least, also in padding, whose softmax would have nothing to sum
        seen = torch.eye(width, dtype=torch.bool).repeat(len(batch), 1, 1)
        for row, tree in enumerate(batch):
            seen[row, : len(tree.tokens), : len(tree.tokens)] = torch.from_numpy(ancestors(tree))
        # everything of the prefix is seen by all
        seen = torch.cat([torch.ones(len(batch), width, cut, dtype=torch.bool), seen], dim=-1)
        dtype = next(self.trunk.parameters()).dtype
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
        return mask[:, None].to(self.trunk.device)

    def _width(self, tokens: int, cut: int) -> int:
        """What a row behind a prefix of `cut` tokens is padded to: whole blocks of keys, where that adds
        little."""
        whole = tokens + -(cut + tokens) % self.block
        # only where padding is a small part, and positions last
        return whole if tokens > 8 * self.block and cut + whole <= self.positions else tokens

    def _whole(self, sequences: Sequence[Scored], found: list[np.ndarray]) -> None:
        """Every sequence through the model's own forward, nothing shared."""
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].ids))
        for batch in batches([(len(sequences[i].ids), i) for i in order], self.batch_tokens):
            logits = self._logits([sequences[i].ids for i in batch])
            for row, index in enumerate(batch):
                ids, start = sequences[index].ids, sequences[index].start
                # the token before the first scored one predicts it
                kept = logits[row, start - 1 : len(ids) - 1].float().log_softmax(-1)
                found[index][:] = kept[range(len(ids) - start), list(ids[start:])].cpu().numpy()

    def _logits(self, rows: list[Sequence[int]]) -> torch.Tensor:
        """The model's own logits, [rows, time, vocabulary], less those of virtual tokens that a prompt method
        puts in front."""
        ids = self._tensor(rows)
        lengths = torch.tensor([len(row) for row in rows], device=ids.device)
        mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
        # from the right: a prompt method's virtual tokens stand in front
        return self.network(input_ids=ids, attention_mask=mask).logits[:, -ids.shape[1] :]

    def _tensor(self, rows: Sequence[Any], width: int = 0) -> torch.Tensor:
        """Rows padded on the right, to the longest or to `width`, with their own last token, which nothing
        looks at."""
        width = max(width, *map(len, rows))
        # its own token, and no padding's, which some vocabularies don't have
        return torch.tensor(
            [[*row, *row[-1:] * (width - len(row))] for row in rows], device=self.trunk.device
        )


def _cache(past: Layers, rows: int) -> DynamicCache:
    """A cache of its own for a batch, from keys and values of one row; the model appends to it."""
    return DynamicCache(
        # views: the batch's rows share the prefix's memory until the model appends
        [(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values in past]
    )
