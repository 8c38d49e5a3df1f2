"""`finetune launch --slurm`: a verb on several machines by Slurm, queued again when its time is over. Knows
submitit and torchrun.

finetune launch --slurm --nodes 2 --gpus 8 --time 4:00:00 sft --config alpaca_lora --output_dir
/shared/runs/alpaca

  --nodes N            machines (default 1)
  --gpus N             GPUs, and processes, on each (default 1; 0 for processes on CPUs)
  --processes N        processes on each where there are no GPUs (default 1)
  --time H:MM:SS       of one stay; when it is over the job is queued again and goes on (default 4:00:00)
  --partition NAME     and --account, --qos, --constraint: Slurm's own
  --log_folder FOLDER  what the job prints, and the job itself as submitit keeps it (default slurm)

Slurm gives notice five minutes before the end: every process finishes its step, a checkpoint is sealed, and
the job is queued again. --output_dir must lie on a disk that all machines share. Needs `pip install
submitit`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from finetune.cli.places import verbs
from finetune.errors import InputError

# Long enough for a step, and for a checkpoint to a shared disk.
NOTICE_SECONDS = 300
# A run ends by being finished; what fails is not queued again.
MOST_STAYS = 10_000
OWN = {"nodes": "1", "gpus": "1", "processes": "1", "time": "4:00:00", "log_folder": "slurm"}
SLURMS = ("partition", "account", "qos", "constraint")


@dataclass
class Node:
    """One machine's part of a job, as submitit runs, interrupts and queues it: torchrun, and notice for its
    processes.

    Attributes:
        script: of the verb, and its options.
        processes: on each machine.
    """

    script: list[str]
    processes: int
    nodes: int = 1
    _torchrun: Any = field(default=None, repr=False)

    def __call__(self) -> int:
        """The status of the run; 0 where it is finished."""
        # Slurm's notice goes to every process of a step and would end those that don't know it: submitit
        # alone hears it, and tells the processes that train in their own words.
        deaf = ["sh", "-c", 'trap "" USR2; exec "$@"', "sh"]
        self._torchrun = subprocess.Popen([*deaf, *self.command()])
        status = self._torchrun.wait()
        if status:
            # submitit takes an exception for a failure, and no status.
            raise RuntimeError(
                f"The run ended with status {status}; its own words stand above and in the log's error file"
            )
        return status

    def command(self) -> list[str]:
        """torchrun on this machine; on several, all meet at the first one."""
        meeting = ["--standalone"]
        if self.nodes > 1:
            names = subprocess.run(
                ["scontrol", "show", "hostnames"], capture_output=True, text=True, check=True
            ).stdout.split()
            meeting = [
                "--rdzv-backend",
                "c10d",
                # The first name of the list: every machine makes the same choice.
                "--rdzv-endpoint",
                f"{names[0]}:29500",
                "--rdzv-id",
                os.environ["SLURM_JOB_ID"],
            ]
        # No restarts by torchrun: the queue starts again from the checkpoint.
        size = ["--nnodes", str(self.nodes), "--nproc-per-node", str(self.processes), "--max-restarts", "0"]
        return [sys.executable, "-m", "torch.distributed.run", *meeting, *size, *self.script]

    def checkpoint(self, *arguments: Any, **named: Any) -> Any:
        """submitit calls this when Slurm gives notice: the processes are told, waited for, and the
        same job is queued again.
        """
        import submitit

        if self._torchrun is not None:
            self.tell()
        # A fresh one: the running torchrun can't be pickled.
        return submitit.helpers.DelayedSubmission(Node(self.script, self.processes, self.nodes))

    def tell(self, seconds: float = NOTICE_SECONDS - 30) -> None:
        """SIGUSR1 to the training processes, not to torchrun, which would end at it; then wait until
        all have saved and gone.
        """
        # torchrun's own children are the processes that train.
        torchrun = psutil.Process(self._torchrun.pid)
        for child in torchrun.children():
            child.send_signal(signal.SIGUSR1)
        # By psutil: this is a signal's handler, and the call that it interrupted holds subprocess's own lock.
        _, alive = psutil.wait_procs([torchrun], timeout=seconds)
        for one in alive:
            # Slurm would end it a moment later, without queueing again.
            one.kill()


def submit(arguments: list[str], cluster: str = "slurm") -> Any:
    """Queue a verb and give back submitit's job.

    Args:
        arguments: of `finetune launch`, without `--slurm`.
        cluster: submitit's name of where to run; `local` runs it on this machine.

    Raises:
        InputError: no verb, an option that isn't one, or no submitit or Slurm here.
    """
    settings, script = _split(arguments)
    try:
        # Late: it is an extra.
        import submitit

        # submitit's own 3 would leave a run unfinished after its fourth stay without a word
        executor = submitit.AutoExecutor(
            folder=settings["log_folder"], cluster=cluster, slurm_max_num_timeout=MOST_STAYS
        )
    except ImportError as error:
        raise InputError("finetune launch --slurm needs submitit (pip install submitit)") from error
    except RuntimeError as error:
        raise InputError(
            f"finetune launch --slurm: {error}. Wanted: a machine that Slurm's sbatch stands on"
        ) from error
    gpus, nodes = int(settings["gpus"]), int(settings["nodes"])
    # Without GPUs as many processes as were asked for.
    processes = gpus or int(settings["processes"])
    further = {f"slurm_{name}": settings[name] for name in SLURMS if name in settings}
    executor.update_parameters(
        nodes=nodes, tasks_per_node=1, timeout_min=_minutes(settings["time"]),
        name=f"finetune-{Path(script[0]).stem}",
        # The first machine queues the job again after the others have ended: their status must not end it.
        slurm_signal_delay_s=NOTICE_SECONDS, slurm_srun_args=["--kill-on-bad-exit=0"],
        slurm_additional_parameters={"requeue": True},
        **({"gpus_per_node": gpus} if gpus else {"cpus_per_task": processes}), **further,
    )  # fmt: skip
    return executor.submit(Node(script, processes, nodes))


def _split(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """(Settings by name, the verb's script and its options)."""
    settings, known, place = dict(OWN), verbs(), 0
    while place < len(arguments) and arguments[place] not in known:
        name = arguments[place].removeprefix("--")
        if name not in (*OWN, *SLURMS) or place + 1 == len(arguments):
            wanted = ", ".join(f"--{one}" for one in (*OWN, *SLURMS))
            raise InputError(
                f"finetune launch --slurm: '{arguments[place]}' is no verb and none of its options ({wanted})"
            )
        settings[name] = arguments[place + 1]
        place += 2
    if place == len(arguments):
        raise InputError(
            "finetune launch --slurm: no verb is named. Wanted: finetune launch --slurm --nodes 2 --gpus 8 "
            "VERB ..."
        )
    for name in ("nodes", "gpus", "processes"):
        if not settings[name].isdecimal() or (name != "gpus" and settings[name] == "0"):
            raise InputError(f"finetune launch --slurm: --{name} is {settings[name]}; wanted a whole number")
    return settings, [str(known[arguments[place]]), *arguments[place + 1 :]]


def _minutes(time: str) -> int:
    parts = time.split(":")
    if not all(part.isdecimal() for part in parts) or len(parts) > 3:
        raise InputError(f"finetune launch --slurm: --time is {time}; wanted H:MM:SS")
    # H:MM:SS, from behind: "30:00" is half an hour.
    hours, minutes, seconds = map(int, ["0"] * (3 - len(parts)) + parts)
    # Slurm counts whole minutes; a rest of seconds is rounded up.
    return max(1, hours * 60 + minutes + (seconds > 0))
