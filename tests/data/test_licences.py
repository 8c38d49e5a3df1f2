"""Licences and sources of rows: noted, refused where it is told to, and written down with the run."""

from __future__ import annotations

import hashlib
import json
import logging

import pytest
from test_train import train
from transformers import AutoModelForSequenceClassification

from finetune.data.licences import declared_licence
from finetune.data.sources import DataArguments, load_rows
from finetune.errors import InputError

LICENCES = ("MIT", "CC-BY-NC-4.0", "mit ", None)


@pytest.fixture
def licensed(review_file, tmp_path):
    folder = tmp_path / "licensed"
    folder.mkdir()
    for split in ("train", "test"):
        rows = [json.loads(line) for line in (review_file / f"{split}.jsonl").read_text().splitlines()]
        for place, row in enumerate(rows):
            row |= {"licence": LICENCES[place // 2 % 4], "origin": f"site {place % 3}"}
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_rows_of_other_licences_are_refused_and_counted(licensed, caplog):
    with caplog.at_level(logging.WARNING):
        rows = load_rows(DataArguments([str(licensed)], licences=["mit"]))
    assert len(rows.train) == 24 and len(rows.eval) == 24  # evaluation rows are not learnt
    assert "24 of 48 training rows" in caplog.text and "CC-BY-NC-4.0 12, (none) 12" in caplog.text
    with pytest.raises(InputError, match="No training row of .* has a licence among --licences Apache-2.0"):
        load_rows(DataArguments([str(licensed)], licences=["Apache-2.0"]))
    with pytest.raises(InputError, match="No column 'rights' in .*named by --licence_column"):
        load_rows(DataArguments([str(licensed)], licence_column="rights"))


def test_a_set_may_declare_its_licence(review_file):
    asked = DataArguments([str(review_file)], licences=["cc0-1.0"])
    with pytest.raises(InputError, match="nothing says the licence of"):
        load_rows(asked)
    (review_file / "README.md").write_text("---\nlicense: cc0-1.0\n---\n# Reviews\n")
    assert (
        declared_licence(str(review_file)) == declared_licence(str(review_file / "train.jsonl")) == "cc0-1.0"
    )
    assert len(load_rows(asked).train) == 48
    with pytest.raises(InputError, match="they have: cc0-1.0 48"):
        load_rows(DataArguments([str(review_file)], licences=["mit"]))
    (review_file / "README.md").write_text("# Reviews\n---\nlicense: mit\n---\n")
    assert declared_licence(str(review_file)) is None


def test_a_run_says_whose_rows_it_used(licensed, saved, tmp_path):
    source = saved("bert", AutoModelForSequenceClassification)
    run = train(
        source, licensed, tmp_path / "run", "--max_steps", "1", "--licences", "MIT", "--max_train_rows", "10",
        "--source_column", "origin",
    )  # fmt: skip
    told = json.loads((run / "provenance.json").read_text())
    (entry,) = told["data"]
    content = (licensed / "train.jsonl").read_bytes()
    assert entry["files"] == [
        {"file": "train.jsonl", "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    ]
    assert (entry["name"], entry["rows"], entry["licences"]) == (str(licensed), 24, {"MIT": 12, "mit": 12})
    assert sum(entry["sources"].values()) == 24 and set(entry["sources"]) == {"site 0", "site 1", "site 2"}
    assert (
        told["rows_used"] == 10 == sum(told["licences_used"].values()) == sum(told["sources_used"].values())
    )
    assert told["licences_wanted"] == ["MIT"]
    assert not any(row["text"] in json.dumps(told) for row in map(json.loads, content.decode().splitlines()))


def test_a_card_says_the_one_licence(review_file, saved, tmp_path):
    (review_file / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")
    source = saved("bert", AutoModelForSequenceClassification)
    run = train(source, review_file, tmp_path / "run", "--max_steps", "1")
    assert json.loads((run / "data.json").read_text())["licence"] == "cc0-1.0"
    assert "license: cc0-1.0" in (run / "README.md").read_text()
