"""Seals, and output folders that are never overwritten."""

from __future__ import annotations

import pytest
import yaml

from finetune.artefacts.checkpoints import fault, newest, open_run, seal
from finetune.errors import InputError


def checkpoint(folder, step: int):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "optimizer.pt").write_bytes(b"state" * step)
    (path / "trainer_state.json").write_text("{}")
    return path


def options(folder, **others):
    return {"output_dir": str(folder), "learning_rate": 1e-3, "seed": 42} | others


def test_only_whole_checkpoints_count(tmp_path):
    for step in (5, 10, 100):
        seal(checkpoint(tmp_path, step))
    assert newest(tmp_path).name == "checkpoint-100"  # by number, not by name
    (tmp_path / "checkpoint-100" / "optimizer.pt").write_bytes(b"damage")
    assert "optimizer.pt was changed" in fault(tmp_path / "checkpoint-100")
    (tmp_path / "checkpoint-10" / "trainer_state.json").unlink()
    assert "trainer_state.json is missing" in fault(tmp_path / "checkpoint-10")
    checkpoint(tmp_path, 200)
    assert "no seal" in fault(tmp_path / "checkpoint-200")
    assert newest(tmp_path).name == "checkpoint-5"
    (tmp_path / "checkpoint-5" / "seal.json").write_text("{")
    assert newest(tmp_path) is None


def test_a_fresh_folder_is_claimed(tmp_path):
    assert open_run(options(tmp_path / "run"), "rows") is None
    assert yaml.safe_load((tmp_path / "run" / "arguments.yaml").read_text())["learning_rate"] == 1e-3


def test_the_same_unfinished_run_goes_on(tmp_path):
    open_run(options(tmp_path / "run"), "rows")
    assert open_run(options(tmp_path / "run"), "rows") is None  # stopped before its first checkpoint
    saved = checkpoint(tmp_path / "run", 7)
    seal(saved)
    assert open_run(options(tmp_path / "run", logging_steps=3), "rows") == saved


@pytest.mark.parametrize(
    ("change", "rows", "complaint"),
    [
        ({"learning_rate": 1e-4}, "rows", "another, unfinished run .learning_rate: 0.001 there, 0.0001 now"),
        ({"seed": 1}, "rows", "seed: 42 there, 1 now"),
        ({"per_device_train_batch_size": 4}, "rows", "per_device_train_batch_size: None there, 4 now"),
        ({}, "others", "an unfinished run on other rows"),
    ],
)
def test_another_run_is_refused(tmp_path, change, rows, complaint):
    open_run(options(tmp_path / "run"), "rows")
    before = {path.name: path.read_text() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(InputError, match=complaint):
        open_run(options(tmp_path / "run", **change), rows)
    assert {path.name: path.read_text() for path in (tmp_path / "run").iterdir()} == before


def test_finished_runs_and_foreign_folders_are_left_alone(tmp_path):
    open_run(options(tmp_path / "run"), "rows")
    (tmp_path / "run" / "metrics.json").write_text("{}")
    with pytest.raises(InputError, match="already holds a finished run. Set --output_dir"):
        open_run(options(tmp_path / "run"), "rows")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    with pytest.raises(InputError, match="holds files that are no run's"):
        open_run(options(tmp_path / "thesis"), "rows")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]


def test_a_named_checkpoint_must_be_whole(tmp_path):
    saved = checkpoint(tmp_path / "other", 3)
    with pytest.raises(InputError, match="Can't continue from .*no seal"):
        open_run(options(tmp_path / "run", resume_from_checkpoint=str(saved)), "rows")
    with pytest.raises(InputError, match="there is no such folder"):
        open_run(options(tmp_path / "run", resume_from_checkpoint=str(tmp_path / "none")), "rows")
    seal(saved)
    assert open_run(options(tmp_path / "run", resume_from_checkpoint=str(saved)), "rows") == saved
