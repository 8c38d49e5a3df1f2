"""Where rows come from, and what a user hears when they don't."""

from __future__ import annotations

import json
from collections import Counter

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict

from finetune.data.folders import files_of
from finetune.data.sources import DataArguments, load_rows, read_splits, sample
from finetune.errors import InputError

ROWS = {"text": ["good", "bad", "fine", "dull"], "label": ["pos", "neg", "pos", "neg"]}


def test_files_of_every_kind(tmp_path):
    table = Dataset.from_dict(ROWS)
    table.to_parquet(tmp_path / "a.parquet")
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    table.to_json(tmp_path / "a.jsonl")
    (tmp_path / "a.json").write_text(
        json.dumps([{"text": t, "label": n} for t, n in zip(*ROWS.values(), strict=True)])
    )
    (tmp_path / "a.txt").write_text("\n".join(ROWS["text"]))
    for kind in ("parquet", "csv", "tsv", "jsonl", "json"):
        assert read_splits(str(tmp_path / f"a.{kind}"))["train"].to_dict() == ROWS, kind
    assert read_splits(str(tmp_path / "a.txt"))["train"]["text"][:] == ROWS["text"]


def test_a_folder_names_its_splits(tmp_path):
    table = Dataset.from_dict(ROWS)
    (tmp_path / "data").mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "dev-00000-of-00001", "test-00000-of-00001"):
        table.to_parquet(tmp_path / "data" / f"{name}.parquet")
    assert {k: len(v) for k, v in read_splits(str(tmp_path)).items()} == {
        "train": 8,
        "validation": 4,
        "test": 4,
    }


def test_numbered_parts_of_a_split_are_that_split_and_other_numbers_are_names(tmp_path):
    for name in ("train-00000", "train_1", "train-2", "dev_1", "news-2020", "training_3"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "a"}\n')
    found = {split: [file.stem for file in files] for split, files in files_of(tmp_path, None).items()}
    assert found == {
        "train": ["train-00000", "train-2", "train_1"],
        "validation": ["dev_1"],
        "news-2020": ["news-2020"],
        "training_3": ["training_3"],
    }


def test_a_saved_data_set(tmp_path):
    DatasetDict({"train": Dataset.from_dict(ROWS), "test": Dataset.from_dict(ROWS)}).save_to_disk(
        tmp_path / "saved"
    )
    assert set(read_splits(str(tmp_path / "saved"))) == {"train", "test"}


def test_named_files(tmp_path):
    Dataset.from_dict(ROWS).to_csv(tmp_path / "one.csv", index=False)
    found = read_splits(str(tmp_path), data_files=["train=one.csv", "test=one.csv"])
    assert {k: len(v) for k, v in found.items()} == {"train": 4, "test": 4}
    with pytest.raises(InputError, match=r"No file .*two.csv, named by --data_files test=two.csv"):
        read_splits(str(tmp_path), data_files=["test=two.csv"])


