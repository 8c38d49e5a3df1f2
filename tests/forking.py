"""Scripts of this project on one or several processes that start with everything imported: a fork costs
milliseconds where a start costs ten seconds, on two processes twenty.

The environment is what the launcher makes (accelerate's own of a configuration file, or torchrun's), the kill
a real one; what a launcher's own process does is not here.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[1]
SHARDED, KILLED = ROOT / "tests" / "sharded_run.py", ROOT / "tests" / "killed_run.py"
# what the verbs import as they go
IMPORTED = (
    "torch.distributed.fsdp", "torch.distributed.checkpoint.state_dict", "torch.testing",
    "accelerate.commands.launch", "datasets", "peft", "trl", "scipy.stats", "matplotlib.figure",
    "transformers.models.bert.modeling_bert", "transformers.models.llama.modeling_llama",
    "finetune.alignment.graded", "finetune.alignment.grpo", "finetune.alignment.online",
    "finetune.alignment.ppo_trainer", "finetune.alignment.preference_run", "finetune.alignment.run",
    "finetune.cli.parser", "finetune.training.pretraining", "finetune.training.run", "finetune.training.sft",
    "finetune.adapters.fusion", "prompts.study.run",
)  # fmt: skip


class Forking:
    """A process that has imported everything, and forks one for each that is asked for."""

    def __init__(self, folder: Path) -> None:
        paths = [str(ROOT / "tests"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
        # read once, at import
        environment |= {"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
        self.folder, self.runs = folder, 0
        self.process = subprocess.Popen(
            [sys.executable, __file__], env=os.environ | environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(
        self,
        words: Sequence[object],
        processes: int = 1,
        config: Path | None = None,
        limit: float = 240,
        **environment: str,
    ) -> Any:
        """What came of a script and its options: `returncode` of the first that failed, and what all wrote to
        `stderr` and `stdout`.

        Args:
            words: files that hand on to each other, the last a script, and its options.
            config: of accelerate's; without one the processes are as torchrun makes them.
        """
        self.runs += 1
        out = self.folder / f"said-{self.runs}"
        asked = {"words": list(map(str, words)), "processes": processes, "config": config and str(config),
                 "limit": limit, "environment": environment, "out": str(out)}  # fmt: skip
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        returncode = json.loads(self.process.stdout.readline())
        said = {name: "".join(Path(f"{out}.{rank}.{name}").read_text() for rank in range(processes))
                for name in ("stdout", "stderr")}  # fmt: skip
        return SimpleNamespace(returncode=returncode, **said)

    def close(self) -> None:
        # closes both pipes and waits
        self.process.communicate(timeout=30)


def accelerates(config: str | None, processes: int) -> dict[str, str]:
    """What accelerate's launcher puts into its processes' environment."""
    if config is None:
        return {}
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    told = ["--config_file", config, "--num_processes", str(processes), "--main_process_port", "0", "no.py"]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(told))
    if args.use_deepspeed:
        from accelerate.utils.launch import prepare_deepspeed_cmd_env

        # as its own command does between the two
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        return prepare_deepspeed_cmd_env(args)[1]
    return prepare_multi_gpu_env(args)


def child(asked: dict[str, Any], rank: int, environment: dict[str, str]) -> None:
    """The script, in this process, which ends with it."""
    os.environ.update(environment)
    os.environ.update(asked["environment"])
    if asked["processes"] > 1 or asked["config"]:
        os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
        os.environ |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(asked["processes"]))
        os.environ |= {"GROUP_RANK": "0", "MASTER_ADDR": "localhost"}
    for number, name in ((1, "stdout"), (2, "stderr")):
        handle = os.open(f"{asked['out']}.{rank}.{name}", os.O_WRONLY | os.O_CREAT)
        os.dup2(handle, number)
    sys.stdin = Path(os.devnull).open()  # noqa: SIM115
    sys.argv = asked["words"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # as an interpreter's own end
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def served(asked: dict[str, Any]) -> int:
    """Status of the first process that failed; the others are ended then, as torchrun does."""
    environment = accelerates(asked["config"], asked["processes"])
    with socket.socket() as free:
        free.bind(("localhost", 0))
        environment["MASTER_PORT"] = str(free.getsockname()[1])
    if asked["processes"] == 1 and not asked["config"]:
        del environment["MASTER_PORT"]
    left = {}
    for rank in range(asked["processes"]):
        if not (pid := os.fork()):
            child(asked, rank, environment)
        left[pid] = rank
    status, end, patience = 0, time.monotonic() + asked["limit"], None
    while left:
        pid, code = os.waitpid(-1, os.WNOHANG)
        if pid:
            left.pop(pid)
            code = os.waitstatus_to_exitcode(code)
            if code and not status:
                status, patience = code, time.monotonic() + 15
                for other in left:
                    os.kill(other, signal.SIGTERM)
            continue
        if time.monotonic() > min(end, patience or end):
            status = status or 124
            for other in left:
                os.kill(other, signal.SIGKILL)
        time.sleep(0.05)
    return status


def main() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(served(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
