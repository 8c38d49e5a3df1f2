"""The model card and the board: what a hub reads, and pages over HTTP."""

from __future__ import annotations

import json
import re
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
import yaml
from huggingface_hub import ModelCard
from test_run_page import lay_out

from finetune.errors import InputError
from finetune.reports.board import make_server
from finetune.reports.card import write_card
from finetune.reports.run_folder import read_run


def test_a_card_is_the_hubs(tmp_path):
    folder = lay_out(tmp_path / "run")
    (folder / "adapter_config.json").write_text("{}")
    card = ModelCard.load(write_card(read_run(folder)))
    assert card.data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.eval_results[0].metric_value == 0.75
    for said in (
        "0.750 (0.600–0.900)",
        "PeftModel.from_pretrained",
        "from finetune.adapters import load",
        "`pos`",
    ):
        assert said in card.text, said


def test_a_card_names_no_folder_of_this_machine(tmp_path):
    folder = lay_out(tmp_path / "run")
    base = tmp_path / "base"
    base.mkdir()
    options = yaml.safe_load((folder / "arguments.yaml").read_text())
    (folder / "arguments.yaml").write_text(yaml.safe_dump(options | {"model_name_or_path": str(base)}))
    text = write_card(read_run(folder)).read_text()
    assert str(tmp_path) not in text and "`base`" in text


def test_a_model_from_a_configuration_has_no_base(tmp_path):
    folder = lay_out(tmp_path / "run")
    options = yaml.safe_load((folder / "arguments.yaml").read_text())
    made = {"from_config": "vit", "task": "image", "method": "full"}
    (folder / "arguments.yaml").write_text(yaml.safe_dump(options | made))
    card = ModelCard.load(write_card(read_run(folder)))
    assert card.data.base_model is None and "MiniLM" not in card.content
    assert "`vit` from its configuration, trained for `image`" in card.text
    assert card.data.pipeline_tag == "image-classification" and 'model("picture.png")' in card.text


def test_a_card_says_when_a_baseline_is_as_good(tmp_path):
    folder = lay_out(tmp_path / "run")
    (folder / "baselines.json").write_text(
        json.dumps([{"name": "bag of words", "accuracy": 0.74, "interval": [0.7, 0.78]}])
    )
    assert "Not shown to be better than: bag of words" in write_card(read_run(folder)).read_text()


@contextmanager
def served(root):
    server = make_server(str(root), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(address: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_board_lists_runs_and_shows_them(tmp_path):
    lay_out(tmp_path / "runs" / "x")
    going = lay_out(tmp_path / "runs" / "y")
    (going / "metrics.json").unlink()
    with served(tmp_path / "runs") as at:
        status, text = ask(at + "/")
        assert status == 200 and "2 runs" in text and "goes on" in text and "http-equiv" in text
        assert "Confusion" in ask(at + "/run?at=x")[1]
        assert ask(at + "/run?at=x&at=y")[1].count("<article>") == 2
        assert 'name="at" value="x"' in text and 'href="/?by=figure"' in text
        first = re.findall(r'name="at" value="(\w)"', ask(at + "/?by=run")[1])
        assert first == ["x", "y"] and ask(at + "/?by=nothing")[0] == 200
        for bad in ("/run?at=../..", "/run?at=nothing", "/run", "/etc/passwd"):
            assert ask(at + bad)[0] == 404


def test_the_board_wants_a_folder(tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        make_server(str(tmp_path / "nothing"), "127.0.0.1", 0)
