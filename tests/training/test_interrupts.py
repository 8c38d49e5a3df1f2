"""Runs that are told to stop, or killed, go on where they were, on as many processes as there are then."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler, SkipBatchSampler
from conftest import make_model, make_tokenizer
from safetensors.torch import load_file
from torch.utils.data import BatchSampler, DataLoader
from transformers import AutoModelForSequenceClassification

from finetune.artefacts.checkpoints import checkpoints, fault
from finetune.errors import InputError
from finetune.training.interrupts import STOPPED, Notice, seconds_of, set_epoch

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("limit", "seconds"), [("3h55m", 14100), ("90m", 5400), ("1d2h", 93600), ("45s", 45), ("300", 300)]
)
def test_times_are_read(limit, seconds):
    assert seconds_of(limit) == seconds


@pytest.mark.parametrize("limit", ["", "soon", "3 h", "-5m", "h", "1.5h"])
def test_what_is_no_time_is_refused(limit):
    with pytest.raises(InputError, match="wanted a time as 3h55m"):
        seconds_of(limit)


def test_a_clock_leaves_time_for_one_more_step(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    notice, due = Notice(100), []
    notice.listen()
    notice.leave()
    for now[0] in (10, 30, 50, 70):  # steps of twenty
        due.append(notice.due())
    assert due == [None, None, None, "--time_limit"]


def test_a_signal_is_heard_and_given_back():
    before, notice = signal.getsignal(signal.SIGUSR1), Notice()
    notice.listen()
    assert notice.due() is None
    os.kill(os.getpid(), signal.SIGUSR1)
    assert notice.due() == "SIGUSR1"
    notice.leave()
    assert signal.getsignal(signal.SIGUSR1) is before


def test_an_epochs_order_is_found_behind_the_share_of_a_process_and_what_it_skips():
    orders = {}
    for skipped in (0, 1):
        rows = SeedableRandomSampler(range(16), data_seed=3)
        share = BatchSamplerShard(BatchSampler(rows, 2, drop_last=False), num_processes=2, process_index=1)
        batches = DataLoader(range(16), batch_sampler=SkipBatchSampler(share, skip_batches=skipped))
        for epoch in (0, 1):
            set_epoch(batches, epoch)
            orders[skipped, epoch] = [batch.tolist() for batch in batches]
    assert orders[0, 0] != orders[0, 1]
    assert [orders[1, epoch] for epoch in (0, 1)] == [orders[0, epoch][1:] for epoch in (0, 1)]


@pytest.fixture
def command(tmp_path, review_file):
    """Output folder and further options → the command of a run of twelve steps, with dropout."""
    base = tmp_path / "base"
    make_model(
        "bert", AutoModelForSequenceClassification, hidden_dropout_prob=0.1, num_labels=2
    ).save_pretrained(base)
    make_tokenizer("bert").save_pretrained(base)

    def make(folder: str, *further: str) -> list[str]:
        options = {
            "model_name_or_path": base, "dataset_name": review_file, "output_dir": tmp_path / folder,
            "method": "full", "max_length": 24,
            "num_train_epochs": 2, "learning_rate": 1e-2, "per_device_train_batch_size": 8,
            "save_strategy": "steps", "save_steps": 5,
            "bf16": "false", "eval_strategy": "no", "train_split": "train", "eval_split": "test",
        }  # fmt: skip
        flat = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        return [str(ROOT / "scripts" / "train.py"), *flat, *further]

    return make


def run(
    arguments: list[str], processes: int = 1, script: Path | None = None, **environment: str
) -> subprocess.CompletedProcess:
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        if processes > 1
        else []
    )
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}", **environment}
    words = [sys.executable, *launcher, *([str(script)] if script else []), *arguments]
    return subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, timeout=240)


def apart(one: Path, other: Path) -> float:
    """Largest difference of any weight of two runs."""
    here, there = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert here.keys() == there.keys()
    return max(float((here[name] - there[name]).abs().max()) for name in here)


def done(finished: subprocess.CompletedProcess) -> None:
    assert finished.returncode == 0, finished.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_finishes_the_step_seals_and_ends_with_143(command, tmp_path, number):
    done(run(command("whole")))
    with subprocess.Popen([sys.executable, *command("told", "--logging_steps", "1")], stderr=subprocess.PIPE,
    text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT),
                          "OMP_NUM_THREADS": "1"}) as told:  # fmt: skip
        for line in told.stderr:
            if "step 2/" in line:
                told.send_signal(number)
                break
        rest = told.stderr.read()
    assert told.returncode == STOPPED == 143
    assert "start the same command again" in rest
    assert fault(checkpoints(tmp_path / "told")[0]) is None
    assert not (tmp_path / "told" / "metrics.json").exists()
    done(run(command("told", "--logging_steps", "1")))
    assert apart(tmp_path / "whole", tmp_path / "told") == 0


@pytest.mark.slow
def test_a_run_out_of_time_goes_on_at_the_next_start(command, tmp_path):
    done(run(command("whole")))
    assert run(command("short", "--time_limit", "0s")).returncode == STOPPED
    done(run(command("short")))
    assert apart(tmp_path / "whole", tmp_path / "short") == 0


@pytest.mark.slow
def test_one_of_two_is_killed_and_one_goes_on_alone(command, tmp_path):
    """With dropout: chance follows from the rows, whichever process has them."""
    shares = ("--per_device_train_batch_size", "4")
    done(run(command("whole", *shares, "--gradient_accumulation_steps", "2")))
    killed = run(
        command("shared", *shares), processes=2, script=ROOT / "tests" / "killed_run.py", KILL_AT="8"
    )
    assert killed.returncode != 0
    assert [path.name for path in checkpoints(tmp_path / "shared")] == ["checkpoint-5"]
    done(run(command("shared", *shares, "--gradient_accumulation_steps", "2")))
    assert apart(tmp_path / "whole", tmp_path / "shared") < 1e-6


@pytest.mark.slow
def test_four_are_killed_at_two_and_one_goes_on(command, tmp_path):
    """Four processes' weights are one's, and those of a run of which two, and then one, were left."""
    # micro-batches of one size: dropout follows from their rows
    step = ("--global_batch_size", "8", "--per_device_train_batch_size", "2", "--save_steps", "3")
    done(run(command("whole", *step)))
    done(run(command("four", *step), processes=4))
    assert apart(tmp_path / "whole", tmp_path / "four") < 1e-6
    # the seventh step of four, and the fourth of two, whose steps are two micro-batches
    for processes, at in ((4, "7"), (2, "8")):
        killed = run(command("less", *step), processes, ROOT / "tests" / "killed_run.py", KILL_AT=at)
        assert killed.returncode != 0
    assert [path.name for path in checkpoints(tmp_path / "less")] == ["checkpoint-9", "checkpoint-6"]
    done(run(command("less", *step)))
    assert apart(tmp_path / "whole", tmp_path / "less") < 1e-6


class Machine:
    """An agent of torchrun's, as each of two machines starts it, with a worker."""

    def __init__(self, port: int, arguments: list[str], **environment: str) -> None:
        meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "elastic"]
        sizes = [
            "--nnodes",
            "1:2",
            "--nproc-per-node",
            "1",
            "--max-restarts",
            "3",
            "--rdzv-conf",
            "last_call_timeout=3",
        ]
        # a store that all rounds share holds addresses of workers that are gone, and gloo waits for them
        paths = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"}
        paths["PYTHONPATH"] = f"{ROOT / 'tests'}{os.pathsep}{ROOT}"
        words = [sys.executable, "-m", "torch.distributed.run", *meeting, *sizes, *arguments]
        self.process = subprocess.Popen(
            words, env=os.environ | paths | environment, stderr=subprocess.PIPE, text=True
        )

    def ended(self) -> str:
        said = self.process.communicate(timeout=240)[1]
        return said if self.process.returncode else ""


