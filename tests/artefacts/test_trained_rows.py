"""Rows that were trained on are told by their texts, and are not scored unawares."""

from __future__ import annotations

import pytest
from datasets import Dataset

from finetune.artefacts.trained_rows import TRAINED_ROWS, read_trained_rows, save_trained_rows, unseen_rows
from finetune.data.columns import Columns
from finetune.errors import InputError

COLUMNS = Columns("text", None, "label")


def rows(*texts: str, pair: str | None = None) -> Dataset:
    more = {} if pair is None else {"second": [pair] * len(texts)}
    return Dataset.from_dict({"text": list(texts), "label": [0] * len(texts), **more})


def test_trained_rows_are_left_out_and_counted(tmp_path, caplog):
    save_trained_rows(tmp_path, rows("a film", "a story"), COLUMNS)
    kept, count = unseen_rows(tmp_path, rows("a song", "A Film ", "a story", "a play"), COLUMNS)
    assert kept["text"][:] == ["a song", "a play"] and count == 2
    assert "2 of 4 rows are left out" in caplog.text
    assert len(read_trained_rows(tmp_path)) == 2


def test_nothing_but_trained_rows_is_refused(tmp_path):
    save_trained_rows(tmp_path, rows("a film"), COLUMNS)
    with pytest.raises(InputError, match="trained on all 1 of these rows.*--keep_trained_rows true"):
        unseen_rows(tmp_path, rows("a film"), COLUMNS)


def test_the_second_text_makes_another_row(tmp_path):
    both = Columns("text", "second", "label")
    save_trained_rows(tmp_path, rows("a film", pair="x"), both)
    assert unseen_rows(tmp_path, rows("a film", pair="y"), both)[1] == 0
    # where one text ends and the other begins makes a difference
    assert unseen_rows(tmp_path, rows("a", pair="film x"), both)[1] == 0


def test_messages_are_rows_too(tmp_path):
    chats = Dataset.from_list([{"messages": [{"role": "user", "content": word}]} for word in ("a", "b")])
    columns = Columns("messages", None, "messages")
    save_trained_rows(tmp_path, chats.select([0]), columns)
    kept, count = unseen_rows(tmp_path, chats, columns)
    assert count == 1 and kept[0]["messages"][0]["content"] == "b"


def test_an_artefact_without_hashes_says_so_and_a_damaged_file_is_named(tmp_path, caplog):
    assert unseen_rows(tmp_path, rows("a"), COLUMNS)[1] == 0
    assert "does not say which rows it was trained on" in caplog.text
    (tmp_path / TRAINED_ROWS).write_bytes(b"half a file")
    with pytest.raises(InputError, match="Cannot read"):
        unseen_rows(tmp_path, rows("a"), COLUMNS)
