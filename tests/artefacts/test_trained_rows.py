"""Rows that were trained on are told by their texts, and are not scored unawares."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from datasets import Dataset

from finetune.artefacts.trained_rows import (
    TRAINED_ROWS,
    read_texts_alone,
    read_trained_rows,
    save_trained_rows,
    trained_among,
    unseen_rows,
)
from finetune.data.columns import Columns
from finetune.data.questions import lay_out_chats
from finetune.data.sources import DataArguments
from finetune.errors import InputError

COLUMNS = Columns("text", None, "label")


def rows(*texts: str, pair: str | None = None) -> Dataset:
    more = {} if pair is None else {"second": [pair] * len(texts)}
    return Dataset.from_dict({"text": list(texts), "label": [0] * len(texts), **more})


def test_trained_rows_are_left_out_and_counted(tmp_path, caplog):
    save_trained_rows(tmp_path, (rows("a film", "a story"), COLUMNS))
    kept, count = unseen_rows(tmp_path, rows("a song", "A Film ", "a story", "a play"), COLUMNS)
    assert kept["text"][:] == ["a song", "a play"] and count == 2
    assert "2 of 4 rows are left out" in caplog.text
    assert len(read_trained_rows(tmp_path)) == 2


def test_nothing_but_trained_rows_is_refused(tmp_path):
    save_trained_rows(tmp_path, (rows("a film"), COLUMNS))
    with pytest.raises(InputError, match="trained on all 1 of these rows.*--keep_trained_rows true"):
        unseen_rows(tmp_path, rows("a film"), COLUMNS, keep=False)
    # a verb without the option names none
    with pytest.raises(InputError, match="rows it has not seen$"):
        unseen_rows(tmp_path, rows("a film"), COLUMNS)
    kept, count = unseen_rows(tmp_path, rows("a film", "a song"), COLUMNS, keep=True)
    assert len(kept) == 2 and count == 1


def test_the_second_text_makes_another_row(tmp_path):
    both = Columns("text", "second", "label")
    save_trained_rows(tmp_path, (rows("a film", pair="x"), both))
    assert unseen_rows(tmp_path, rows("a film", pair="y"), both)[1] == 0
    # where one text ends and the other begins makes a difference
    assert unseen_rows(tmp_path, rows("a", pair="film x"), both)[1] == 0


def test_messages_are_rows_too(tmp_path):
    chats = Dataset.from_list([{"messages": [{"role": "user", "content": word}]} for word in ("a", "b")])
    columns = Columns("messages", None, "messages")
    save_trained_rows(tmp_path, (chats.select([0]), columns))
    kept, count = unseen_rows(tmp_path, chats, columns)
    assert count == 1 and kept[0]["messages"][0]["content"] == "b"


def test_an_artefact_without_hashes_says_so_and_a_damaged_file_is_named(tmp_path, caplog):
    assert unseen_rows(tmp_path, rows("a"), COLUMNS)[1] == 0
    assert "does not say which rows it was trained on" in caplog.text
    (tmp_path / TRAINED_ROWS).write_bytes(b"half a file")
    with pytest.raises(InputError, match="Cannot read"):
        unseen_rows(tmp_path, rows("a"), COLUMNS)


def test_rows_are_told_by_whatever_column_holds_what_was_read(tmp_path):
    save_trained_rows(tmp_path, (rows("a film"), COLUMNS))
    other = Dataset.from_dict({"id": ["1", "2"], "Review": ["a song", "A film"], "stars": [1, 5]})
    assert trained_among(tmp_path, other, None).tolist() == [False, True]
    # of two texts the order is the training's own affair
    both = tmp_path / "both"
    both.mkdir()
    save_trained_rows(both, (rows("a film", pair="x"), Columns("text", "second", "label")))
    turned = Dataset.from_dict({"a": ["x", "x"], "b": ["a film", "a song"]})
    assert trained_among(both, turned, None).tolist() == [True, False]


def test_numbers_tell_no_row(tmp_path):
    save_trained_rows(tmp_path, (Dataset.from_dict({"n": [1]}), Columns("n", None, "n")))
    assert not trained_among(tmp_path, rows("a film"), None).any()


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Name it.", "input": "a film", "output": "Jaws"},
        {"messages": [{"role": "user", "content": "Name it."}, {"role": "assistant", "content": "Jaws"}]},
        {"prompt": "Name it.", "completion": "Jaws"},
    ],
)
def test_instructions_are_told_as_they_were_laid_out(tmp_path, row):
    raw = Dataset.from_list([row, json.loads(json.dumps(row).replace("Name it.", "Say it."))])
    laid = lay_out_chats(raw, DataArguments(dataset_name=["x"]))
    save_trained_rows(tmp_path, (laid.rows.select([0]), laid.columns))
    assert trained_among(tmp_path, raw, None).tolist() == [True, False]


def test_a_run_knows_the_rows_of_the_run_that_it_began_with(tmp_path):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    for folder, start in ((first, "minilm"), (second, str(first)), (third, str(second))):
        folder.mkdir()
        (folder / "arguments.yaml").write_text(yaml.safe_dump({"model_name_or_path": start}))
        save_trained_rows(folder, (rows(f"a {folder.name}"), COLUMNS))
    shutil.rmtree(first)  # nothing is forgotten with its folder
    assert unseen_rows(third, rows("a first", "a second", "a third", "a song"), COLUMNS).rows["text"][:] == [
        "a song"
    ]


def test_texts_that_a_start_read_without_answers_are_not_held_against_a_run(tmp_path):
    start, tuned = tmp_path / "start", tmp_path / "tuned"
    for folder, options in ((start, {"objective": "mlm"}), (tuned, {"model_name_or_path": str(start)})):
        folder.mkdir()
        (folder / "arguments.yaml").write_text(yaml.safe_dump(options))
        save_trained_rows(folder, (rows(f"a {folder.name}"), COLUMNS))
    assert unseen_rows(tuned, rows("a start", "a tuned"), COLUMNS).rows["text"][:] == ["a start"]
    assert read_texts_alone(start) and not read_texts_alone(tuned)


def test_a_sum_of_adapters_knows_the_rows_of_each(tmp_path):
    folders = [tmp_path / name for name in ("one", "two", "sum")]
    for folder in folders:
        folder.mkdir()
    for folder in folders[:2]:
        save_trained_rows(folder, (rows(folder.name), COLUMNS))
    save_trained_rows(folders[2], of=folders[:2])
    assert len(read_trained_rows(folders[2])) == 2
