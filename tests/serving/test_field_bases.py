"""A server whose base reads pictures: adapters on it answer as each run does alone, and whatever else is
asked of it is refused with a remedy, never by a 500.
"""

from __future__ import annotations

import base64
import io
import json

import pytest

pytest.importorskip("PIL", reason="pictures want the extra 'images'")

from bounds import near
from field_models import make_field_model, picture
from PIL import Image
from served import serving
from test_train import script
from transformers import AutoModelForImageClassification

from finetune.adapters import load
from finetune.cli.parser import parse
from finetune.pool.pool import AdapterPool


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base, and two adapters on it with two and three labels, as training leaves them."""
    root = tmp_path_factory.mktemp("field")
    for part in make_field_model("vit", AutoModelForImageClassification, num_labels=2):
        part.save_pretrained(root / "base")
    for name, method, labels in (("digits", "lora", "ab"), ("shapes", "bitfit", "abc")):
        for n in range(12):
            where = root / "rows" / name / ("train" if n < 6 else "test") / labels[n % len(labels)]
            where.mkdir(parents=True, exist_ok=True)
            (where / f"{n}.pgm").write_bytes(picture(n)["bytes"])
        main, given = script("train").main, f"--task image --method {method} --bf16 false --max_steps 2 "
        given += f"--model_name_or_path {root / 'base'} --dataset_name {root / 'rows' / name} "
        given += f"--output_dir {root / name} --learning_rate 1e-1"
        main(*parse(main, given.split()))
    return root


@pytest.fixture(scope="module")
def client(folders):
    pool = AdapterPool(str(folders / "base"))
    for name in ("digits", "shapes"):
        pool.add(name, folders / name)
    options = {"base": str(folders / "base"), "adapters_dir": str(folders), "timeout_seconds": 60.0}
    with serving(pool, **options) as running:
        yield running.client


def sent(*numbers: int) -> list[str]:
    return [base64.b64encode(picture(n)["bytes"]).decode() for n in numbers]


def test_a_mixed_request_is_answered_as_by_each_run(client, folders):
    names, numbers = ["digits", "shapes", "digits", "shapes"], (20, 21, 22, 23)
    body = {"images": sent(*numbers), "adapters": names}
    said = client.post("/v1/classify", json=body).json()["answers"]
    for name, number, found in zip(names, numbers, said, strict=True):
        wanted = load(folders / name)(picture(number)["bytes"])
        assert found["label"] == wanted["prediction"] and near(found["probability"], wanted["score"], 1e-4)
        assert len(found["probabilities"]) == (2 if name == "digits" else 3)
    told = client.get("/v1/adapters").json()
    assert told["reads"] == "image" and told["adapters"]["shapes"]["labels"] == ["a", "b", "c"]


def test_what_was_made_of_a_picture_is_said_beside_the_answer(client):
    held = io.BytesIO()
    Image.new("RGB", (300, 20), "red").save(held, "PNG")
    body = {"images": [base64.b64encode(held.getvalue()).decode()], "adapter": "digits"}
    answer = client.post("/v1/classify", json=body).json()
    assert answer["notes"] == ["Pictures of mode RGB are read as L"] and len(answer["answers"]) == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("classify", {"images": ["no base64!"], "adapter": "digits"}, 400, "Input 0 is no base64"),
        ("classify", {"images": [*sent(1), "QUJD"], "adapter": "digits"}, 400, "Input 1 is no picture"),
        ("classify", {"images": sent(1), "adapter": "gone"}, 404, "Unknown adapter 'gone'"),
        ("classify", {"images": sent(1)}, 400, "the base alone has no head"),
        ("classify", {"images": sent(1), "adapters": ["digits", "shapes"]}, 400, "1 texts and 2 adapters"),
        ("classify", {"images": sent(1), "adapter": "digits", "adapters": ["digits"]}, 422, "not both"),
        ("classify", {"sounds": ["UklGRg=="], "adapter": "digits"}, 400, "No run 'digits'"),
        ("classify", {"series": [[1.0]], "adapter": "digits"}, 400, "No run 'digits'"),
        ("classify", {"texts": ["/etc/hostname"], "adapter": "digits"}, 400, "this base reads pictures"),
        ("attribute", {"text": "a b", "adapter": "digits"}, 400, "this base reads pictures"),
        ("tag", {"texts": ["a b"], "adapter": "digits"}, 400, "this base reads pictures"),
        ("embed", {"texts": ["a b"]}, 400, "this base reads pictures"),
        ("generate", {"texts": ["a b"]}, 400, "writes no texts"),
        ("embeddings", {"input": "a b", "model": "base"}, 400, "base reads pictures"),
        ("embeddings", {"input": [1, 2], "model": "base"}, 400, "base reads pictures"),
        ("rerank", {"query": "a", "documents": ["b"], "model": "digits"}, 400, "base reads pictures"),
        ("completions", {"prompt": "a", "model": "digits"}, 400, "writes no texts"),
        ("completions", {"prompt": [1, 2], "model": "digits"}, 400, "writes no texts"),
        (
            "chat/completions", {"messages": [{"role": "user", "content": "a"}], "model": "digits"}, 400,
            "base reads pictures",
        ),
        ("responses", {"input": "a", "model": "digits"}, 400, "base reads pictures"),
        ("forecast", {"past": {"a": [1.0]}, "adapter": "digits"}, 400, "there are: none"),
    ],
)  # fmt: skip
def test_what_such_a_base_cannot_answer_is_said(client, path, body, status, said):
    answer = client.post(f"/v1/{path}", json=body)
    assert answer.status_code == status and said in json.dumps(answer.json()).replace('\\"', "")


def test_adapters_come_and_go(client):
    added = client.post("/v1/adapters", json={"name": "again", "folder": "digits"})
    assert added.status_code == 201 and added.json()["labels"] == ["a", "b"]
    body = {"images": sent(30), "adapters": [["again"]]}
    once = client.post("/v1/classify", json=body).json()["answers"]
    body["adapters"] = ["digits"]
    assert once == client.post("/v1/classify", json=body).json()["answers"]
    assert client.delete("/v1/adapters/again").status_code == 200
    # what is no adapter at all, though its folder is there
    refused = client.post("/v1/adapters", json={"name": "rows", "folder": "rows"})
    assert refused.status_code == 400 and "is no adapter" in refused.json()["error"]["message"]
