"""Pictures, sounds and series over HTTP: answered as by the run itself, with what is wrong with an input."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
import torch
from scipy.io import wavfile

pytest.importorskip("PIL", reason="pictures want the extra 'images'")

from bounds import near
from field_models import picture, sound
from served import filled, make_folders, serving
from test_train import script

from finetune.adapters import load
from finetune.cli.parser import parse
from finetune.errors import InputError
from finetune.serving.finished_runs import FinishedRuns, share_weights

OVERRIDES = {
    "vit": (
        "image_size=8,patch_size=4,num_channels=1,hidden_size=16,num_hidden_layers=1,num_attention_heads=2,"
        "intermediate_size=32"
    ),
    "audio-spectrogram-transformer": (
        "sampling_rate=8000,num_mel_bins=8,max_length=16,patch_size=4,frequency_stride=4,time_stride=4,"
        "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=32"
    ),
}


def trained(given: str, out):
    main = script("train").main
    given += f" --method full --output_dir {out} --max_steps 1 --bf16 false"
    main(*parse(main, given.split()))
    return out


def series(number: int, steps: int = 12) -> list[float]:
    return np.random.default_rng(number).normal(number % 2, 1, steps).round(3).tolist()


def run_of_series(folder):
    (folder / "series").mkdir()
    rows = [json.dumps({"series": series(n), "label": "ab"[n % 2]}) for n in range(12)]
    (folder / "series" / "train.jsonl").write_text("\n".join(rows[:8]))
    (folder / "series" / "validation.jsonl").write_text("\n".join(rows[8:]))
    sizes = "d_model=16,ffn_dim=16,num_hidden_layers=1,num_attention_heads=2,norm_type=layernorm"
    given = (
        f"--task series --from_config patchtst --config_overrides {sizes} --dataset_name {folder / 'series'}"
    )
    return trained(given, folder / "series_run")


def run_of_forecast(folder):
    values = series(1, 120)
    lines = [f"2020-01-{1 + n // 24:02}T{n % 24:02}:00,{one}" for n, one in enumerate(values)]
    (folder / "load.csv").write_text("\n".join(["date,load", *lines]))
    given = "--task forecast --from_config dlinear --context_length 12 --prediction_length 4"
    return trained(f"{given} --dataset_name {folder / 'load.csv'}", folder / "forecast_run")


def run_of(task: str, family: str, folder):
    make, ending = {"image": (picture, "pgm"), "audio": (sound, "wav")}[task]
    for n in range(8):
        where = folder / task / ("train" if n < 4 else "test") / "ab"[n % 2]
        where.mkdir(parents=True, exist_ok=True)
        (where / f"{n}.{ending}").write_bytes(make(n)["bytes"])
    given = f"--task {task} --from_config {family} --config_overrides {OVERRIDES[family]}"
    return trained(f"{given} --dataset_name {folder / task}", folder / f"{task}_run")


def wav(values: np.ndarray, rate: int) -> str:
    held = io.BytesIO()
    wavfile.write(held, rate, values)
    return base64.b64encode(held.getvalue()).decode()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        "digits": run_of("image", "vit", folder),
        "words": run_of("audio", "audio-spectrogram-transformer", folder),
        "beats": run_of_series(folder),
        "load": run_of_forecast(folder),
    }


@pytest.fixture(scope="module")
def client(runs, tmp_path_factory):
    folders = make_folders(tmp_path_factory.mktemp("adapters"))
    entries = [f"{name}={folder}" for name, folder in runs.items()]
    with serving(filled(folders), runs=entries, timeout_seconds=60.0) as running:
        yield running.client


@pytest.mark.parametrize(("name", "key", "make"), [("digits", "images", picture), ("words", "sounds", sound)])
def test_a_server_answers_as_the_run_itself(client, runs, name, key, make):
    files = [make(n)["bytes"] for n in (20, 21, 22)]
    sent = [base64.b64encode(one).decode() for one in files]
    sent[0] = f"data:application/octet-stream;base64,{sent[0]}"
    said = client.post("/v1/classify", json={key: sent, "adapter": name}).json()["answers"]
    for found, wanted in zip(said, load(runs[name])(files), strict=True):
        assert found["label"] == wanted["prediction"] and near(found["probability"], wanted["score"], 1e-4)
        assert near(sum(found["probabilities"].values()), 1.0, 1e-5)


def test_series_and_forecasts_are_answered_as_by_the_run(client, runs):
    asked = [series(20), [series(21, 9)]]  # a list of numbers, and a list of channels
    said = client.post("/v1/classify", json={"series": asked, "adapter": "beats"}).json()["answers"]
    for found, wanted in zip(said, load(runs["beats"])(asked), strict=True):
        assert found["label"] == wanted["prediction"] and near(found["probability"], wanted["score"], 1e-4)
    past = {"load": series(3, 20)}
    answer = client.post("/v1/forecast", json={"past": past, "adapter": "load"}).json()["forecast"]
    assert answer["load"] == pytest.approx(load(runs["load"])(past)["load"], rel=1e-4)
    told = client.get("/v1/adapters").json()["runs"]
    assert told == {"digits": "image", "words": "audio", "beats": "series", "load": "forecast"}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"past": {"heat": [1.0] * 12}, "adapter": "load"}, 400, "No channel 'load'"),
        ({"past": {"load": [1.0] * 5}, "adapter": "load"}, 400, "has 5 steps; a forecast is made from 12"),
        ({"past": {"load": ["a"] * 12}, "adapter": "load"}, 422, "past.load.0"),
        ({"past": {"load": [1.0] * 12}, "adapter": "beats"}, 400, "ask v1/classify"),
        ({"past": {"load": [1.0] * 12}, "adapter": "x"}, 400, "there are: digits, words, beats, load"),
    ],
)
def test_what_is_wrong_with_a_past_is_said(client, body, status, said):
    answer = client.post("/v1/forecast", json=body)
    assert answer.status_code == status and said in answer.json()["error"]["message"]


def test_equal_weights_of_several_runs_are_held_once():
    first, second, other = (torch.nn.Linear(64, 64) for _ in range(3))
    second.load_state_dict(first.state_dict())
    held: dict = {}
    wanted = other(torch.ones(64))
    for one in (first, second, other):
        share_weights(one, held)
    assert first.weight.data_ptr() == second.weight.data_ptr() != other.weight.data_ptr()
    assert torch.equal(other(torch.ones(64)), wanted) and torch.equal(first.weight, second.weight)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"images": ["no base64!"], "adapter": "digits"}, 400, "Input 0 is no base64"),
        ({"images": ["QUJD"], "adapter": "digits"}, 400, "Input 0 is no picture"),
        ({"sounds": ["QUJD"], "adapter": "words"}, 400, "Input 0 is no WAV"),
        ({"sounds": ["UklGRg=="], "adapter": "words"}, 400, "can't be read"),
        (
            {"images": ["QUJD"], "adapter": "films"},
            400,
            "there are: digits, words, beats, load",
        ),
        ({"images": ["QUJD"], "adapter": "words"}, 400, "'words' reads audio"),
        (
            {"images": ["QUJD"], "texts": ["a"], "adapter": "digits"},
            422,
            "one of 'texts', 'images', 'sounds' and 'series'",
        ),
        ({"adapter": "digits"}, 422, "one of 'texts', 'images', 'sounds' and 'series'"),
        ({"images": ["QUJD"] * 2, "adapters": ["digits", "words"]}, 400, "one 'adapter' for all"),
        ({"images": ["QUJD"], "adapter": "digits", "truncate": True}, 422, "and nothing beside"),
        # an hour of one sample a second, 44 kB, which would be 29 million samples at 8,000 Hz
        ({"sounds": [wav(np.ones(3600, np.uint8), 1)], "adapter": "words"}, 400, "lasts 3,600 seconds"),
        ({"sounds": [wav(np.ones(9, np.uint8), 2**30)], "adapter": "words"}, 400, "samples a second; wanted"),
        ({"series": [["a"]], "adapter": "beats"}, 422, "series.0"),
        ({"series": [[[1.0], [1.0, 2.0]]], "adapter": "beats"}, 400, "wanted an array of numbers"),
        ({"series": [[[1.0], [1.0]]], "adapter": "beats"}, 400, "have the channels channel 0, channel 1"),
        ({"series": [[1.0, 1e300]], "adapter": "beats"}, 400, "inf at step 1 of channel 0"),
        ({"series": [[1.0]], "adapter": "load"}, 400, "ask v1/forecast"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(client, body, status, said):
    answer = client.post("/v1/classify", json=body)
    assert answer.status_code == status and said in json.dumps(answer.json()).replace('\\"', "")


def test_what_reads_no_files_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="wanted name=folder"):
        FinishedRuns(["digits"])
    with pytest.raises(InputError, match="is no artefact"):
        FinishedRuns([f"digits={tmp_path}"])
