"""`finetune launch`: a verb in several processes by accelerate's own launcher, with this package's
configurations by name.

finetune launch --processes 2 train --config imdb_lora
finetune launch --config_file fsdp2 --processes 8 sft --config alpaca_lora
finetune launch --config_file machines --machine_rank 0 --main_process_ip ADDRESS train --config imdb_lora

  --processes N        processes in all (default: the configuration's; where there is none, one for each GPU,
  one on a CPU) --config_file NAME   accelerate's configuration: one of the package by name, or a file
  (default: gpus, or two_cpus on CPUs)

  --slurm              several machines by Slurm, queued again until the run is done: finetune launch --slurm
  --help

Other options in front of the verb are accelerate's, as `accelerate launch --help` tells them; those behind it
are the verb's.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from finetune.cli.places import did_you_mean, find_launcher, verbs
from finetune.errors import InputError


@dataclass(frozen=True)
class Machine:
    """What there is to run on."""

    processors: int
    gpus: int


def launch_verb(arguments: list[str]) -> None:
    """Become accelerate's launcher of a verb; never comes back.

    Raises:
        InputError: no verb, or more processes than the machine has GPUs, or processors where it has none.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return
    if arguments[0] == "--slurm":
        from finetune.cli import slurm

        if {"-h", "--help"} & set(arguments[:2]):
            print(slurm.__doc__)
            return
        print(f"queued as job {slurm.submit(arguments[1:]).job_id}")
        return
    command, environment = launcher_command(arguments, this_machine())
    # What was printed so far would be lost with this process's buffers.
    sys.stdout.flush()
    # in place of this process, so that signals and the exit status are the launcher's own
    os.execve(command[0], command, os.environ | environment)


def this_machine() -> Machine:
    """Processors that this process may use, and GPUs that torch sees."""
    # Late: help must not wait for torch.
    import torch

    # What the process may use, which in a container or a job is less than the machine has.
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return Machine(len(allowed), torch.cuda.device_count())


def launcher_command(arguments: list[str], machine: Machine) -> tuple[list[str], dict[str, str]]:
    """The command line of accelerate's launcher, and what it needs in its environment.

    Raises:
        InputError: as `launch_verb` says.
    """
    settings, verb, rest = _split(arguments)
    settings, wanted = _taken(settings, "--processes")
    settings, name = _taken(settings, "--config_file")
    # With a configuration its own number counts; without, what there is.
    if name is None:
        name = "gpus" if machine.gpus else "two_cpus"
        wanted = wanted or str(machine.gpus or 1)
    path = find_launcher(name)
    # Configurations of accelerate may hold a number of processes.
    content = _read(path)
    processes = _number(wanted if wanted is not None else content.get("num_processes", 1))
    on_cpu = path.stem.endswith(("_cpu", "_cpus")) or bool(content.get("use_cpu")) or "--cpu" in settings
    machines = int(content.get("num_machines") or 1)
    _check_room(processes, machines, machine, on_cpu)
    if on_cpu and processes == 1:
        path = find_launcher("one_cpu")
    command = [sys.executable, "-m", "finetune.cli.accelerated", "--config_file", str(path)]
    command += ["--num_processes", str(processes)]
    if machines == 1 and "--main_process_port" not in settings:
        command += ["--main_process_port", "0"]  # any free one, so that two runs on a machine don't meet
    if not on_cpu and processes == 1 and machine.gpus > 1 and "--gpu_ids" not in settings:
        command += ["--gpu_ids", "0"]  # a process that sees several would split its batches over them
    environment = {"FINETUNE_PROCESSES": str(processes)}
    if on_cpu:
        # No GPU is seen: accelerate would take one that is there.
        environment |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
        # threads of all processes share the processors; more of them than processors wait for each other
        environment["OMP_NUM_THREADS"] = os.environ.get(
            "OMP_NUM_THREADS", str(max(1, machine.processors // processes))
        )
    return [*command, *settings, "-m", f"finetune.scripts.{verb}", *rest], environment


def _split(arguments: list[str]) -> tuple[list[str], str, list[str]]:
    """(the launcher's options, the verb, the verb's options)."""
    known = verbs()
    for index, argument in enumerate(arguments):
        # The first word that is a verb: a value in front of it that is called so can't be told from it.
        if argument in known:
            return arguments[:index], argument, arguments[index + 1 :]
    words = [
        word
        # Words that are neither options nor their values, for the message.
        for before, word in zip(["", *arguments], arguments, strict=False)
        if not word.startswith("-") and not before.startswith("-")
    ]
    what = f"'{words[0]}' is no verb" if words else "no verb is named"
    hint = did_you_mean(words[0], known) if words else ""
    raise InputError(
        f"finetune launch: {what}.{hint} Wanted: finetune launch --processes N VERB ..., VERB one of: "
        f"{', '.join(known)}"
    )


def _taken(settings: list[str], option: str) -> tuple[list[str], str | None]:
    """The settings without an option and its value, and the value."""
    for index, word in enumerate(settings):
        if word.startswith(f"{option}="):
            return settings[:index] + settings[index + 1 :], word.partition("=")[2]
        if word == option:
            if index + 1 == len(settings):
                raise InputError(f"finetune launch: {option} names no value")
            return settings[:index] + settings[index + 2 :], settings[index + 1]
    return settings, None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeError, yaml.YAMLError) as error:
        raise InputError(f"Cannot read the configuration {path} given by --config_file: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is no configuration of accelerate's; `accelerate config` writes one")
    return content


def _number(given: Any) -> int:
    if not str(given).isdecimal() or int(given) < 1:
        raise InputError(f"Got --processes {given}; wanted a whole number of 1 or more")
    return int(given)


def _check_room(processes: int, machines: int, machine: Machine, on_cpu: bool) -> None:
    # Of one machine: processes are dealt out evenly.
    here, uneven = divmod(processes, machines)
    if uneven:
        raise InputError(
            f"Got --processes {processes} for {machines} machines; wanted a multiple of {machines}"
        )
    there, what = (machine.processors, "processors") if on_cpu else (machine.gpus, "GPUs")
    if here > there:
        less = f"set --processes to {there} or less" if there else "set --config_file two_cpus"
        raise InputError(
            f"{here} processes were asked for on this machine, which has {there} {what} for them; {less}"
        )