def test_folders_name_the_splits_of_files_whose_names_tell_none(tmp_path):
    for place in ("train/part_1.csv", "train/part_2.csv", "Val/part_1.csv", "test/more/rows.csv"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(f"text,label\n{place},a\n")
    rows = load_rows(DataArguments([str(tmp_path)]))
    assert rows.train["text"][:] == ["train/part_1.csv", "train/part_2.csv"]
    assert rows.eval["text"][:] == ["Val/part_1.csv"]


def test_default_splits_and_slices(review_file):
    rows = load_rows(DataArguments(str(review_file)))
    assert (len(rows.train), len(rows.eval)) == (48, 24)
    half = load_rows(DataArguments(str(review_file), train_split="train[:50%]", eval_split="test[-4:]"))
    assert (len(half.train), len(half.eval)) == (24, 4)


def test_without_an_evaluation_split_rows_are_kept_aside(tmp_path):
    Dataset.from_dict({"text": [str(i) for i in range(50)], "label": [0, 1] * 25}).to_parquet(
        tmp_path / "x.parquet"
    )
    rows = load_rows(DataArguments(str(tmp_path / "x.parquet")))
    assert (len(rows.train), len(rows.eval)) == (45, 5)
    assert not set(rows.train["text"]) & set(rows.eval["text"])


def test_a_file_of_another_kind_is_no_split(tmp_path, caplog):
    for split in ("train", "validation"):
        Dataset.from_dict({"text": [split]}).to_parquet(tmp_path / f"{split}.parquet")
    (tmp_path / "input.txt").write_text("everything")
    assert set(read_splits(str(tmp_path))) == {"train", "validation"}
    assert "input.txt" in caplog.text and "--data_files" in caplog.text
    (tmp_path / "train.txt").write_text("which one?")
    with pytest.raises(InputError, match="Files of several kinds"):
        read_splits(str(tmp_path))


def test_every_set_at_hand_can_be_read(shared_data):
    for folder in sorted(path for path in shared_data.iterdir() if path.is_dir()):
        assert len(read_splits(str(folder))["train"]) > 0, folder


def test_a_sorted_file_gives_a_balanced_sample():
    rows = Dataset.from_dict({"text": list("abcdefghij"), "label": [0] * 7 + [1] * 3}).cast_column(
        "label", ClassLabel(names=["n", "p"])
    )
    assert Counter(sample(rows, 4, 0, "label")["label"]) == {0: 2, 1: 2}
    assert Counter(sample(rows, 8, 0, "label")["label"]) == {0: 5, 1: 3}
    assert sample(rows, 4, 0, "label")["text"][:] == sample(rows, 4, 0, "label")["text"][:]
    assert sample(rows, 4, 0, "label")["text"][:] != sample(rows, 4, 1, "label")["text"][:]
    assert sorted(sample(rows, None, 0)["text"][:]) == list("abcdefghij") != sample(rows, None, 0)["text"][:]


@pytest.mark.parametrize(
    ("content", "name", "complaint"),
    [
        (b"PAR1 no parquet at all", "train.parquet", "Cannot read .*parquet"),
        (b'{"text": "a"\n{', "train.jsonl", "Cannot read .*jsonl"),
        (b"text,label\n", "train.csv", "has 0 rows"),
    ],
)
def test_damaged_and_empty_files(tmp_path, content, name, complaint):
    (tmp_path / name).write_bytes(content)
    (tmp_path / name.replace("train", "test")).write_bytes(content)
    with pytest.raises(InputError, match=complaint):
        load_rows(DataArguments(str(tmp_path)))


def test_names_that_are_nothing(tmp_path, monkeypatch):
    with pytest.raises(
        InputError, match="No data set 'imbd': not a file or folder here, not a built-in corpus"
    ):
        load_rows(DataArguments("imbd"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tickets.csv").write_text("text,label\n")
    # what can only be a file's name is not asked for elsewhere
    for name, said in (
        ("ticket.csv", r"No file or folder 'ticket.csv' in .*; there are tickets.csv. Set --dataset_name"),
        (str(tmp_path / "none"), "No file or folder"),
        (r"C:\Users\me\tickets.csv", "a path of Windows, and this is none. Under WSL"),
    ):
        with pytest.raises(InputError, match=said):
            load_rows(DataArguments(name))
    (tmp_path / "tickets.csv").rename(tmp_path / "notes.pdf")
    with pytest.raises(InputError, match="holds no file that can be read"):
        load_rows(DataArguments(str(tmp_path)))
    with pytest.raises(InputError, match=r"ends in '\.pdf'"):
        load_rows(DataArguments(str(tmp_path / "notes.pdf")))


def test_splits_and_slices_that_are_not_there(review_file):
    with pytest.raises(InputError, match="No split 'training'; there are: .*Set --train_split"):
        load_rows(DataArguments(str(review_file), train_split="training"))
    with pytest.raises(InputError, match="No split 'val'.*Set --eval_split"):
        load_rows(DataArguments(str(review_file), eval_split="val"))
    with pytest.raises(InputError, match="Cannot read the slice"):
        load_rows(DataArguments(str(review_file), train_split="train[a:b]"))
    with pytest.raises(InputError, match="Asked for 0 rows"):
        sample(Dataset.from_dict(ROWS), 0, 0)


def test_imdb_is_sorted_and_the_sample_is_not(shared_data):
    rows = load_rows(DataArguments(str(shared_data / "imdb")))
    assert len(set(rows.train.select(range(12_000))["label"])) == 1
    assert Counter(sample(rows.train, 2000, 0, "label")["label"]) == {0: 1000, 1: 1000}


@pytest.mark.network
def test_a_hub_data_set():
    datasets.config.HF_HUB_OFFLINE = False
    assert len(load_rows(DataArguments("stanfordnlp/imdb")).train) == 25_000
