"""A series is learnt, saved with its scale, assessed and continued like any other rows; what can't be
learnt from is named with what mends it.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from test_train import script

from finetune.adapters import load
from finetune.adapters.actions import ActionArguments, act
from finetune.adapters.assess import assess_task
from finetune.adapters.merge import MergeArguments
from finetune.artefacts.folder import read_artefact
from finetune.cli.parser import parse
from finetune.data.sources import DataArguments
from finetune.errors import InputError
from finetune.models.series_processor import SeriesProcessor
from finetune.tasks.forecast import behind_training

SIZES = "--context_length 24 --prediction_length 6 --bf16 false"
TINY = "d_model=16,ffn_dim=16,num_hidden_layers=1,num_attention_heads=2,norm_type=layernorm"


def hourly(count: int = 200) -> pd.DataFrame:
    rng, time = np.random.default_rng(0), np.arange(count)
    wave = np.sin(time * 2 * np.pi / 12)
    frame = pd.DataFrame({"date": pd.date_range("2020-01-01", periods=count, freq="h").astype(str)})
    return frame.assign(
        load=5000 + 900 * wave + 50 * rng.normal(size=count), heat=wave**2 + 0.1 * rng.normal(size=count)
    )


@pytest.fixture
def file(tmp_path):
    hourly().to_csv(tmp_path / "load.csv", index=False)
    return tmp_path / "load.csv"


def train(file, out, *further: str) -> dict:
    main = script("train").main
    given = f"--task forecast {SIZES} --dataset_name {file} --output_dir {out}"
    main(*parse(main, [*given.split(), *further]))
    return json.loads((out / "metrics.json").read_text())


def linear(file, out, *further: str) -> dict:
    return train(file, out, "--from_config", "dlinear", "--method", "full", *further)


def test_a_series_is_learnt_saved_and_assessed(file, tmp_path):
    out = tmp_path / "run"
    figures = linear(file, out, "--num_train_epochs", "12", "--learning_rate", "2e-2")
    (naive,) = json.loads((out / "baselines.json").read_text())
    assert figures["mse"] < naive["mse"] and figures["mse"] == pytest.approx(figures["loss"])
    low, high = figures["intervals"]["mae"]
    assert low < figures["mae"] < high
    answers = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(answers) == 20 - 6 + 1 and answers[0]["text"] == "2020-01-06 20:00:00"
    scale = SeriesProcessor.from_pretrained(out)
    trained = hourly()[:140]
    assert scale.channels == ["load", "heat"]
    assert scale.means == pytest.approx(trained[["load", "heat"]].mean().tolist(), rel=1e-6)
    assert scale.deviations == pytest.approx(trained[["load", "heat"]].std(ddof=0).tolist(), rel=1e-6)
    assert json.loads((out / "data.json").read_text())["columns"] == {
        "time": "date",
        "channels": "load, heat",
    }
    page, card = (out / "report.html").read_text(), (out / "README.md").read_text()
    assert "seasonal naive (24)" in page and "seasonal naive (24)" in card
    same = assess_task(read_artefact(out), DataArguments([str(file)], eval_split="validation"))
    assert same["mse"] == pytest.approx(figures["mse"], rel=1e-6) and same["rows_left_out"] == 0
    tested = assess_task(read_artefact(out), DataArguments([str(file)], eval_split="test"))
    assert tested["rows"] == 40 - 6 + 1 and set(tested["per_channel"]) == {"load", "heat"}
    with pytest.raises(InputError, match="was trained on all"):
        assess_task(read_artefact(out), DataArguments([str(file)], eval_split="train"))


def test_rows_that_were_trained_on_are_context_alone():
    trained = np.array([True] * 5 + [False] * 4)
    assert behind_training(trained, context=2).tolist() == [3, 4, 5, 6, 7, 8]
    assert behind_training(~trained, context=2).tolist() == []
    assert behind_training(trained & False, context=2).tolist() == list(range(9))


def test_other_series_are_scored_by_the_scale_of_the_training(file, tmp_path):
    """The same values at other times were not trained on; the same rows were, wherever they stand."""
    out = tmp_path / "run"
    linear(file, out, "--max_steps", "3")
    later = hourly().assign(date=pd.date_range("2021-01-01", periods=200, freq="h").astype(str))
    later.to_csv(tmp_path / "later.csv", index=False)
    found = assess_task(read_artefact(out), DataArguments([str(tmp_path / "later.csv")], eval_split="all"))
    assert found["rows_left_out"] == 0 and found["rows"] == 200 - 24 - 6 + 1
    behind = assess_task(read_artefact(out), DataArguments([str(file)], eval_split="all"))
    assert behind["rows_left_out"] == 140 - 24 and behind["rows"] == 60 - 6 + 1
    hourly()[["date", "heat", "load"]].to_csv(tmp_path / "turned.csv", index=False)
    with pytest.raises(InputError, match="channels heat, load; the model was trained on load, heat"):
        assess_task(read_artefact(out), DataArguments([str(tmp_path / "turned.csv")], eval_split="test"))


@pytest.mark.parametrize(
    "method",
    [
        "lora",
        *(
            pytest.param(one, marks=pytest.mark.slow)
            for one in ("full", "bottleneck", "bitfit", "linear_probe")
        ),
    ],
)
def test_methods_tune_a_trained_model(file, tmp_path, method):
    base, out = tmp_path / "base", tmp_path / "run"
    train(
        file, base, "--from_config", "patchtst", "--config_overrides", TINY, "--method", "full",
        "--max_steps", "2", "--eval_strategy", "no",
    )  # fmt: skip
    figures = train(
        file, out, "--model_name_or_path", str(base), "--method", method, "--max_steps", "2",
        "--eval_strategy", "no",
    )  # fmt: skip
    if method != "full":
        assert figures["trainable"] < figures["parameters"]
    data = DataArguments([str(file)], eval_split="validation")
    assert assess_task(read_artefact(out), data)["mse"] == pytest.approx(figures["mse"], rel=1e-5)


def test_methods_that_want_tokens_are_refused(file, tmp_path):
    base = tmp_path / "base"
    train(
        file, base, "--from_config", "patchtst", "--config_overrides", TINY, "--method", "full",
        "--max_steps", "1", "--eval_strategy", "no",
    )  # fmt: skip
    for method in ("prefix", "prompt", "ia3"):
        with pytest.raises(InputError, match=f"'{method}' can't tune PatchTSTForPrediction"):
            train(file, tmp_path / method, "--model_name_or_path", str(base), "--method", method)


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({}, ["--context_length", "160"], "training part has 140 rows.*--context_length"),
        ({}, ["--prediction_length", "30"], "evaluation part has 44 rows"),
        ({"load": 3.5}, [], "channel 'load' has the value 3.5 in all training rows.*--ignore_columns load"),
        ({"heat": "warm"}, [], "'heat' of .* holds 'warm' in row 0"),
        ({}, ["--series_columns", "cold"], "No column 'cold'"),
        ({}, ["--time_column", "day"], "No column 'day'"),
        ({}, ["--split_rows", "190,5"], "evaluation part has 29 rows.*--split_rows"),
        ({}, ["--context_length", "1"], "--context_length 1; wanted 2 or more"),
        ({}, ["--shots_per_class", "2"], "--shots_per_class"),
        ({}, ["--stride", "2"], "no use for --stride"),
        ({}, ["--hold_out", "load"], "no use for --hold_out.*--split_rows"),
        ({}, ["--label_column", "load"], "no use for --label_column.*--series_columns"),
        ({}, ["--season", "500"], "--season 500 is longer than the 24 steps"),
        ({"date": "13/01/2024"}, [], r"row 0 \(line 2\) is '13/01/2024'.*140 of 140"),
        ({"date": range(1704067200, 1704067400)}, [], r"row 0 .* is 1704067200, which.*unit='s'"),
        ({"date": hourly()["date"][::-1].to_list()}, [], "unsorted: row 0 .*Sort the file"),
        ({"load": np.arange(200) + 1e9}, [], "'load' has the value 1e.09 in all.*rounding takes.*mean off"),
        ({}, ["--add_tokens", "[X]"], "no use for --add_tokens"),
    ],
)
def test_what_cannot_be_learnt_from_is_named(tmp_path, change, options, said):
    hourly().assign(**change).to_csv(tmp_path / "load.csv", index=False)
    with pytest.raises(InputError, match=said):
        linear(tmp_path / "load.csv", tmp_path / "run", "--max_steps", "1", *options)


def test_a_text_task_has_no_use_for_a_horizon(tmp_path):
    main = script("train").main
    with pytest.raises(InputError, match="'classification' has no use for --prediction_length"):
        main(*parse(main, ["--prediction_length", "5", "--output_dir", str(tmp_path / "run")]))


def test_a_deviation_that_is_rounding_is_none():
    with pytest.raises(InputError, match="'b' has the value 1e\\+06"):
        SeriesProcessor().fit(np.array([0.0, 1e6]), np.array([1e-9, 1e-3]), ["a", "b"])


def test_a_run_forecasts_in_the_channels_own_units(file, tmp_path):
    """What is said of the last window is what its evaluation was scored by."""
    out = tmp_path / "run"
    linear(file, out, "--num_train_epochs", "2", "--learning_rate", "2e-2")
    model, frame = load(out), hourly()
    past = frame[:154]
    said = model({name: past[name] for name in ("heat", "load")})
    assert list(said) == ["load", "heat"] and len(said["heat"]) == 6
    last = json.loads((out / "predictions.jsonl").read_text().splitlines()[-1])
    assert last["text"] == "2020-01-07 10:00:00"
    off = np.array(said["load"]) - frame["load"][154:160].to_numpy()
    scale = SeriesProcessor.from_pretrained(out).deviations[0]
    assert np.mean((off / scale) ** 2) == pytest.approx(last["channels"]["load"]["mse"], rel=1e-4)
    for broken, wanted in (
        ({"load": past["load"]}, "No channel 'heat'"),
        (
            {"load": past["load"], "heat": past["heat"][:20]},
            "unlike numbers of steps \\(load 154, heat 20\\)",
        ),
        ({"load": past["load"][:20], "heat": past["heat"][:20]}, "'load' has 20 steps; .* from 24"),
        ({"load": past["load"][:30], "heat": [float("nan")] * 30}, "'heat' has no finite number 24 steps"),
        ({"load": past["load"][:30], "heat": ["warm"] * 30}, "'heat' holds what is no number"),
    ):
        with pytest.raises(InputError, match=wanted):
            model(broken)


def test_a_model_that_reads_times_is_told_them(file, tmp_path):
    out, options = tmp_path / "run", "d_model=8,encoder_layers=1,decoder_layers=1,encoder_ffn_dim=8"
    train(
        file, out, "--from_config", "informer", "--config_overrides", options, "--method", "full",
        "--max_steps", "1", "--eval_strategy", "no",
    )  # fmt: skip
    model, frame = load(out), hourly()
    past, times = frame[:154][["load", "heat"]], pd.to_datetime(frame["date"][:154]).to_numpy()
    last = json.loads((out / "predictions.jsonl").read_text().splitlines()[-1])
    off = np.array(model(past, times)["heat"]) - frame["heat"][154:160].to_numpy()
    scale = SeriesProcessor.from_pretrained(out).deviations[1]
    assert np.mean((off / scale) ** 2) == pytest.approx(last["channels"]["heat"]["mse"], rel=1e-4)
    with pytest.raises(InputError, match="reads times"):
        model(past)
    with pytest.raises(InputError, match="gap"):
        model(past, [*np.delete(times, 150), times[-1] + np.timedelta64(5, "h")])


def test_actions_on_texts_are_refused_by_name(file, tmp_path):
    out = tmp_path / "run"
    linear(file, out, "--max_steps", "1", "--eval_strategy", "no")
    for action in ("onnx", "gguf"):
        with pytest.raises(InputError, match=f"reads series, and --action {action} tries models on texts"):
            list(act(ActionArguments(action, [str(out)], str(tmp_path / "made")), MergeArguments()))
    # a whole run is no adapter, whatever it reads
    with pytest.raises(InputError, match="holds no adapter_config.json"):
        list(act(ActionArguments("check", [str(out)]), MergeArguments()))
