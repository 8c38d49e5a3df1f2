"""Rows → one series: what is wrong with it is named with its row and what mends it; parts in order of
time.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from finetune.data.series import Spacing, find_channels, find_time, to_series
from finetune.data.sources import DataArguments
from finetune.data.time_splits import load_series
from finetune.errors import InputError


def hourly(count: int = 40, **changed: object) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"date": pd.date_range("2020-02-28", periods=count, freq="h").astype(str)})
    return frame.assign(load=rng.normal(size=count), heat=rng.normal(size=count)).assign(**changed)


def read(frame: pd.DataFrame, **named: object):
    rows = Dataset.from_pandas(frame, preserve_index=False)
    time = find_time(rows, None, "x")
    return to_series(
        rows, time, find_channels(rows, time, named.get("wanted"), named.get("ignored"), "x"), "x"
    )


def test_a_table_becomes_a_series():
    series = read(hourly())
    assert series.values.dtype == np.float32 and series.values.shape == (40, 2)
    assert series.channels == ["load", "heat"] and str(series.step) == "1 hour"
    assert str(series.times(24, 2)[1]) == "2020-02-29T01:00:00.000"


@pytest.mark.parametrize(
    ("freq", "step", "season"),
    [("15min", "15 minutes", 96), ("D", "1 day", 7), ("MS", "1 month", 12), ("ME", "1 month", 12),
     ("YS", "12 months", 1), ("QS", "3 months", 4), ("7D", "7 days", 1), ("7s", "7 seconds", 1)],
)  # fmt: skip
def test_steps_of_the_calendar(freq, step, season):
    times = pd.date_range("2019-11-01", periods=40, freq=freq)
    series = read(hourly(date=times))
    assert str(series.step) == step and series.step.season == season
    if freq != "ME":  # a month's last day is told from its first by its day alone
        assert (series.times(0, 40) == times.to_numpy()).all()


def test_years_are_times_and_rows_without_times_are_even():
    assert str(read(hourly(date=range(1950, 1990))).step) == "12 months"
    assert read(hourly().drop(columns="date")).step is None


def test_dots_stand_behind_days():
    frame = hourly()
    dotted = pd.to_datetime(frame["date"]).dt.strftime("%d.%m.%Y %H:%M")
    assert read(frame.assign(date=dotted)).start == read(frame).start


def swapped() -> pd.DataFrame:
    frame = hourly()
    frame.loc[[7, 8], "date"] = frame.loc[[8, 7], "date"].to_numpy()
    return frame


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (hourly().drop(index=[12, 13]),
         "gap.*row 11 has 2020-02-28 11:00:00 and row 12 has 2020-02-28 14:00"),
        (swapped(), r"unsorted: row 7 has 2020-02-28 08:00:00 and row 8 .*sort_values\('date'\)"),
        (hourly(date=["2020-01-01"] * 2 + hourly()["date"].tolist()[2:]), "stands twice: row 0"),
        (hourly(date=["soon", *hourly()["date"].tolist()[1:]]), "row 0 is 'soon'.*--time_column"),
        (hourly(date=["01.02.2020", *hourly()["date"].tolist()[1:]]), "2016-07-01 13:00:00"),
        (hourly(load=[1.0, None, *range(38)]), "in 'load'; the first, row 1, has no value.*interpolate"),
        (hourly(load=[1.0, 2.0, float("inf"), *range(37)]), "row 2, has the value inf"),
        (hourly(load=[1.0, 1e39, *range(38)]), r"row 1, has the value 1e\+39"),
        (hourly(heat=["1", "2,5", *map(str, range(38))]),
         r"'heat' of x holds '2,5' in row 1.*--ignore_columns heat"),
        (hourly(heat=["1", "2", "nan", *map(str, range(37))]), r"'heat' of x holds 'nan' in row 2"),
        (hourly(heat=["1", "2", "-inf", *map(str, range(37))]), r"'heat' of x holds '-inf' in row 2"),
        (hourly(heat=[True] * 40), "type bool"),
        (hourly()[["date"]], "no column of numbers"),
    ],
)  # fmt: skip
def test_bad_series_are_named_with_row_and_remedy(frame, said):
    with pytest.raises(InputError, match=said):
        read(frame)


def test_channels_are_named_or_left_out():
    frame = hourly(town="Ulm")
    assert read(frame, ignored=["town"]).channels == ["load", "heat"]
    assert read(frame, wanted=["heat"]).channels == ["heat"]
    with pytest.raises(InputError, match="'town' of x holds 'Ulm' in row 0"):
        read(frame)
    with pytest.raises(InputError, match="No column 'colour'.*--ignore_columns"):
        read(frame, ignored=["colour"])


@pytest.fixture
def folder(tmp_path):
    frame = hourly()
    frame[:20].to_csv(tmp_path / "train.csv", index=False)
    frame[20:30].to_csv(tmp_path / "validation.csv", index=False)
    frame[30:].to_csv(tmp_path / "test.csv", index=False)
    frame.to_parquet(tmp_path.parent / f"{tmp_path.name}.parquet")
    return tmp_path


def dates(rows: Dataset) -> tuple[str, str, int]:
    return rows["date"][0][8:13], rows["date"][-1][8:13], len(rows)


def test_parts_follow_each_other_and_take_their_context_along(folder):
    rows = load_series(DataArguments(str(folder)), context=4)
    assert dates(rows.train) == ("28 00", "28 19", 20) and dates(rows.eval) == ("28 16", "29 05", 14)
    tested = load_series(DataArguments(str(folder), eval_split="test"), train=False, context=12)
    assert tested.train is None and dates(tested.eval) == ("28 18", "29 15", 22)


@pytest.mark.parametrize(
    ("options", "split_rows", "train", "held"),
    [
        ({}, None, ("28 00", "29 03", 28), ("29 02", "29 07", 6)),
        ({"eval_split": "test"}, "20,4,6", ("28 00", "28 19", 20), ("28 22", "29 05", 8)),
        ({"eval_split": "test"}, "20,4,60", ("28 00", "28 19", 20), ("28 22", "29 15", 18)),
        ({"eval_split": "test"}, "20,4", ("28 00", "28 19", 20), ("28 22", "29 15", 18)),
        ({"eval_split": "train[30:]", "train_split": "train[:20]"}, None,
         ("28 00", "28 19", 20), ("29 04", "29 15", 12)),
    ],
)  # fmt: skip
def test_one_file_is_cut_in_order_of_time(folder, options, split_rows, train, held):
    one = DataArguments(f"{folder}.parquet", **options)
    rows = load_series(one, split_rows=split_rows, context=2)
    assert dates(rows.train) == train and dates(rows.eval) == held


def test_split_files_are_cut_anew_when_asked(folder):
    rows = load_series(DataArguments(str(folder), eval_split="test"), split_rows="0.5,0.25", context=1)
    assert dates(rows.train) == ("28 00", "28 19", 20) and dates(rows.eval) == ("29 05", "29 15", 11)


@pytest.mark.parametrize("wanted", ["20", "a,b", "40,1", "0,5", "0.99,0.001", "1,2,3,4", "9,-1"])
def test_parts_that_cannot_be_cut(folder, wanted):
    with pytest.raises(InputError, match="--split_rows"):
        load_series(DataArguments(f"{folder}.parquet"), split_rows=wanted)


def test_parts_that_overlap_are_refused(folder):
    hourly()[10:30].to_csv(folder / "validation.csv", index=False)
    with pytest.raises(InputError, match="validation rows .* begin at 2020-02-28T10:00:00"):
        load_series(DataArguments(str(folder)))


def test_a_part_after_a_gap_has_no_context_before_it(folder):
    hourly()[25:30].to_csv(folder / "validation.csv", index=False)
    assert len(load_series(DataArguments(str(folder)), context=4).eval) == 5


def test_steps_are_named():
    assert str(Spacing(seconds=90)) == "90 seconds" and str(Spacing(months=2)) == "2 months"
