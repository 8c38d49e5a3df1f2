"""Answers to one prompt in one line, the prompt computed once. Knows how models are called; knows no loss.

TRL hands the sides of a pair, or the answers of a group, to the model as rows, prompt and all. Here they
become one line

    p₀ … pₖ₋₁ │ pₖ  chosen │ pₖ  rejected

in which each answer sees the prompt and itself, at the positions that it would have alone. The prompt's last
token stands in each branch, since it predicts the answer's first. What comes back is laid out as TRL's rows,
so that every loss stays TRL's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from finetune.alignment.rollout import alike, positions
from finetune.loss import IGNORED
from finetune.models.heads import core, unwrapped

ATTENTION = ("sdpa", "eager", "products")  # those that take any mask


class SharedPrompt:
    """A model that is called as TRL calls it: rows with labels → numbers a token.

    Args:
        lay_out: ids, mask, labels → the lines to compute instead, or None to compute the rows as they are.
    """

    def __init__(self, model: Any, lay_out: Callable[[Tensor, Tensor, Tensor], Line | None]) -> None:
        self.model, self.lay_out = model, lay_out

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **options: Any) -> Any:
        line = self.lay_out(input_ids, attention_mask, labels)
        if line is None:
            return self.model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **options)
        # A mask to be added: 0 where a token may look. Heads get one dimension, shared by all.
        seen = torch.zeros(line.seen.shape, dtype=core(self.model).dtype, device=input_ids.device)
        seen = seen.masked_fill(~line.seen, torch.finfo(seen.dtype).min)[:, None]
        outputs = self.model(
            input_ids=line.ids,
            attention_mask=seen,
            position_ids=line.positions,
            labels=line.labels,
            **options,
        )
        shape = line.labels[:, 1:].shape
        # Only what is there is given on, as a dataclass of outputs takes it.
        told = {f.name: outputs[f.name] for f in fields(outputs) if outputs.get(f.name) is not None}
        return type(outputs)(
            # What has a number for each predicted token goes back to rows; losses and the like stay.
            **{name: line.rows(value) if value.shape == shape else value for name, value in told.items()}
        )


class Line:
    """Rows of one prompt as one line each: ids, labels, positions [lines, time], seen [lines, time, time]
    (true where a token may look).

    Args:
        at: the row and the column that each token comes from, [lines, time] each.
        branch: 0 for the prompt, 1, 2, ... for its answers, -1 for padding, [lines, time].
        ids, mask, labels: [rows, width].
    """

    def __init__(
        self, at: tuple[Tensor, Tensor], branch: Tensor, ids: Tensor, mask: Tensor, labels: Tensor
    ) -> None:
        self.ids = ids[at].masked_fill(branch < 0, 0)
        self.positions = positions(mask)[at].masked_fill(branch < 0, 0)
        # The prompt teaches nothing, its last token in each branch neither.
        self.labels = labels[at].masked_fill(branch < 1, IGNORED)
        time = torch.arange(branch.shape[1], device=ids.device)
        # A token sees the shared prompt and its own branch, never another answer.
        kin = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
        self.seen = kin & (time[None, None, :] <= time[None, :, None])
        # where each label of the rows stands in the line
        self._shape, self._at = labels.shape, (*at, self.labels.ne(IGNORED))

    def rows(self, values: Tensor) -> Tensor:
        """Numbers a predicted token of the lines, [lines, time - 1] → of TRL's rows, [rows, width - 1], 0
        elsewhere.
        """
        rows, source, labelled = self._at
        whole = values.new_zeros(self._shape[0], self._shape[1] - 1)
        # A shift by one: the number at a place is of the token after it.
        return whole.index_put((rows[labelled], source[labelled] - 1), values[labelled[:, 1:]])


def pair_lines(ids: Tensor, mask: Tensor, labels: Tensor) -> Line | None:
    """The layout of a batch [chosen; rejected], padded on the right; None where two sides don't begin
    with one prompt.
    """
    pairs = len(ids) // 2
    lengths = mask.sum(1)
    # A row without labels is all prompt.
    prompts = torch.where(labels.ne(IGNORED).any(1), labels.ne(IGNORED).int().argmax(1), lengths)
    width = int(prompts.max())
    column = torch.arange(width, device=ids.device)
    # Beyond a pair's own prompt nothing is compared.
    same = (ids[:pairs, :width] == ids[pairs:, :width]) | (column >= prompts[:pairs, None])
    # Pairs that don't begin alike go as two rows; one of them sends the whole batch that way.
    if bool((prompts[:pairs] != prompts[pairs:]).any()) or bool((prompts == 0).any()) or not bool(same.all()):
        return None
    return _joined([(i, pairs + i) for i in range(pairs)], prompts.tolist(), ids, mask, labels)


def group_lines(ids: Tensor, mask: Tensor, labels: Tensor, *, prompt: int, wide: int) -> Line | None:
    """The layout of answers of which several share a prompt, in any order; None where rows cost less.

    Args:
        prompt: columns of the prompts, which are padded on the left; answers follow, padded on the right.
        wide: the model's width, by which products are told from attention.
    """
    first, group = alike(ids[:, :prompt], mask[:, :prompt])
    groups = [[row for row, one in enumerate(group) if one == place] for place in range(len(first))]
    real = mask.sum(1)
    # a prompt of its own token at least, and no hole, whose place a line would close
    column = torch.arange(ids.shape[1], device=ids.device)
    ends = torch.where(mask.bool(), column, -1).amax(1) + 1
    starts = mask.argmax(1)
    if not bool(mask[:, prompt - 1].all()) or not bool((ends - starts == real).all()):
        return None
    line = _joined(groups, [prompt] * len(ids), ids, mask, labels)
    # Products grow with the tokens (24 · wide² a layer), attention with their square (4 · wide): a group of
    # long answers to a short prompt costs more together than apart.
    costs = [rows * time * (6 * wide + time) for rows, time in (line.ids.shape, ids.shape)]
    return line if costs[0] < costs[1] else None


def _joined(
    groups: Sequence[Sequence[int]], prompts: Sequence[int], ids: Tensor, mask: Tensor, labels: Tensor
) -> Line:
    """A line for each group of rows; row i's prompt ends before column prompts[i]."""
    starts, lengths = mask.argmax(1).tolist(), mask.sum(1).tolist()
    rows, sources, branches = [], [], []
    for group in groups:
        shared = range(starts[group[0]], prompts[group[0]] - 1)
        # The prompt's last token stands in every branch: it predicts each answer's first.
        answers = [(row, range(prompts[row] - 1, starts[row] + lengths[row])) for row in group]
        rows.append([group[0]] * len(shared) + [row for row, own in answers for _ in own])
        sources.append([*shared, *(column for _, own in answers for column in own)])
        branches.append([0] * len(shared) + [i for i, (_, own) in enumerate(answers, 1) for _ in own])
    time = max(map(len, sources))

    def padded(lines: list[list[int]], filler: int) -> Tensor:
        return torch.tensor([line + [filler] * (time - len(line)) for line in lines], device=ids.device)

    return Line((padded(rows, 0), padded(sources, 0)), padded(branches, -1), ids, mask, labels)