def _open(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("localhost", port)) == 0


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


@pytest.mark.slow
def test_a_worker_that_is_killed_is_started_again_by_torchrun(command, tmp_path, port):
    """torchrun --nnodes 1:2 --max-restarts 3: both agents start their workers anew, from a checkpoint."""
    step = ("--global_batch_size", "8", "--per_device_train_batch_size", "4")
    done(run(command("whole", *step)))
    killed = [str(ROOT / "tests" / "killed_run.py"), *command("elastic", *step)]
    machines = [Machine(port, killed, KILL_AT="8") for _ in range(2)]  # not again: seven steps are left then
    assert [machine.ended() for machine in machines] == ["", ""]
    assert apart(tmp_path / "whole", tmp_path / "elastic") < 1e-6


@pytest.mark.slow
def test_a_machine_that_is_lost_is_gone_on_without(command, tmp_path, port):
    step = ("--global_batch_size", "8", "--per_device_train_batch_size", "4")
    done(run(command("whole", *step)))
    stopped = [str(ROOT / "tests" / "killed_run.py"), *command("elastic", *step)]
    # the meeting place is with the first to come, and so is rank 0: ranks go by the agents' numbers
    first, end = Machine(port, stopped, KILL_AT="8", KILL_BY="SIGSTOP"), time.monotonic() + 150
    while not _open(port):
        assert time.monotonic() < end and first.process.poll() is None
        time.sleep(0.1)
    second = Machine(port, stopped, KILL_AT="8", KILL_BY="SIGSTOP")
    agent = psutil.Process(second.process.pid)
    while not any(child.status() == psutil.STATUS_STOPPED for child in agent.children()):
        assert time.monotonic() < end and first.process.poll() is None
        time.sleep(0.2)
    # a machine that is gone is neither agent nor worker
    for process in (*agent.children(recursive=True), agent):
        process.kill()
    second.process.communicate()
    assert first.ended() == ""
    assert apart(tmp_path / "whole", tmp_path / "elastic") < 1e-6


