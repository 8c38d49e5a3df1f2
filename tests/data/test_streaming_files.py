"""Files that are read as they are needed: every kind of them, and the faults that only reading on shows."""

from __future__ import annotations

import gzip
import json

import pytest
from datasets import Dataset

from finetune.data.files import Reading
from finetune.data.places import PLACE
from finetune.data.streaming import open_stream
from finetune.errors import InputError


def streamed(path, split: str = "train", **reading) -> list[dict]:
    return list(open_stream(str(path), None, None, split, Reading(**reading) if reading else None))


def test_parquet_is_streamed_and_a_split_that_is_not_there_is_named(tmp_path):
    for split in ("train", "test"):
        Dataset.from_dict({"text": ["a film", split]}).to_parquet(str(tmp_path / f"{split}.parquet"))
    assert [row["text"] for row in streamed(tmp_path, "test")] == ["a film", "test"]
    with pytest.raises(InputError, match="No split 'dev' in .*; there are: .*train.*--train_split"):
        streamed(tmp_path, "dev")
    (tmp_path / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="Cannot stream .*--dataset_name"):
        streamed(tmp_path)


def test_the_built_in_corpora_can_be_streamed_too():
    assert {"text", "label"} <= set(next(iter(open_stream("reviews", None, None, "train"))))


def test_texts_are_lines_or_documents(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\nthree\n")
    lines = streamed(tmp_path / "a.txt")
    assert [row["text"] for row in lines] == ["one", "", "two", "three"]
    assert lines[2][PLACE] == "row 2 (line 3)"
    whole = streamed(tmp_path / "a.txt", documents="paragraphs")
    assert [row["text"] for row in whole] == ["one", "two\nthree"]


def test_a_json_file_of_records_a_line_is_streamed(tmp_path):
    (tmp_path / "a.json").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    assert [(row["text"], row[PLACE]) for row in streamed(tmp_path / "a.json")] == [
        ("one", "row 0 (line 1)"), ("two", "row 1 (line 3)")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "a"}\n[1]\n', r"line 2 holds \[1\]; wanted a record with named columns"),
        ("a.csv", b"text,text\na,b\n", "two columns named 'text'"),
        ("a.csv", b"text,label\na,1\nb,2,more\n", "line 3 has 3 cells, the header 2"),
        ("a.json", b'[\n{"text": "a"}\n]\n', "can only be read whole"),
    ],
)
def test_faults_are_named_where_they_stand(name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        streamed(tmp_path / name)


def test_a_damaged_archive_is_named_when_its_end_is_reached(tmp_path):
    packed = gzip.compress(json.dumps({"text": "a" * 999}).encode() + b"\n")
    (tmp_path / "a.jsonl.gz").write_bytes(packed[:-9])
    with pytest.raises(InputError, match="Cannot read .*Mend it"):
        streamed(tmp_path / "a.jsonl.gz")


def test_bytes_of_another_encoding_name_the_option(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "gr\xf6\xdfer"}\n')
    with pytest.raises(InputError, match="as utf-8.*--encoding"):
        streamed(tmp_path / "a.jsonl", encoding="utf-8")
    assert streamed(tmp_path / "a.jsonl", encoding="latin-1")[0]["text"] == "größer"
