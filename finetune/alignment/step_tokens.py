"""The likelihood that ORPO and CPO learn beside their preferences, as a mean over all tokens of a step. Knows
TRL's batches; knows no loss.

TRL takes it over the tokens of a micro-batch of one process, so that the same rows on other processes, or in
other micro-batches, would be another run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from finetune.loss import IGNORED
from finetune.training.last_step import WeightedRows

LIKELIHOOD = 4  # its place among what TRL's forward gives


class StepTokens(WeightedRows):
    """Stands before TRL's trainers that weigh a mean over the chosen answers' tokens in."""

    _mean = torch.tensor(0.0)  # tokens of a micro-batch, on average over a step and its processes

    def learnt(self, batch: dict[str, Any]) -> torch.Tensor:
        """Number of tokens that the chosen answers' likelihood is a mean of; CPO's."""
        return (batch["chosen_labels"][:, 1:] != IGNORED).sum()

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> Any:
        """transformers', with the step's tokens counted over all processes."""
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        # a tensor even without a batch: every process has to take part in the gather
        total = sum((self.learnt(batch) for batch in self.counted(samples)), torch.tensor(0)).to(device)
        self._mean = self.accelerator.gather(total).float().mean() / max(len(samples), 1)
        return samples, items

    def concatenated_forward(self, model: Any, batch: dict[str, Any]) -> Any:
        """TRL's; in training the likelihood counts by the micro-batch's share of the step's tokens."""
        found = list(super().concatenated_forward(model, batch))  # type: ignore[misc]
        # the weight of rows, which comes on top, is none of tokens
        if model.training and self.weight:
            found[LIKELIHOOD] = found[LIKELIHOOD] * (self.learnt(batch) / self._mean / self.weight)
        return tuple(found)


class StepTexts(StepTokens):
    """The same of ORPO, which learns the prompt as well."""

    def learnt(self, batch: dict[str, Any]) -> torch.Tensor:
        """Number of tokens of prompts and chosen answers, the first of each aside, foretold by none."""
        return batch["chosen_attention_mask"][:, 1:].sum()
