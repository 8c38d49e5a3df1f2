"""Two answers to one prompt in one line, the prompt computed once. Knows how models are called; knows no
loss.

TRL hands both sides of a pair to the model as two rows, prompt and all. Here they become one line

    p₀ … pₖ₋₁ │ pₖ  chosen │ pₖ  rejected

in which each answer sees the prompt and itself, at the positions that it would have alone. The prompt's last
token stands in each branch, since it predicts the answer's first. What comes back is laid out as TRL's two
rows, so that every loss stays TRL's own.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from finetune.alignment.rollout import positions
from finetune.loss import IGNORED
from finetune.models.heads import core, unwrapped

ATTENTION = ("sdpa", "eager", "products")  # those that take any mask


class SharedPrompt:
    """A model that is called as TRL's DPO calls it: rows [chosen; rejected] with labels → numbers a token."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **options: Any) -> Any:
        line = one_line(input_ids, attention_mask, labels)
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
            # What has a number for each predicted token goes back to two rows; losses and the like stay.
            **{name: line.rows(value) if value.shape == shape else value for name, value in told.items()}
        )


class Line:
    """Pairs as one line each: ids, labels, positions [pairs, time], seen [pairs, time, time] (true
    where a token may look).
    """

    def __init__(self, source: Tensor, ids: Tensor, labels: Tensor, places: Tensor, branch: Tensor) -> None:
        # Branch 2 reads from the rejected rows, which stand behind all chosen ones.
        rows = torch.arange(len(source), device=ids.device)[:, None] + len(source) * (branch == 2)
        self.ids = ids[rows, source].masked_fill(branch < 0, 0)
        self.positions = places[rows, source].masked_fill(branch < 0, 0)
        # The prompt teaches nothing, its last token in each branch neither.
        self.labels = labels[rows, source].masked_fill(branch < 1, IGNORED)
        time = torch.arange(source.shape[1], device=ids.device)
        # A token sees the shared prompt and its own branch, never the other answer.
        kin = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
        self.seen = kin & (time[None, None, :] <= time[None, :, None])
        # where each label of the two rows stands in the line
        self._shape, self._at = labels.shape, (rows, source, self.labels.ne(IGNORED))

    def rows(self, values: Tensor) -> Tensor:
        """Numbers a predicted token of the line, [pairs, time - 1] → of TRL's rows [2 × pairs, width
        - 1], 0 elsewhere.
        """
        rows, source, labelled = self._at
        whole = values.new_zeros(self._shape[0], self._shape[1] - 1)
        # A shift by one: the number at a place is of the token after it.
        return whole.index_put(
            (rows.expand_as(source)[labelled], source[labelled] - 1), values[labelled[:, 1:]]
        )


def one_line(ids: Tensor, mask: Tensor, labels: Tensor) -> Line | None:
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
    sources, branches = [], []
    for shared, chosen, rejected in zip(
        prompts[:pairs].tolist(), lengths[:pairs].tolist(), lengths[pairs:].tolist(), strict=True
    ):
        # The prompt's last token stands in both branches: it predicts each answer's first.
        sources.append([*range(shared - 1), *range(shared - 1, chosen), *range(shared - 1, rejected)])
        branches.append([0] * (shared - 1) + [1] * (chosen - shared + 1) + [2] * (rejected - shared + 1))
    time = max(map(len, sources))
    source = torch.tensor([row + [0] * (time - len(row)) for row in sources], device=ids.device)
    branch = torch.tensor([row + [-1] * (time - len(row)) for row in branches], device=ids.device)
    return Line(source, ids, labels, positions(mask), branch)


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
    apart, together = model(**pair).log_probs, SharedPrompt(model)(**pair).log_probs
    # bf16 products in another order differ in the third digit.
    return torch.allclose(apart, together, atol=1e-4 if network.dtype == torch.float32 else 5e-2, rtol=1e-3)
