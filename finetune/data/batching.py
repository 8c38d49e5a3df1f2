"""Which rows go together. Knows lengths; knows no text and no model.

An optimizer step takes a set of rows that depends on (seed, epoch, rows a step) alone. How the set is then
dealt out to processes and micro-batches changes no gradient: batch 8 = batch 1 × accumulation 8 = two
processes × 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch.utils.data import DataLoader, Sampler

from finetune.errors import InputError


@dataclass
class BatchingArguments:
    """Which rows share a batch."""

    group_by_length: bool = field(
        default=True, metadata={"help": "Rows of like length together, in shuffled order: less padding."}
    )
    tokens_per_batch: int | None = field(
        default=None,
        metadata={
            "help": "Fill batches up to this many tokens (padding counted) instead of "
            "per_device_train_batch_size rows."
        },
    )


@dataclass(frozen=True)
class Shares:
    """How the rows of a step are dealt out.

    Attributes:
        rows: a micro-batch.
        accumulation: micro-batches a step.
        processes: there are, and which one this is.
        at_first: processes that the run was started with, which decides whether a last step is too small to
            stand alone.
    """

    rows: int
    accumulation: int = 1
    processes: int = 1
    process: int = 0
    at_first: int = 1


def check_budget(lengths: Sequence[int], budget: int | None) -> None:
    """Every row fits into a batch of `budget` tokens.

    Raises:
        InputError: a row is longer.
    """
    if budget is not None and budget < max(lengths):
        raise InputError(
            f"--tokens_per_batch {budget} is below the longest row's {max(lengths)} tokens; raise it or "
            "lower --max_length"
        )


class LengthBatches(Sampler[list[int]]):
    """Batches for one process: every row once an epoch, on exactly one process, the same number of batches on
    each.

    Args:
        lengths: tokens of each row, [rows].
        shares: how the rows of a step are dealt out.
        budget: tokens a micro-batch may hold, padding counted; None for `shares.rows` rows each.
        group: rows of like length together. Without it plain shuffling.

    Raises:
        InputError: fewer rows than processes, or a row longer than the budget.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        shares: Shares,
        seed: int = 0,
        *,
        budget: int | None = None,
        group: bool = True,
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.shares, self.seed, self.budget, self.group, self.epoch = shares, seed, budget, group, 0
        if len(self.lengths) < shares.processes:
            raise InputError(
                f"{len(self.lengths)} rows for {shares.processes} processes; wanted at least one each"
            )
        check_budget(lengths, budget)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        # any generator: neither the number of steps nor of micro-batches depends on it
        return sum(len(self._dealt(step)) for step in self._steps(np.random.default_rng(0)))

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng((self.seed, self.epoch))
        steps = self._steps(generator)
        # the step that may be smaller stays last, where the Trainer expects an incomplete accumulation
        order = [*generator.permutation(len(steps) - 1), len(steps) - 1]
        if self.epoch == 0 and len(order) > 2:
            # the most tokens first: whether they fit into memory is known at once, and memory is taken once
            largest = max(range(len(order) - 1), key=lambda place: self.lengths[steps[order[place]]].sum())
            order.insert(0, order.pop(largest))
        for index in order:
            yield from self._dealt(steps[index])

    def _steps(self, generator: np.random.Generator) -> list[np.ndarray]:
        """All rows, cut into the sets of the epoch's optimizer steps. Their number does not depend on
        the generator.
        """
        order = generator.permutation(len(self.lengths))
        if self.budget is not None:
            # shuffled, then sorted stably: rows of one length come in another order each epoch
            order = order[np.argsort(self.lengths[order], kind="stable")]
            return self._by_budget(order)
        if self.group:
            jitter = generator.uniform(0.9, 1.1, len(order))  # so that the same rows don't meet in each epoch
            order = order[np.argsort(self.lengths[order] * jitter, kind="stable")]
        # the rows of one optimizer step, over all processes
        size = self.shares.rows * self.shares.accumulation * self.shares.processes
        steps = [order[start : start + size] for start in range(0, len(order), size)]
        if self.group and len(steps) > 1 and len(steps[-1]) < size:
            # sorted rows end with the longest: let any step be the small one, not always the long rows'
            shift = int(generator.integers(len(steps))) * size
            short = len(steps[-1])
            small, rest = (
                order[shift : shift + short],
                np.concatenate([order[:shift], order[shift + short :]]),
            )
            steps = [*(rest[start : start + size] for start in range(0, len(rest), size)), small]
        return self._no_idle_process(steps)

    def _no_idle_process(self, steps: list[np.ndarray]) -> list[np.ndarray]:
        # a process without a row would keep the others waiting for its gradients
        if len(steps) > 1 and len(steps[-1]) < max(self.shares.processes, self.shares.at_first):
            *steps, last, few = steps
            steps = [*steps, np.concatenate([last, few])]
        return steps

    def _by_budget(self, order: np.ndarray) -> list[np.ndarray]:
        """Sorted rows → steps of at most `accumulation × processes` micro-batches of at most `budget`
        padded tokens.
        """
        assert self.budget is not None
        shares, steps, start = self.shares.accumulation * self.shares.processes, [], 0
        while start < len(order):
            end = start + 1
            while (
                end < len(order)
                and math.ceil((end + 1 - start) / shares) * self.lengths[order[end]] <= self.budget
            ):
                end += 1
            steps.append(order[start:end])
            start = end
        return self._no_idle_process(steps)

    def _dealt(self, step: np.ndarray) -> list[list[int]]:
        """This process's micro-batches of one step: the rows go round, so that every share has its
        part of the long ones.
        """
        # As many for a last, smaller step too, so that they are the same on any number of processes, and with
        # them dropout; but no more micro-batches than rows that every process has.
        micro = max(1, min(self.shares.accumulation, len(step) // self.shares.processes))
        # round robin over sorted rows: all processes get like lengths and finish together
        mine = step[self.shares.process :: self.shares.processes]
        return [mine[part::micro].tolist() for part in range(micro)]


class EpochLoader(DataLoader):
    """A DataLoader that hands the number of the epoch on to its batches: a resumed epoch is the one
    that was left.
    """

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
