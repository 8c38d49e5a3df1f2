"""Slurm on this machine: a controller and two nodes, for as long as a test wants them. Needs Debian's
slurm-wlm and munge, and root, as which Slurm starts jobs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
AuthType=auth/munge
# a job that was queued again waits for as long as its old credential lives
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SchedulerType=sched/builtin
SelectType=select/linear
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port=17001 CPUs=2
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 Port=17002 CPUs=2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Why there can be no cluster here; None where there can."""
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(name) is None]
    if missing:
        return f"no {missing[0]} here (apt-get install slurm-wlm)"
    return None if os.geteuid() == 0 else "Slurm starts jobs as root alone"


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which Slurm's commands speak to the cluster."""
    host, daemons = socket.gethostname(), []
    (folder / "state").mkdir(parents=True)
    (folder / "slurm.conf").write_text(CONF.format(host=host, folder=folder))
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munge = [f"--{name}={folder}/munge.{end}" for name, end in files.items()]

    def start(*words: str) -> None:
        with (folder / "daemons.log").open("a") as log:
            daemons.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log))

    try:
        start("munged", "--foreground", "--force", *munge)
        start("slurmctld", "-D")
        for node in (host, "localhost"):
            start("slurmd", "-D", "-N", node)
        end = time.monotonic() + 60
        while subprocess.run(
            ["sinfo", "-h", "-o", "%T %D"], env=environment, capture_output=True, text=True
        ).stdout.split() != ["idle", "2"]:
            assert time.monotonic() < end, (folder / "daemons.log").read_text()[-3000:]
            time.sleep(0.5)
        yield environment
    finally:
        # a job would outlive its daemons
        subprocess.run(["scancel", "--state=RUNNING"], env=environment, capture_output=True)
        end = time.monotonic() + 30
        while (
            time.monotonic() < end
            and subprocess.run(["squeue", "-h"], env=environment, capture_output=True).stdout
        ):
            time.sleep(0.5)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(30)
