"""The tasks on series, on real data, beat what needs no learning. Each takes a minute or more."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from test_train_tasks import figures, run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("model", "epochs", "rate"),
    [
        ("dlinear", 4, 1e-3),
        (
            "patchtst --config_overrides d_model=16,num_attention_heads=4,ffn_dim=64,num_hidden_layers=2",
            1,
            2e-3,
        ),
    ],
)
def test_a_forecast_beats_the_season_before(model, epochs, rate, shared_data, tmp_path):
    options = (
        f"--task forecast --method full --from_config {model} --split_rows 8640,2880 --num_train_epochs "
        f"{epochs} --learning_rate {rate} --per_device_train_batch_size 32 --per_device_eval_batch_size 256 "
        "--eval_strategy no --save_strategy no"
    )
    run("train", *options.split(), "--dataset_name", shared_data / "etth1", "--output_dir", tmp_path / "run")
    found = figures(tmp_path / "run")
    (naive,) = json.loads((tmp_path / "run" / "baselines.json").read_text())
    assert found["mse"] < 0.9 * naive["mse"]


@pytest.fixture
def italy(tmp_path) -> Path:
    spec = importlib.util.find_spec("sktime")
    if spec is None or spec.origin is None:
        pytest.skip("the series come with the package sktime, which is not installed")
    folder = tmp_path / "rows"
    folder.mkdir()
    for split in ("TRAIN", "TEST"):
        name = f"datasets/data/ItalyPowerDemand/ItalyPowerDemand_{split}.ts"
        shutil.copy(Path(spec.origin).parent / name, folder / f"{split.lower()}.ts")
    return folder


def test_classes_of_series_are_told(italy, tmp_path):
    options = (
        "--task series --method full --from_config patchtst --config_overrides "
        "norm_type=layernorm,d_model=64,ffn_dim=128,num_hidden_layers=2 --num_train_epochs 40 "
        "--learning_rate 1e-3 --per_device_train_batch_size 16 --eval_strategy no --save_strategy no"
    )
    run("train", *options.split(), "--dataset_name", italy, "--output_dir", tmp_path / "run")
    assert figures(tmp_path / "run")["accuracy"] > 0.9
    names = {one["name"]: one for one in json.loads((tmp_path / "run" / "baselines.json").read_text())}
    assert names["1 nearest neighbour (DTW)"]["accuracy"] == pytest.approx(0.9504, abs=1e-4)  # as published
