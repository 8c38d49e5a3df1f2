"""Adapters that forecast, on one base: each answers as it does alone, and what can't be forecast is refused
by name.
"""

from __future__ import annotations

import json

import numpy as np
import peft
import pytest
import torch
from bounds import assert_near
from served import serving
from test_inputs import METHODS, make_adapter, move_apart
from test_inputs import given as series
from transformers import InformerConfig, PatchTSTConfig

from finetune.adapters.forecaster import Forecaster
from finetune.artefacts.passport import write_passport
from finetune.errors import InputError
from finetune.methods import NO_TOKENS, attach
from finetune.models.forecasters import AutoModelForForecast
from finetune.models.series_processor import SeriesProcessor
from finetune.pool.pool import AdapterPool
from finetune.tasks.options import TaskArguments
from finetune.tasks.table import settle

STEPS, HORIZON = 16, 5
METHODS_AND_LOHA = {**METHODS, "loha": None}


def make_forecaster(channels: int):
    torch.manual_seed(0)
    config = PatchTSTConfig(
        num_input_channels=channels, context_length=STEPS, prediction_length=HORIZON, patch_length=4,
        patch_stride=4, d_model=16, ffn_dim=16, num_hidden_layers=2, num_attention_heads=2, init_std=0.3,
        use_cls_token=True, pooling_type=None,
    )  # fmt: skip
    return AutoModelForForecast.from_config(config).eval()


def make_forecast_adapter(folder, method: str, seed: int, channels: int) -> Forecaster:
    """An adapter with random weights in a folder, and the run that PEFT makes of it."""
    names = [f"load {n}" for n in range(channels)]
    processor = SeriesProcessor(context_length=STEPS)
    processor.fit(np.full(channels, 10.0 * seed), np.full(channels, 1.0 + seed), names)
    network = make_forecaster(channels)
    if method == "loha":
        settings = peft.LoHaConfig(target_modules=["q_proj"], r=2, modules_to_save=["head"])
        tuned = peft.get_peft_model(network, settings)
    else:
        tuned = attach(network, method, METHODS[method], NO_TOKENS)
    move_apart(tuned, seed)
    tuned.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_passport(
        folder, tuned, processor, base="tiny", method=method, method_kwargs=None, task="forecast",
        labels=None, data_fingerprint=None, metrics=None,
    )  # fmt: skip
    row = settle(TaskArguments("forecast", context_length=STEPS, prediction_length=HORIZON), "patchtst")
    return Forecaster(tuned.eval(), processor, row, HORIZON)


def past(number: int, channels: int) -> dict[str, list[float]]:
    values = np.random.default_rng(number).normal(size=(channels, STEPS + number % 5)).cumsum(1)
    return {f"load {n}": values[n].tolist() for n in reversed(range(channels))}


def pool_of(channels: int) -> AdapterPool:
    return AdapterPool(make_forecaster(channels).base_model, SeriesProcessor(context_length=STEPS))


def as_tensor(forecast: dict[str, list[float]]) -> torch.Tensor:
    return torch.tensor([forecast[name] for name in sorted(forecast)])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_mixed_batch_forecasts_as_each_run_alone(tmp_path, channels):
    pool, runs = pool_of(channels), {}
    for seed, method in enumerate(METHODS_AND_LOHA, start=1):
        runs[method] = make_forecast_adapter(tmp_path / method, method, seed, channels)
        pool.add(method, tmp_path / method)
    told = pool.adapters()
    assert told["lora"]["task"] == "FORECAST" and told["lora"]["labels"] is None
    assert told["loha"]["by_itself"] and not told["bitfit"]["by_itself"]
    names = [*runs, *reversed(runs)]
    pasts = [past(n, channels) for n in range(len(names))]
    found = pool.forecast(pasts, names)
    for name, one, said in zip(names, pasts, found, strict=True):
        assert len(said["load 0"]) == HORIZON
        assert_near(as_tensor(said), as_tensor(runs[name](one)), 1e-4)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forecasters")
    make_forecast_adapter(folder / "load", "lora", 1, 2)
    make_adapter(folder / "beats", "patchtst", "lora", 1, channels=2)
    made = pool_of(2)
    made.add("load", folder / "load")
    # a base that knows no task: runs that give classes and runs that forecast, if it is the same one
    made.allow_mismatch = True
    made.add("beats", folder / "beats")
    return made


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda pool: pool.forecast([past(0, 2)], [None]), "the base alone has no head"),
        (lambda pool: pool.forecast([past(0, 2)], ["beats"]), "'beats' is for SEQ_CLS"),
        (lambda pool: pool.classify([series("patchtst", 1, 2)], ["load"]), "'load' is for FORECAST"),
        (lambda pool: pool.forecast([past(0, 2), past(1, 1)], ["load"] * 2), "Input 1: No channel 'load 1'"),
        (lambda pool: pool.forecast([past(0, 2) | {"load 0": [1.0]}], ["load"]), "Input 0: .*unlike numbers"),
        (lambda pool: pool.forecast([[1.0]], ["load"]), "Input 0 is no series by channel"),
        (lambda pool: pool.forecast([past(0, 2)], ["gone"]), "Unknown adapter 'gone'"),
    ],
)  # fmt: skip
def test_what_cannot_be_forecast_is_said(pool, ask, said):
    with pytest.raises(InputError, match=said):
        ask(pool)


def test_classes_and_forecasts_stand_side_by_side(pool):
    assert len(pool.forecast([past(0, 2)], ["load"])[0]["load 1"]) == HORIZON
    assert set(pool.classify([series("patchtst", 1, 2)], ["beats"])[0]["probabilities"]) == {"a", "b"}
    assert pool.fit([past(0, 2)], pool.check([past(0, 2)], ["load"], "FORECAST")) == [STEPS]


def test_other_families_that_forecast_are_refused_by_name(tmp_path):
    sizes = {"prediction_length": 4, "context_length": 8, "d_model": 8, "encoder_layers": 1}
    config = InformerConfig(**sizes, decoder_layers=1, encoder_ffn_dim=8, decoder_ffn_dim=8)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    with pytest.raises(
        InputError, match="is a informer model; of those that forecast .* Serve finished runs"
    ):
        AdapterPool(str(tmp_path))


def test_a_server_forecasts_by_adapters_on_its_base(pool):
    with serving(pool, base="tiny", timeout_seconds=60.0) as running:
        body = {"past": past(3, 2), "adapter": "load"}
        told = running.client.post("/v1/forecast", json=body).json()["forecast"]
        assert_near(as_tensor(told), as_tensor(pool.forecast([past(3, 2)], ["load"])[0]), 1e-5)
        refused = running.client.post("/v1/forecast", json=body | {"adapter": "beats"})
        assert refused.status_code == 400 and "'beats' is for SEQ_CLS" in refused.text
        short = running.client.post("/v1/forecast", json=body | {"past": {"load 0": [1.0], "load 1": [2.0]}})
        assert short.status_code == 400 and "a forecast is made from 16" in short.text
        gone = running.client.post("/v1/forecast", json=body | {"adapter": "gone"})
        assert gone.status_code == 404
