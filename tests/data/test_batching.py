"""Which rows go together."""

from collections.abc import Sequence

import numpy as np
import pytest

from finetune.data.batching import EpochLoader, LengthBatches, Shares
from finetune.errors import InputError

LENGTHS = np.random.default_rng(0).integers(3, 200, 203)


def all_processes(shares: Shares, **options) -> list[LengthBatches]:
    return [
        LengthBatches(LENGTHS, Shares(shares.rows, shares.accumulation, shares.processes, p), **options)
        for p in range(shares.processes)
    ]


def padding_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Share of padded positions over all batches, 0 to 1."""
    tokens = np.asarray(lengths)
    held = sum(len(batch) * int(tokens[list(batch)].max()) for batch in batches)
    return 1 - sum(int(tokens[list(batch)].sum()) for batch in batches) / held


@pytest.mark.parametrize(
    "shares", [Shares(8), Shares(4, 2), Shares(4, 1, 2), Shares(3, 2, 3), Shares(300), Shares(67, 1, 3)]
)
@pytest.mark.parametrize("options", [{}, {"group": False}, {"budget": 1500}])
def test_every_row_once_and_as_many_batches_on_each_process(shares, options):
    samplers = all_processes(shares, **options)
    dealt = [list(sampler) for sampler in samplers]
    assert sorted(row for batches in dealt for batch in batches for row in batch) == list(range(len(LENGTHS)))
    assert {len(batches) for batches in dealt} == {len(sampler) for sampler in samplers} == {len(dealt[0])}
    assert all(batch for batches in dealt for batch in batches)


def test_a_step_has_the_same_rows_however_it_is_dealt_out():
    def steps(shares: Shares) -> list[set[int]]:
        dealt = [list(sampler) for sampler in all_processes(shares, seed=3)]
        groups = zip(*dealt, strict=True)
        micro = [{row for batch in group for row in batch} for group in groups]
        return [
            set().union(*micro[i : i + shares.accumulation])
            for i in range(0, len(micro), shares.accumulation)
        ]

    assert steps(Shares(8)) == steps(Shares(1, 8)) == steps(Shares(4, 1, 2)) == steps(Shares(2, 2, 2))


def test_micro_batches_of_a_smaller_last_step_are_the_same_on_any_number_of_processes():
    """Dropout follows from a micro-batch's rows. 36 rows: four steps of eight, and one of four."""
    found = []
    for accumulation, processes in ((4, 1), (2, 2), (1, 4)):
        own = (Shares(2, accumulation, processes, process) for process in range(processes))
        found.append(sorted(batch for shares in own for batch in LengthBatches(LENGTHS[:36], shares)))
    assert found[0] == found[1] == found[2]
    assert sorted(map(len, found[0])) == [1] * 4 + [2] * 16


def test_epochs_differ_and_repeat():
    sampler = LengthBatches(LENGTHS, Shares(8), seed=1)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    sampler.set_epoch(0)
    assert list(sampler) == first != second
    assert len(first) == len(second)


def test_grouping_saves_padding():
    plain = padding_share(LENGTHS, list(LengthBatches(LENGTHS, Shares(16), group=False)))
    grouped = padding_share(LENGTHS, list(LengthBatches(LENGTHS, Shares(16))))
    assert plain > 0.35
    assert grouped < 0.15


def test_batches_do_not_come_sorted_by_length():
    longest = [LENGTHS[batch].max() for batch in LengthBatches(LENGTHS, Shares(8))]
    assert abs(np.corrcoef(longest, range(len(longest)))[0, 1]) < 0.5


@pytest.mark.parametrize("group", [True, False])
def test_the_step_with_the_most_tokens_comes_first_in_the_first_epoch_alone(group):
    sampler = LengthBatches(LENGTHS, Shares(8), seed=2, group=group)
    sizes = [LENGTHS[batch].sum() for batch in sampler]
    assert sizes[0] == max(sizes[:-1])
    sampler.set_epoch(1)
    assert LENGTHS[next(iter(sampler))].sum() < sizes[0]


def test_a_budget_is_kept():
    for batch in LengthBatches(LENGTHS, Shares(8, 2), budget=800):
        assert len(batch) * LENGTHS[batch].max() <= 800


def test_too_small_a_budget_and_too_few_rows():
    with pytest.raises(InputError, match="--tokens_per_batch 50 is below the longest"):
        LengthBatches([10, 60], Shares(8), budget=50)
    with pytest.raises(InputError, match="2 rows for 3 processes"):
        LengthBatches([10, 60], Shares(8, 1, 3))


def test_the_loader_hands_the_epoch_on():
    sampler = LengthBatches(LENGTHS, Shares(8))
    EpochLoader(range(len(LENGTHS)), batch_sampler=sampler).set_epoch(4)
    assert sampler.epoch == 4
