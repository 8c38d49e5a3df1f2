"""Windows are views of their series: right, and hardly any memory beside it."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from torch.utils.data import DataLoader

from finetune.data.series import Spacing
from finetune.data.windows import CALENDAR, Windows, calendar, stacked


@pytest.fixture
def values():
    return np.arange(40, dtype=np.float32).reshape(20, 2)


def test_every_place_where_a_forecast_may_begin(values):
    windows = Windows(values, 5, 3)
    assert len(windows) == 13 and windows["row"].tolist() == list(range(5, 18))
    assert windows["length"].tolist() == [8] * 13
    last = windows[12]
    assert last["past_values"][:, 0].tolist() == [24, 26, 28, 30, 32] and last["labels"][:, 1].tolist() == [
        35,
        37,
        39,
    ]
    assert np.shares_memory(last["past_values"], values) and np.shares_memory(last["labels"], values)


def test_chosen_windows(values):
    windows = Windows(values, 5, 3)
    assert windows.select(np.arange(13)) is windows
    assert [one["row"] for one in windows.select([3, 0]).__getitems__([1, 0])] == [5, 8]


def test_a_batch_with_its_calendar(values):
    windows = Windows(
        values, 5, 3, start=np.datetime64("2023-12-31T20:00:00.000"), step=Spacing(seconds=3600)
    )
    batch = stacked(windows.__getitems__([0, 4]))
    assert batch["past_values"].shape == (2, 5, 2) and batch["labels"].shape == (2, 3, 2)
    assert batch["past_time_features"].shape == (2, 5, CALENDAR)
    assert batch["row"].tolist() == [5, 9]
    hour, weekday, day, year = (batch["future_time_features"][0, 0] + 0.5).tolist()
    assert (
        hour == pytest.approx(1 / 23) and weekday == pytest.approx(0) and (day, year) == (0, 0)
    )  # a Monday, 1 a.m.
    assert (batch["past_time_features"][0, 3] + 0.5).tolist() == pytest.approx([1, 1, 1, 364 / 365])


def test_the_calendar_of_months():
    told = calendar(np.datetime64("2024-01-01", "ms"), Spacing(months=1), np.arange(14))
    assert (told[:, 2] == -0.5).all() and told[12, 3] == -0.5 and told[1, 3] == pytest.approx(31 / 365 - 0.5)


def test_an_epoch_takes_little_memory_beside_the_series():
    """336 steps of context: each copied window would be 432 rows."""
    values = np.zeros((400_000, 7), np.float32)
    tracemalloc.start()
    own = values.copy()
    series = tracemalloc.get_traced_memory()[0]
    loader = DataLoader(Windows(own, 336, 96), batch_size=32, collate_fn=stacked)
    count = sum(len(batch["row"]) for _, batch in zip(range(300), loader, strict=False))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 9600 and peak < 1.2 * series
