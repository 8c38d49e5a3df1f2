"""Texts → one vector each, and the loss that brings together what belongs together. Knows models; knows no
rows.

Negatives are the other rows of the batch on all processes. Vectors are gathered with their gradient, so that
two processes with 4 rows each learn as one with 8.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from finetune.errors import InputError

logger = logging.getLogger(__name__)


@dataclass
class ContrastiveArguments:
    """The objective `contrastive`: which texts belong together, and how alike their vectors shall be."""

    supervised: bool = field(
        default=False,
        metadata={
            "help": "The two texts of a training row belong together; otherwise each text alone, under two "
            "draws "
            "of dropout."
        },
    )
    temperature: float = field(
        default=0.05,
        metadata={"help": "Cosines are divided by it: the lower, the more the nearest negatives count."},
    )
    pooling: str = field(
        default="mean", metadata={"help": "A text's vector: mean of its tokens, cls (the first) or last."}
    )
    positive_label: str | None = field(
        default=None,
        metadata={"help": "Train on the pairs with this label in label_column alone: entailment."},
    )
    negative_column: str | None = field(
        default=None, metadata={"help": "Column with a hard negative for each training pair."}
    )
    score_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the evaluation rows that says how alike their two texts are, as a number."
        },
    )


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """[batch, time, width], [batch, time] → [batch, width]: padding counts for nothing."""
    weights = mask[..., None].to(hidden.dtype)
    # a text of padding alone has nothing to divide by
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def first(hidden: Tensor, mask: Tensor) -> Tensor:
    """The first token's vector."""
    return hidden[:, 0]


def last(hidden: Tensor, mask: Tensor) -> Tensor:
    """The last token's vector, padding aside."""
    # padding stands on the right; the last token is the number of tokens before it
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": mean, "cls": first, "last": last}
# What sentence-transformers calls them.
THEIR_NAMES = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "last": "pooling_mode_lasttoken",
}


def find_pooling(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The pooling of that name.

    Raises:
        InputError: there is none.
    """
    if name not in POOLINGS:
        raise InputError(f"Unknown pooling '{name}'; wanted one of: {', '.join(POOLINGS)}. Set --pooling")
    return POOLINGS[name]


def embeddings(model: Any, batch: dict[str, Tensor], labels: Tensor, *, pooling: str) -> Tensor:
    """Vectors of each row's texts, [batch, texts, width]; the batch has one line a text, row by row."""
    # float32: in bf16 near cosines are one number
    hidden = model(**batch)["last_hidden_state"].float()
    # a tuning method's made-up tokens stand in front, and the mask doesn't know them
    pooled = find_pooling(pooling)(
        hidden[:, hidden.shape[1] - batch["attention_mask"].shape[1] :], batch["attention_mask"]
    )
    return pooled.view(len(labels), -1, pooled.shape[-1])


class Gather(torch.autograd.Function):
    """Equal-sized tensors of all processes, one after another; the gradient finds its way back to each."""

    @staticmethod
    def forward(context: Any, own: Tensor) -> Tensor:
        context.place, context.rows = dist.get_rank(), len(own)
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        # gloo and NCCL take tensors that lie in one piece
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        # a copy, in one piece: the sum is made in place, and the gradient that came is autograd's
        whole = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole)  # every process's loss has a part in these vectors
        # its own part of the whole: what the others' losses say of these rows
        return whole[context.place * context.rows :][: context.rows]


def gathered(own: Tensor) -> tuple[Tensor, int]:
    """Rows of all processes, which may have different numbers of them, and where this process's own begin."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return own, 0
    # counts first: processes may have unequal numbers of rows at an epoch's end
    counts = [torch.zeros(1, dtype=torch.long, device=own.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(own)], device=own.device))
    sizes = [int(count) for count in counts]
    # all_gather wants equal sizes: filled up below and cut again
    filled = F.pad(own, [0, 0] * (own.dim() - 1) + [0, max(sizes) - len(own)])
    parts = Gather.apply(filled).split(max(sizes))
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]), sum(
        sizes[: dist.get_rank()]
    )


def in_batch(vectors: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy of each row's own partner among all rows' partners and hard negatives (Gao et al. 2021,
    equations 1 and 5).

    Args:
        vectors: [batch, texts, width]: a text, its partner, and maybe its hard negative.
        labels: not used; the partner of row i is partner i.

    Returns:
        [batch], in nats.
    """
    # of length 1, so that products are cosines
    units = F.normalize(vectors, dim=-1)
    # partners of all processes; each row's own text needs none but its own
    others, start = gathered(units[:, 1:])
    candidates = others.transpose(0, 1).flatten(0, 1)  # all partners, then all hard negatives
    cosines = units[:, 0] @ candidates.T
    # rows of this process begin at `start` among everybody's
    own = torch.arange(start, start + len(units), device=units.device)
    # no mean: the trainer divides by the number of rows over all processes
    return F.cross_entropy(cosines / temperature, own, reduction="none")


def rows(labels: Tensor) -> Tensor:
    """One for each row, [batch]."""
    return torch.ones(len(labels), dtype=torch.long, device=labels.device)


def has_dropout(network: nn.Module) -> bool:
    """Whether two passes over a text differ in training."""
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in network.modules())


def save_sentence_encoder(
    network: Any, processor: PreTrainedTokenizerBase, folder: str | Path, pooling: str, max_length: int
) -> None:
    """What sentence-transformers reads: beside the weights in `folder`, or for an adapter in its folder
    `sentence_encoder`, merged.

    Methods that can't be merged into the weights leave nothing, which the log says.
    """
    folder = Path(folder)
    if isinstance(network, PeftModel):
        folder = folder / "sentence_encoder"
        try:
            # on a copy: merging changes the weights in place, and the adapter is saved afterwards
            whole = copy.deepcopy(network).merge_and_unload()
        except (AttributeError, NotImplementedError, ValueError) as error:  # what PEFT raises, by method
            logger.warning(
                "%s can't be merged (%s): sentence-transformers won't load it", type(network).__name__, error
            )
            return
        whole.save_pretrained(folder)
        processor.save_pretrained(folder)
    kind = "sentence_transformers.models"
    parts = [
        {"idx": 0, "name": "0", "path": "", "type": f"{kind}.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{kind}.Pooling"},
    ]
    modes = {"word_embedding_dimension": network.config.hidden_size} | {
        theirs: name == pooling for name, theirs in THEIR_NAMES.items()
    }
    limits = {"max_seq_length": max_length, "do_lower_case": False}
    # the names and forms of files that sentence-transformers looks for
    (folder / "1_Pooling").mkdir(exist_ok=True)
    for file, content in (
        ("1_Pooling/config.json", modes),
        ("sentence_bert_config.json", limits),
        ("modules.json", parts),
    ):
        (folder / file).write_text(json.dumps(content, indent=1), encoding="utf-8")
