"""Files that are never half, on disks that are full or that flush no folder."""

from __future__ import annotations

import os

import pytest

from finetune.artefacts.files import disk_fault, flush, remove_half_written, write_atomically


def full(handle: int) -> None:
    raise OSError(28, "No space left on device")


def test_on_a_full_disk_the_old_file_stays(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_atomically(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(path, "new")
    assert path.read_text() == "old" and [one.name for one in tmp_path.iterdir()] == ["metrics.json"]
    write_atomically(path, "new")
    assert path.read_text() == "new"


def test_a_folder_that_can_not_be_flushed_is_no_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full)
    flush(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="No space left"):
        flush(tmp_path / "file")


def test_what_a_killed_process_left_is_removed(tmp_path):
    for name in (".run.json.123", ".metrics.json.7", "run.json"):
        (tmp_path / name).touch()
    remove_half_written(tmp_path, "run.json", "seal.json")
    assert sorted(one.name for one in tmp_path.iterdir()) == [".metrics.json.7", "run.json"]


def test_a_fault_of_the_disk_is_known_behind_a_librarys_own_words():
    assert disk_fault(RuntimeError("Error: no space left on device (os error 28)")) is not None
    assert disk_fault(OSError(30, "Read-only file system")) == "Read-only file system"
    assert disk_fault(ValueError("no such column")) is None
