"""An epoch's last step on several processes: each row once, with the weight that one process gives it."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler
from transformers import Trainer

from finetune.training.last_step import (
    DealtBatches,
    Part,
    WeightedRows,
    last_step,
    rows_of,
    warn_of_repeats,
)


def dealt(rows: int, size: int, processes: int) -> list[list[list[int]]]:
    """Micro-batches of each process."""
    batches = BatchSampler(range(rows), size, drop_last=False)
    return [list(DealtBatches(batches, processes, process)) for process in range(processes)]


def test_a_place_without_a_row_gets_one_of_the_first_process():
    assert dealt(13, 4, 2) == [
        [[0, 1, 2, 3], [8, 9, 10, 11]],
        [[4, 5, 6, 7], [12, 9, 10, 11]],
    ]
    assert dealt(10, 4, 2) == [[[0, 1, 2, 3], [8, 9]], [[4, 5, 6, 7], [8, 9]]]


def test_parts_end_where_the_smallest_micro_batch_does():
    # two micro-batches, of four rows and of one: each counts one half, as on one process
    assert last_step(13, 4, 1, processes=2, process=0) == [[Part(0, 1, 0.25), Part(1, 4, 0.75)]]
    assert last_step(13, 4, 1, processes=2, process=1) == [[Part(0, 1, 1.0), Part(1, 4, 0.0)]]
    # one alone: its mean over two processes is half of it
    assert [last_step(10, 4, 1, processes=2, process=n) for n in (0, 1)] == [
        [[Part(0, 2, 2.0)]],
        [[Part(0, 2, 0.0)]],
    ]


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("accumulation", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 3, 4])
def test_rows_weigh_what_they_do_on_one_process(processes, accumulation, size):
    for rows in range(1, 3 * processes * accumulation * size + 1):
        step = size * accumulation * processes
        first = (rows - 1) // step * step
        # as transformers' own loop has it: a mean over micro-batches of means over rows
        alone = [list(range(start, min(start + size, rows))) for start in range(first, rows, size)]
        wanted = {row: Fraction(1, len(alone) * len(batch)) for batch in alone for row in batch}
        found: Counter[int] = Counter()
        widths = []
        for process, batches in enumerate(dealt(rows, size, processes)):
            parts = last_step(rows, size, accumulation, processes=processes, process=process)
            mine = batches[first // (size * processes) :]
            assert len(mine) == len(parts)
            widths.append([[part.end - part.begin for part in each] for each in parts])
            for batch, each in zip(mine, parts, strict=True):
                assert each[-1].end == len(batch)
                for part in each:
                    for row in batch[part.begin : part.end]:
                        found[row] += part.weight / (part.end - part.begin) / len(mine) / processes
        assert all(width == widths[0] for width in widths)
        assert {row: share for row, share in found.items() if share} == pytest.approx(wanted)


def test_rows_are_cut_from_pairs_side_by_side_and_above_each_other():
    inputs = {
        "ids": torch.arange(6),
        "margin": torch.tensor([7, 8, 9]),
        "said": ["a", "b", "c"],
        "flag": True,
    }
    found = rows_of(inputs, Part(1, 3, 1.0), 3)
    assert found.pop("ids").tolist() == [1, 2, 4, 5] and found.pop("margin").tolist() == [8, 9]
    assert found == {"said": ["b", "c"], "flag": True}
    assert rows_of(inputs, Part(0, 3, 1.0), 3) is inputs


def test_a_trainer_computes_the_parts_of_a_last_step_by_themselves(monkeypatch):
    # in the place of a model: the mean of the rows' own numbers
    monkeypatch.setattr(Trainer, "compute_loss", lambda self, model, inputs: inputs["ids"].float().mean())
    monkeypatch.setattr(
        Trainer, "training_step", lambda self, model, inputs: self.compute_loss(model, inputs)
    )
    monkeypatch.setattr(
        Trainer,
        "get_batch_samples",
        lambda self, batches, count, device: (list(islice(batches, count)), None),
    )
    # the first of two processes, without all that making a trainer brings
    trainer, model = WeightedRows.__new__(WeightedRows), SimpleNamespace(training=True)
    trainer.args = SimpleNamespace(gradient_accumulation_steps=1, device="cpu")
    trainer._dealt = DealtBatches(BatchSampler(range(13), 4, drop_last=False), 2, 0)
    batches = iter([{"ids": torch.tensor(batch)} for batch in trainer._dealt])
    losses, kept = [], []
    for step in range(2):
        trainer.state = SimpleNamespace(global_step=step)
        samples, _ = trainer.get_batch_samples(batches, 1, "cpu")
        kept.append([one["ids"].tolist() for one in trainer.counted(samples)])
        losses.append(float(trainer.training_step(model, samples[0])))
    assert kept == [[[0, 1, 2, 3]], [[8], [9, 10, 11]]]
    # rows 8 to 11 count as two means: of the row that has a neighbour on the other process, and of the rest
    assert losses == [1.5, 0.25 * 8 + 0.75 * 10]
    # evaluation weighs nothing
    trainer.weight, model.training = 0.5, False
    assert float(trainer.compute_loss(model, {"ids": torch.tensor([3])})) == 3


def test_rows_that_accelerate_computes_twice_are_said(caplog):
    for rows, process, drop_last in ((13, 0, False), (16, 0, False), (13, 1, False), (13, 0, True)):
        batches = BatchSampler(range(rows), 4, drop_last=drop_last)
        warn_of_repeats(BatchSamplerShard(batches, 2, process))
    (said,) = caplog.messages
    assert (
        "13 training rows (of kto, answers) don't fill the 2 × 4" in said
        and "computes 3 of its first rows again" in said
    )
    assert "times 2, divides 13, or leave 5 rows out" in said
