"""Preference pairs → a reward model, on TRL's trainer, and how often it is right. Knows TRL; knows no policy.

Bradley & Terry 1952; Christiano et al. 2017, Deep reinforcement learning from human preferences
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import trl
from datasets import Dataset, IterableDataset

from finetune.alignment.model_rewards import score_texts
from finetune.alignment.pair_rows import CutAnswers
from finetune.alignment.preferences import pair_ids
from finetune.alignment.rollout import longest_input
from finetune.alignment.trl_options import PairOptions, callbacks, made_by_trl, quiet
from finetune.methods import check_length
from finetune.training.last_step import WeightedRows


@dataclass
class RewardTrainingArguments(PairOptions, trl.RewardConfig):
    """TRL's options of a Bradley–Terry reward model; `center_rewards_coefficient` centres it."""

    task: str = field(default="reward")
    # the tokenizer comes with its template: `finetune.models.chat_template` reads this option for all verbs
    chat_template_path: str | None = field(default=None, init=False)


class RewardTrainer(CutAnswers, WeightedRows, trl.RewardTrainer):
    """TRL's, without ends on answers that were cut."""


def make_reward_trainer(
    network: Any, processor: Any, training: RewardTrainingArguments, train: Dataset, held_out: Dataset
) -> Any:
    """The trainer of `plan_reward`, at once."""
    return plan_reward(network, processor, training, train, held_out)()


def plan_reward(
    network: Any, processor: Any, training: RewardTrainingArguments, train: Dataset, held_out: Dataset
) -> Callable[[], Any]:
    """What makes TRL's reward trainer, once the pairs are checked; the network has one output, an adapter on
    it or not.

    Raises:
        InputError: a pair that is too long.
    """
    check_pairs_fit(network, processor, training.max_length, train, held_out)

    def make() -> Any:
        with made_by_trl():
            trainer = RewardTrainer(
                model=network, args=training, train_dataset=train, eval_dataset=held_out,
                processing_class=processor,
                callbacks=callbacks(training),
            )  # fmt: skip
        return quiet(trainer)

    return make


def check_pairs_fit(
    network: Any, processor: Any, max_length: int | None, *parts: Dataset | IterableDataset
) -> None:
    """A pair as far as `max_length` has a position in the model for each token; only where `max_length`
    promises none is it looked at. A stream, which has no end, wants the promise.

    Raises:
        InputError: one has more tokens.
    """
    limit = longest_input(network)
    if limit and max_length is not None and any(isinstance(part, IterableDataset) for part in parts):
        check_length(network, max_length)
    elif limit and (max_length is None or max_length > limit):
        sides = ((row, row[side]) for part in parts for row in part for side in ("chosen", "rejected"))
        longest = max(
            len(pair_ids(processor, row["prompt"], answer, row.get("tools"))) for row, answer in sides
        )
        check_length(network, longest if max_length is None else min(longest, max_length))


@torch.no_grad()
def pair_margins(
    network: Any, processor: Any, pairs: Dataset, max_length: int, batch_size: int = 16
) -> np.ndarray:
    """Reward of chosen minus reward of rejected for each pair, [pairs]."""

    def score(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return network(input_ids=ids.to(network.device), attention_mask=mask.to(network.device)).logits[:, 0]

    network.eval()
    sides = []
    for side in ("chosen", "rejected"):
        # From the end: the score is read at the last token of the answer.
        rows = [
            pair_ids(processor, row["prompt"], row[side], row.get("tools"))[-max_length:] for row in pairs
        ]
        sides.append(np.asarray(score_texts(score, rows, processor, batch_size)))
    return sides[0] - sides[1]


def calibration(margins: np.ndarray, bins: int = 8) -> list[dict[str, float]]:
    """How sure the model says it is against how often it is right: P(its choice) = σ(|margin|), in
    bins of equal count.
    """
    # By its own choice, whichever it is, so that confidence is never below a half.
    confidence, right = 1 / (1 + np.exp(-np.abs(margins))), margins > 0
    order = np.argsort(confidence)
    return [
        {
            "confidence": float(confidence[part].mean()),
            "accuracy": float(right[part].mean()),
            "pairs": len(part),
        }
        # Equal counts: most margins are of like size, and bins of equal width would stand empty.
        for part in np.array_split(order, min(bins, len(order)))
    ]
