"""The small apps run as they stand."""

import csv
import io
import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from conftest import make_model, make_tokenizer
from test_pool import make
from transformers import AutoModel, AutoModelForCausalLM

from finetune.artefacts.folder import save_artefact

APPS = Path(__file__).parents[2] / "scripts" / "apps"


def run(name: str, *arguments: object) -> None:
    before, sys.argv = sys.argv, [name, *map(str, arguments)]
    try:
        runpy.run_path(str(APPS / name), run_name="__main__")
    finally:
        sys.argv = before


def test_rows_of_a_csv_are_scored_in_order(tmp_path):
    rows = [{"id": str(i), "text": text} for i, text in enumerate(["great film", "", "awful, dull\nstory"])]
    scored = runpy.run_path(str(APPS / "score_csv.py"))["scored"]
    found = list(
        scored(iter(rows), lambda texts: [{"label": t[:5], "probability": 0.5} for t in texts], "text")
    )
    assert [row["label"] for row in found] == ["great", "", "awful"] and [row["id"] for row in found] == [
        "0",
        "1",
        "2",
    ]


def test_a_csv_without_the_column_says_what_it_has(tmp_path):
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["review"], ["fine"]])
    with pytest.raises(SystemExit, match="No column 'text' in .*; it has review"):
        run("score_csv.py", "none", tmp_path / "rows.csv", tmp_path / "out.csv")


def test_five_lines_print_answers_and_no_reports(tmp_path, saved, capsys, caplog):
    folder, network = tmp_path / "films", make(tmp_path / "films", "bert", "SEQ_CLS", "lora", 1)
    options = {
        "task": "classification",
        "model_name_or_path": str(saved("bert", AutoModel)),
        "max_length": 16,
        "method": "lora",
    }
    (folder / "arguments.yaml").write_text(yaml.safe_dump(options))
    (folder / "run.json").write_text(json.dumps({"data": "rows"}))
    (folder / "README.md").unlink()  # PEFT's, from `make`
    save_artefact(network, make_tokenizer("bert"), folder, ["neg", "pos"], {"loss": 1.0})
    assert str(tmp_path) not in (folder / "README.md").read_text()  # PEFT's form names this machine's path
    assert (folder / "report.html").is_file()
    (folder / "README.md").write_text("mine")
    save_artefact(network, make_tokenizer("bert"), folder, ["neg", "pos"], {"loss": 1.0})
    assert (folder / "README.md").read_text() == "mine"
    capsys.readouterr()
    caplog.clear()
    run("five_lines.py", folder, "a great film", "awful")
    said = capsys.readouterr()
    assert [line.split()[0] in ("neg", "pos", "unsure") for line in said.out.splitlines()] == [True, True]
    assert "MISSING" not in said.err + caplog.text and "deprecated" not in said.err


def test_rows_are_mapped_by_two_adapters(tmp_path):
    datasets = pytest.importorskip("datasets")
    make_model("bert", AutoModel).save_pretrained(tmp_path / "base")
    make_tokenizer("bert").save_pretrained(tmp_path / "base")
    for seed, name in enumerate(("mood", "topic")):
        make(tmp_path / name, "bert", "SEQ_CLS", "lora", seed)
    datasets.Dataset.from_dict({"text": ["great film", "dull story", "fine"]}).to_csv(tmp_path / "rows.csv")
    adapters = [f"{name}={tmp_path / name}" for name in ("mood", "topic")]
    run(
        "map_rows.py",
        "--base",
        tmp_path / "base",
        "--adapters",
        *adapters,
        "--source",
        tmp_path / "rows.csv",
        "--target",
        tmp_path / "o.parquet",
    )
    rows = datasets.Dataset.from_parquet(str(tmp_path / "o.parquet"))
    assert rows.column_names == ["text", "mood", "topic"] and set(rows["mood"]) <= {"neg", "pos"}


def test_the_chat_switches_adapters(tmp_path, monkeypatch, capsys):
    make_model("llama", AutoModelForCausalLM).save_pretrained(tmp_path / "base")
    tokenizer = make_tokenizer("llama")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    tokenizer.save_pretrained(tmp_path / "base")
    monkeypatch.setattr("sys.stdin", io.StringIO("/use nobody\nthe film\n/new\n" + "the " * 80 + "\n/quit\n"))
    run("chat.py", "--base", tmp_path / "base", "--new_tokens", 4)
    said = capsys.readouterr().out
    assert "No adapter 'nobody'" in said and "the context holds 64" in said
