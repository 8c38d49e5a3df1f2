"""A verb queued by submitit: its options, its processes, and a job that is told to stop goes on as if
nothing had been.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from conftest import make_model, make_tokenizer
from slurm_cluster import cluster, why_not
from transformers import AutoModel

from finetune.artefacts.checkpoints import checkpoints
from finetune.cli import slurm
from finetune.errors import InputError

STARTED = "from finetune.cli.command import main; main()"


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
    node._torchrun.wait()  # it is gone: subprocess only has to hear of it
    assert not psutil.pid_exists(node._torchrun.pid)
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


ROOT = Path(__file__).parents[2]
FILE = ROOT / "scripts" / "launch" / "slurm.sbatch"
PATHS = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def options_of(folder: Path, rows: Path) -> list[str]:
    """Four hundred steps of a tiny model in two processes, into `run`."""
    base = folder / "base"
    make_model("bert", AutoModel).save_pretrained(base)
    make_tokenizer("bert").save_pretrained(base)
    options = {
        "model_name_or_path": base, "dataset_name": rows, "output_dir": folder / "run", "method": "full",
        "bf16": "false", "max_steps": 400, "eval_strategy": "no", "save_strategy": "no", "logging_steps": 5,
        "global_batch_size": 8, "per_device_train_batch_size": 4, "max_length": 24,
    }  # fmt: skip
    return [str(part) for name, value in options.items() for part in (f"--{name}", value)]


@pytest.mark.slow
@pytest.mark.skipif(why_not() is not None, reason=f"{why_not()}")
def test_the_file_for_sbatch_ends_with_its_run_and_goes_on_where_its_time_ended(tmp_path, review_file):
    words = options_of(tmp_path, review_file)
    settings = ["--gpus-per-node=0", "--cpus-per-task=2", "--time=0:20:00"]
    with cluster(tmp_path / "cluster") as environment:
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"

        def said(*asked: str) -> str:
            return subprocess.run(asked, env=environment, cwd=ROOT, capture_output=True, text=True).stdout

        def queued(name: str, *further: str) -> Path:
            log = tmp_path / f"{name}.log"
            own = ("train", *words, "--output_dir", str(tmp_path / name), *further)
            assert "Submitted" in said("sbatch", *settings, f"--output={log}", str(FILE), *own)
            return log

        def wait(until, log: Path) -> None:
            end = time.monotonic() + 240
            while not until():
                assert time.monotonic() < end, log.read_text()[-3000:]
                time.sleep(0.5)

        whole = queued("whole", "--max_steps", "20")
        wait(lambda: not said("squeue", "-h"), whole)
        assert json.loads((tmp_path / "whole" / "metrics.json").read_text())["steps"] == 20
        stopped = queued("stopped", "--max_steps", "100000", "--time_limit", "40s")
        wait(lambda: stopped.is_file() and "Continuing the unfinished run" in stopped.read_text(), stopped)
        said("scancel", "--state=RUNNING")


@pytest.mark.slow
@pytest.mark.skipif(why_not() is not None, reason=f"{why_not()}")
def test_slurm_starts_a_run_on_two_nodes_queues_it_again_and_ends_it(tmp_path, review_file):
    pytest.importorskip("submitit", reason="queueing needs the extra 'cluster'")
    run = tmp_path / "run"
    words = options_of(tmp_path, review_file)
    settings = ["--nodes", "2", "--gpus", "0", "--time", "0:20:00", "--log_folder", str(tmp_path / "log")]
    command = [sys.executable, "-c", STARTED, "launch", "--slurm", *settings, "train", *words]
    with cluster(tmp_path / "cluster") as environment:
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS}
        queued = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert queued.returncode == 0, queued.stderr[-2000:]
        job = queued.stdout.split()[-1]

        def said(*asked: str) -> str:
            return subprocess.run(asked, env=environment, capture_output=True, text=True).stdout.strip()

        def wait(until) -> None:
            end = time.monotonic() + 240
            while not until():
                logs = "".join(file.read_text()[-3000:] for file in (tmp_path / "log").glob("*.err"))
                assert time.monotonic() < end and (said("squeue", "-h") or until()), logs
                time.sleep(0.2)

        wait(
            lambda: (
                (run / "history.jsonl").is_file() and (run / "history.jsonl").read_text().count("loss") > 2
            )
        )
        # Slurm's own notice before the end of a job's time is this signal
        said("scancel", "--signal=USR2", job)
        wait(lambda: "PENDING" in said("squeue", "-h", "-o", "%T"))
        (sealed,) = checkpoints(run)
        wait(lambda: (run / "metrics.json").is_file())
    assert json.loads((run / "metrics.json").read_text())["steps"] == 400
    restarted = "".join(file.read_text() for file in (tmp_path / "log").glob("*.err"))
    assert f"Continuing the unfinished run in {run} from {sealed.name}" in restarted
