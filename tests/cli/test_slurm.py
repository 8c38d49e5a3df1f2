"""A verb queued by submitit: its options, its processes, and a job that is told to stop goes on as if
nothing had been.
"""

from __future__ import annotations

import subprocess
import textwrap
import time

import pytest

from finetune.cli import slurm
from finetune.errors import InputError


def test_options_stand_before_the_verb():
    settings, script = slurm._split(
        ["--nodes", "2", "--gpus", "8", "--partition", "long", "sft", "--config", "alpaca_lora"]
    )
    assert (settings["nodes"], settings["gpus"], settings["partition"]) == ("2", "8", "long")
    assert script[0].endswith("scripts/sft.py") and script[1:] == ["--config", "alpaca_lora"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--nodes", "2"], "no verb is named"),
        (["--node", "2", "sft"], "'--node' is no verb"),
        (["--nodes", "two", "sft"], "--nodes is two; wanted a whole number"),
        (["trian"], "'trian' is no verb"),
        ([], "no verb is named"),
    ],
)
def test_what_is_no_job_is_refused(arguments, complaint):
    with pytest.raises(InputError, match=complaint):
        slurm._split(arguments)


@pytest.mark.parametrize(
    ("time", "minutes"), [("4:00:00", 240), ("30:00", 30), ("0:00:10", 1), ("1:00:01", 61)]
)
def test_times_are_slurms(time, minutes):
    assert slurm._minutes(time) == minutes
    with pytest.raises(InputError, match="wanted H:MM:SS"):
        slurm._minutes("soon")


def test_one_machine_needs_no_meeting_and_several_meet_at_the_first(monkeypatch):
    assert "--standalone" in slurm.Node(["train.py"], 8).command()
    names = subprocess.CompletedProcess([], 0, "one\ntwo\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: names)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    words = " ".join(slurm.Node(["train.py", "--seed", "3"], 8, 2).command())
    assert "--rdzv-endpoint one:29500 --rdzv-id 77 --nnodes 2 --nproc-per-node 8" in words
    assert words.endswith("train.py --seed 3")


@pytest.mark.slow
def test_every_process_is_told_and_none_is_killed(tmp_path):
    """torchrun itself gets nothing: it would end at the signal and take its processes with it."""
    script = tmp_path / "saves.py"
    script.write_text(
        textwrap.dedent(f"""
        import os, signal, sys, time
        from pathlib import Path
        here = Path({str(tmp_path)!r})
        def told(*_):
            time.sleep(0.5)
            (here / f"saved-{{os.environ['RANK']}}").touch()
            sys.exit(143)
        signal.signal(signal.SIGUSR1, told)
        (here / f"up-{{os.environ['RANK']}}").touch()
        time.sleep(60)
    """)
    )
    node = slurm.Node([str(script)], 2)
    node._torchrun = subprocess.Popen(node.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not ((tmp_path / "up-0").exists() and (tmp_path / "up-1").exists()):
        assert time.monotonic() < end
        time.sleep(0.1)
    again = node.checkpoint().function
    assert (tmp_path / "saved-0").exists() and (tmp_path / "saved-1").exists()
    assert node._torchrun.returncode != 0
    assert (again.script, again.processes) == ([str(script)], 2)


@pytest.mark.slow
def test_a_job_runs_on_this_machine(tmp_path):
    folder = str(tmp_path / "log")
    job = slurm.submit(
        [
            "--gpus",
            "0",
            "--processes",
            "2",
            "--log_folder",
            folder,
            "--time",
            "0:05:00",
            "tokenizer",
            "--help",
        ],
        "local",
    )
    assert job.result() == 0
    assert "--vocab_size" in job.stdout()
