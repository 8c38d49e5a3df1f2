"""Pictures and sounds over HTTP: answered as by the run itself, with what is wrong with a file."""

from __future__ import annotations

import base64
import json

import pytest

pytest.importorskip("PIL", reason="pictures want the extra 'images'")

from bounds import near
from field_models import picture, sound
from served import filled, make_folders, serving
from test_train import script

from finetune.adapters import load
from finetune.adapters.loading import want_texts
from finetune.cli.parser import parse
from finetune.errors import InputError
from finetune.serving.finished_runs import FinishedRuns

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


def run_of(task: str, family: str, folder):
    make, ending = {"image": (picture, "pgm"), "audio": (sound, "wav")}[task]
    for n in range(8):
        where = folder / task / ("train" if n < 4 else "test") / "ab"[n % 2]
        where.mkdir(parents=True, exist_ok=True)
        (where / f"{n}.{ending}").write_bytes(make(n)["bytes"])
    main, out = script("train").main, folder / f"{task}_run"
    given = f"--task {task} --method full --from_config {family} --config_overrides {OVERRIDES[family]} "
    given += f"--dataset_name {folder / task} --output_dir {out} --max_steps 1 --bf16 false"
    main(*parse(main, given.split()))
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        "digits": run_of("image", "vit", folder),
        "words": run_of("audio", "audio-spectrogram-transformer", folder),
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
            "there are: digits, words",
        ),
        ({"images": ["QUJD"], "adapter": "words"}, 400, "'words' reads audio"),
        (
            {"images": ["QUJD"], "texts": ["a"], "adapter": "digits"},
            422,
            "one of 'texts', 'images' and 'sounds'",
        ),
        ({"adapter": "digits"}, 422, "one of 'texts', 'images' and 'sounds'"),
        ({"images": ["QUJD"], "adapters": ["digits"]}, 422, "one 'adapter' for all"),
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
    (tmp_path / "passport.json").write_text('{"task": "image"}')
    with pytest.raises(InputError, match="trained for 'image', whose inputs are no texts.*--runs"):
        want_texts(tmp_path)
