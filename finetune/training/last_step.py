"""An epoch's last step on several processes: the rows and weights that one process gives it. Knows how
micro-batches are dealt out; knows no loss.

accelerate fills a last step up with rows of the epoch's beginning, which are then learnt twice. Here a place
without a row gets one of weight zero, so that all processes have as much to compute and to exchange.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any, NamedTuple

import torch
from accelerate.data_loader import BatchSamplerShard
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Sampler

from finetune.training.interrupts import Resuming

logger = logging.getLogger(__name__)


class Part(NamedTuple):
    """Rows of a micro-batch that are computed together, from `begin` up to `end`, and what their mean loss
    counts; 1 where a step is whole.
    """

    begin: int
    end: int
    weight: float


class DealtBatches(Sampler[list[int]]):
    """Micro-batches of one process, which go round. In each round all have equally many rows: after a
    process's own stand rows of the first one's.

    Args:
        batch_sampler: the micro-batches of one process that has all rows, the last may be smaller.
    """

    def __init__(self, batch_sampler: BatchSampler, processes: int, process: int) -> None:
        # by this name the sampler that wants to know the epoch is found
        self.batch_sampler, self.processes, self.process = batch_sampler, processes, process

    def __len__(self) -> int:
        return -(-len(self.batch_sampler) // self.processes)

    def __iter__(self) -> Iterator[list[int]]:
        batches = iter(self.batch_sampler)
        while dealt := list(islice(batches, self.processes)):
            own = dealt[self.process] if self.process < len(dealt) else []
            yield own + dealt[0][len(own) :]


def last_step(rows: int, size: int, accumulation: int, *, processes: int, process: int) -> list[list[Part]]:
    """The parts of each micro-batch that a process has of an epoch's last step.

    One process weighs all micro-batches of the step alike. Parts end where the smallest micro-batch of their
    round does: TRL exchanges a number for each row, and wants equally many of each process.

    Args:
        rows: an epoch, in micro-batches of `size`.
        accumulation: micro-batches a step on each process.
    """
    batches = -(-rows // size)
    rounds = -(-batches // processes)
    here = (rounds - 1) % accumulation + 1
    left = batches - (rounds - here) * processes
    sizes = [size] * (left - 1) + [rows - (batches - 1) * size]
    found = []
    for start in range(0, left, processes):
        dealt = sizes[start : start + processes]
        own = dealt[process] if process < len(dealt) else 0
        ends = sorted({0, dealt[0], dealt[-1]})
        # the mean over micro-batches and processes, which is taken of everything, undone
        found.append([
            Part(begin, end, here * processes / left * (end - begin) / own if end <= own else 0.0)
            for begin, end in pairwise(ends)
        ])  # fmt: skip
    return found


def rows_of(inputs: dict[str, Any], part: Part, rows: int) -> dict[str, Any]:
    """Some of the rows of a batch, whose pairs stand side by side or above each other."""
    if part.end - part.begin == rows:
        return inputs

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() and len(value) == 2 * rows:
            return torch.cat([half[part.begin : part.end] for half in value.chunk(2)])
        if isinstance(value, list) or (isinstance(value, Tensor) and value.dim()):
            return value[part.begin : part.end]
        return value

    return {name: cut(value) for name, value in inputs.items()}


def warn_of_repeats(shard: BatchSamplerShard) -> None:
    """Say which rows accelerate computes twice in an epoch, and how none would be."""
    batches, processes = shard.batch_sampler, shard.num_processes
    rows, size = len(batches.sampler), batches.batch_size  # type: ignore[arg-type]
    twice = -rows % (size * processes)
    # one process says it for all
    if twice and not batches.drop_last and shard.process_index == 0:
        logger.warning(
            "%d training rows (of kto, answers) don't fill the %d × %d that %d processes compute at once: an "
            "epoch's last step computes %d of its first rows again, and other numbers of processes end with "
            "other weights. So that none is, set --per_device_train_batch_size to what, times %d, divides "
            "%d, or leave %d rows out by --max_train_rows",
            rows, processes, size, processes, twice, processes, rows, rows % (size * processes),
        )  # fmt: skip


class DealtRows(Resuming):
    """A Trainer with transformers' own loaders, whose rows are dealt out once each to several processes."""

    _dealt: DealtBatches | None = None

    def get_train_dataloader(self) -> DataLoader:
        """transformers' own; on several processes with the same order, dealt out as `DealtBatches` does."""
        plain, accelerator = super().get_train_dataloader(), self.accelerator
        shard = plain.batch_sampler
        # a stream has none, and transformers' balanced batches are dealt out already
        if not isinstance(shard, BatchSamplerShard) or type(shard.batch_sampler) is not BatchSampler:
            return plain
        # a run that goes on without skipping rows doesn't know how far its epoch is, and DeepSpeed would take
        # a step after each part
        if shard.split_batches or self.args.ignore_data_skip or self.is_deepspeed_enabled:
            warn_of_repeats(shard)
            return plain
        self._dealt = DealtBatches(shard.batch_sampler, accelerator.num_processes, accelerator.process_index)
        # accelerate never sees it, or it would deal it out again
        return DataLoader(
            plain.dataset,
            batch_sampler=self._dealt,
            collate_fn=plain.collate_fn,
            num_workers=plain.num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=plain.persistent_workers,
            prefetch_factor=plain.prefetch_factor,
            multiprocessing_context=plain.multiprocessing_context,
            worker_init_fn=plain.worker_init_fn,
            in_order=plain.in_order,
        )

    def last_parts(self) -> list[list[Part]]:
        """The parts of each micro-batch, where the next step is an epoch's last; else nothing."""
        if self._dealt is None:
            return []
        accumulation, inner = self.args.gradient_accumulation_steps, self._dealt.batch_sampler
        if (self.state.global_step + 1) % -(-len(self._dealt) // accumulation):
            return []
        rows = len(inner.sampler)  # type: ignore[arg-type]
        # of rows that are left out nothing is dealt
        rows -= rows % inner.batch_size if inner.drop_last else 0
        return last_step(
            rows, inner.batch_size, accumulation,
            processes=self._dealt.processes, process=self._dealt.process,
        )  # fmt: skip


class WeightedRows(DealtRows):
    """The same for losses that are means over the rows of a micro-batch."""

    weight = 1.0  # of what is being computed
    _parts: list[list[Part]] = []  # noqa: RUF012 of the micro-batches that come yet, never changed in place

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> Any:
        """transformers'; what the step's rows count is known then."""
        self._parts = self.last_parts()
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def counted(self, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What of the micro-batches of a step weighs anything."""
        if not self._parts:
            return samples
        return [
            rows_of(batch, part, parts[-1].end)
            for batch, parts in zip(samples, self._parts, strict=True)
            for part in parts
            if part.weight
        ]

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """The class's own, part by part in an epoch's last step: gradients add up, as over micro-batches."""
        # a backward each: activations that are computed again allow for one forward before it
        parts, *self._parts = self._parts or [[]]
        if not parts:
            return super().training_step(model, inputs, *args, **kwargs)
        total = torch.zeros((), device=self.args.device)
        for part in parts:
            self.weight = part.weight
            total += super().training_step(model, rows_of(inputs, part, parts[-1].end), *args, **kwargs)
        self.weight = 1.0
        return total

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The class's own, weighted in training."""
        found = super().compute_loss(model, inputs, *args, **kwargs)
        return found * self.weight if model.training else found