@pytest.mark.slow
def test_one_that_hangs_is_waited_for_as_long_as_asked(command, tmp_path):
    """A stopped process closes no connection, as a machine whose link is cut."""
    shares = ("--per_device_train_batch_size", "4", "--ddp_timeout", "5")
    script, start = ROOT / "tests" / "killed_run.py", time.monotonic()
    hung = run(command("shared", *shares), processes=2, script=script, KILL_AT="8", KILL_BY="SIGSTOP")
    assert hung.returncode != 0 and "does not answer" in hung.stderr
    # the launcher gives the stopped one half a minute, and its start takes time too
    assert time.monotonic() - start < 120
    assert [path.name for path in checkpoints(tmp_path / "shared")] == ["checkpoint-5"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "end",
    [("--max_steps", "10"), ("--max_steps", "7", "--save_steps", "7", "--lr_scheduler_type", "constant")],
)
def test_a_run_that_was_killed_after_its_last_step_takes_no_further_one(command, tmp_path, end):
    done(run(command("run", *end)))
    before = load_file(tmp_path / "run" / "model.safetensors")
    for name in ("metrics.json", "model.safetensors"):
        (tmp_path / "run" / name).unlink()
    done(run(command("run", *end)))
    after = load_file(tmp_path / "run" / "model.safetensors")
    assert all(bool((before[name] == after[name]).all()) for name in before)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == int(end[1])


@pytest.mark.slow
def test_checkpoints_hold_no_pickle_of_the_options(command, tmp_path):
    done(run(command("run")))
    assert not list((tmp_path / "run").rglob("training_args.bin"))
    refused = run(command("other", "--enable_jit_checkpoint", "true"))
    assert refused.returncode == 2
    assert "goes past the seals" in refused.stderr
