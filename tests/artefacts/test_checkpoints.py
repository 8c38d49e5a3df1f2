"""Seals, and output folders that are never overwritten."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml
from conftest import make_model
from transformers import AutoModelForCausalLM

from finetune.artefacts.checkpoints import fault, newest, rotate, seal
from finetune.artefacts.runs import LOCK, open_run
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
        ({"max_length": 4}, "rows", "max_length: None there, 4 now"),
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
    open_run(options(tmp_path / "other"), "rows")
    saved = checkpoint(tmp_path / "other", 3)
    with pytest.raises(InputError, match="Can't continue from .*no seal"):
        open_run(options(tmp_path / "run", resume_from_checkpoint=str(saved)), "rows")
    with pytest.raises(InputError, match="there is no such folder"):
        open_run(options(tmp_path / "run", resume_from_checkpoint=str(tmp_path / "none")), "rows")
    seal(saved)
    assert open_run(options(tmp_path / "run", resume_from_checkpoint=str(saved)), "rows") == saved


def test_a_named_checkpoint_of_another_run_is_refused_and_a_finished_run_left_alone(tmp_path):
    open_run(options(tmp_path / "other"), "rows")
    saved = checkpoint(tmp_path / "other", 3)
    seal(saved)
    named = {"resume_from_checkpoint": str(saved)}
    for changed, rows, complaint in (
        ({"seed": 1}, "rows", "seed: 42 there, 1 now"),
        ({}, "others", "other rows"),
    ):
        with pytest.raises(InputError, match=complaint):
            open_run(options(tmp_path / "run", **named, **changed), rows)
    (tmp_path / "other" / "metrics.json").write_text("{}")
    with pytest.raises(InputError, match="already holds a finished run"):
        open_run(options(tmp_path / "other", **named), "rows")


def test_the_same_rows_a_step_are_the_same_run_however_they_are_dealt_out(tmp_path):
    shares = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    open_run(options(tmp_path / "run", **shares), "rows")
    others = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    assert open_run(options(tmp_path / "run", **others), "rows") is None
    with pytest.raises(InputError, match="rows a step over all processes: 8 there, 4 now"):
        open_run(options(tmp_path / "run", **(others | {"per_device_train_batch_size": 4})), "rows")


def test_other_weights_at_the_same_path_are_another_base(tmp_path):
    one, other = (make_model("gpt2", AutoModelForCausalLM, seed) for seed in (0, 1))
    open_run(options(tmp_path / "run"), "rows", one)
    assert open_run(options(tmp_path / "run"), "rows", one) is None
    with pytest.raises(InputError, match="a base with other weights"):
        open_run(options(tmp_path / "run"), "rows", other)


def test_a_person_s_copies_are_no_checkpoints(tmp_path):
    seal(checkpoint(tmp_path, 5))
    for name in ("checkpoint-5.bak", "checkpoint-best", "checkpoint-", "checkpoint-7-old"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-9").write_text("a file")
    assert newest(tmp_path).name == "checkpoint-5"
    rotate(tmp_path, 1)
    assert len(list(tmp_path.iterdir())) == 6


def test_old_checkpoints_go_when_a_newer_one_is_whole(tmp_path):
    for step in (1, 2, 3):
        seal(checkpoint(tmp_path, step))
    checkpoint(tmp_path, 4)  # not sealed: what a kill in mid-save leaves
    rotate(tmp_path, 1, best=str(tmp_path / "checkpoint-1"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-1",
        "checkpoint-3",
        "checkpoint-4",
    ]


def test_a_checkpoint_whose_best_one_is_damaged_is_passed_over(tmp_path):
    for step, best in ((1, None), (2, 1), (3, 2)):
        saved = checkpoint(tmp_path, step)
        named = None if best is None else f"elsewhere/checkpoint-{best}"
        (saved / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": named}))
        seal(saved)
    assert newest(tmp_path).name == "checkpoint-3"
    (tmp_path / "checkpoint-2" / "optimizer.pt").write_bytes(b"damage")
    assert newest(tmp_path).name == "checkpoint-1"


@pytest.mark.parametrize(
    "left",
    [(), (".lock",), ("run.json",), (".arguments.yaml.77",), ("run.json", ".arguments.yaml.77", ".lock")],
)
def test_a_claim_that_was_killed_leaves_a_fresh_folder(tmp_path, left):
    for name in left:
        (tmp_path / name).write_text("")
    assert open_run(options(tmp_path), "rows") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",
        "arguments.yaml",
        "environment.json",
        "run.json",
    ]


def test_two_starts_never_share_a_folder(tmp_path):
    locking = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'w'); "
        "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB); print('mine', flush=True); time.sleep(60)"
    )
    # what `open_run` does, without the seconds that its imports take
    command = [sys.executable, "-c", locking, str(tmp_path / LOCK)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(InputError, match="Another process works in"):
            open_run(options(tmp_path), "rows")
        other.kill()
    assert open_run(options(tmp_path), "rows") is None  # its lock went with it
    late = subprocess.run(command, capture_output=True, text=True)
    assert "BlockingIOError" in late.stderr and not late.stdout