@torch.no_grad()
def can_share(model: Any) -> bool:
    """Whether a model with TRL's fused head gives the same in one line as in two rows: told by what it does
    with a short pair.

    State-space layers, position schemes of their own and kernels that take no mask don't; a sliding window
    shows on long ones only, and made-up tokens have no place in a mask of two dimensions.
    """
    network, inner = core(model), unwrapped(model)
    if isinstance(inner, PeftModel) and inner.active_peft_config.is_prompt_learning:
        return False
    # A short probe can't show a window.
    if network.config._attn_implementation not in ATTENTION or network.config.get_text_config().to_dict().get(
        "sliding_window"
    ):
        return False
    # Sides of unequal length, so that padding is tried too.
    ids = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 6, 0]], device=network.device)
    labels = ids.masked_fill(
        torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 0, 1]], device=ids.device).bool(), IGNORED
    )
    pair = {
        "input_ids": ids,
        "attention_mask": ids.ne(0).long(),
        "labels": labels,
        "use_cache": False,
        "fused_lm_head": True,
    }
    apart, together = model(**pair).log_probs, SharedPrompt(model, pair_lines)(**pair).log_probs
    # bf16 products in another order differ in the third digit.
    exact = network.dtype == torch.float32 and not torch.is_autocast_enabled(network.device.type)
    return torch.allclose(apart, together, atol=1e-4 if exact else 5e-2, rtol=1e-3)
