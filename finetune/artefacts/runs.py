"""Output folders: whose run stands there, and where it goes on. Knows folders and processes; knows no model.

One process at a time works in a folder (a lock that ends with its process), and every step of claiming one
can be killed: what is left is a fresh folder or a claimed one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from finetune.artefacts.checkpoints import checkpoints, fault, newest
from finetune.artefacts.environment import ENVIRONMENT, environment
from finetune.artefacts.files import (
    ARGUMENTS,
    METRICS,
    RUN,
    disk_fault,
    remove_half_written,
    write_atomically,
)
from finetune.artefacts.hashes import hash_weights
from finetune.errors import InputError

logger = logging.getLogger(__name__)

LOCK = ".lock"
# What may differ between a run and its continuation: where and how it reports, and how a step's rows are
# dealt out to processes
# and micro-batches, not what it computes.
FREE = {"output_dir", "logging_dir", "logging_steps", "logging_strategy", "report_to", "run_name",
"disable_tqdm", "resume_from_checkpoint",
        "save_total_limit", "local_rank", "deepspeed", "log_level", "ddp_timeout", "overwrite", "time_limit",
        "per_device_train_batch_size", "gradient_accumulation_steps", "global_batch_size",
        "per_device_eval_batch_size",
        "per_device_batch_size",
        "generation_batch_size", "dataloader_num_workers", "dataloader_pin_memory",
        "dataloader_persistent_workers"}  # fmt: skip
# what a longer run may have other than the one that it goes on from: its length, and when it looks and saves
LONGER = {"num_train_epochs", "max_steps", "resume_from", "eval_strategy", "eval_steps", "save_strategy",
          "save_steps"}  # fmt: skip
_held: dict[Path, int] = {}  # locks of this process, by folder


def open_run(options: dict[str, Any], fingerprint: str, network: Any = None) -> Path | None:
    """Claim an output folder for a run. Gives back the checkpoint to continue from, or None for a fresh
    start.

    A folder with the same run unfinished is continued; a folder with anything else is left as it is. Call on
    every process: the main one decides, and all agree or stop.

    Args:
        options: every option as resolved; `output_dir` is the folder.
        fingerprint: of the training rows, so that a run never continues on other data.
        network: what training starts from, so that a run never continues on another base.

    Raises:
        InputError: the folder holds another run, a finished one, or files that are no run's; another process
            works in it; or a checkpoint that was named by `resume_from_checkpoint` is damaged or another
            run's; or the run that was named by `resume_from` can't be made longer.
    """
    state, folder = PartialState(), Path(options["output_dir"])
    identity = {
        "data": fingerprint,
        # Rows a step and not a process: the same run may go on with other numbers of processes.
        "rows_a_step": _rows_a_step(options, state.num_processes),
        "base": None if network is None else _key_of(network),
    }
    _check_agreement(options, identity)
    verdict: list[Any] = [None, None]
    # One decides, since two might see the folder at different moments.
    if state.is_main_process:
        try:
            verdict[0] = _claim(folder, options, identity)
            write_atomically(folder / ENVIRONMENT, json.dumps(environment(), ensure_ascii=False, indent=1))
        except InputError as error:
            verdict[1] = str(error)
        except OSError as error:
            # The system's own words where the disk is at fault.
            words = disk_fault(error) or error.strerror or error
            verdict[1] = f"Can't make the output folder {folder} ({words}); set --output_dir to another"
    # Everyone stops, or none: a process that went on alone would wait for ever.
    if state.num_processes > 1:
        broadcast_object_list(verdict)
    if verdict[1]:
        raise InputError(verdict[1])
    _check_shared(verdict[0])
    return verdict[0]


def _key_of(network: Any) -> str:
    """One hash of a network's base, adapters and heads aside."""
    return hashlib.sha256(json.dumps(hash_weights(network), sort_keys=True).encode()).hexdigest()


def _rows_a_step(options: dict[str, Any], processes: int) -> int | None:
    """Rows of one optimizer step over all processes, which is what identifies a run; None where
    options say it by themselves.
    """
    rows = options.get("per_device_train_batch_size")
    if rows is None:
        return None
    shares = options.get("gradient_accumulation_steps", 1) * processes
    # By tokens, what a batch holds isn't counted in rows.
    return shares if options.get("tokens_per_batch") else rows * shares


def _check_agreement(options: dict[str, Any], identity: dict[str, Any]) -> None:
    """Every process has the same options, rows and base: on two machines files of one name may differ."""
    state = PartialState()
    if state.num_processes == 1:
        return
    # By hashes and options: on several machines a file of one name may hold other rows.
    mine = {name: value for name, value in options.items() if name not in FREE} | identity
    everyone = gather_object([mine])
    for process, other in enumerate(everyone):
        differing = sorted(k for k in set(mine) | set(other) if everyone[0].get(k) != other.get(k))
        if differing:
            said = f"{differing[0]}: {everyone[0].get(differing[0])!r} and {other.get(differing[0])!r}"
            raise InputError(
                f"Processes 0 and {process} were started for different runs ({said}). Wanted: one command, "
                "one data set"
            )


def _check_shared(checkpoint: Path | None) -> None:
    """Every machine sees the checkpoint that the main process continues from, whole."""
    state = PartialState()
    if state.num_processes == 1 or checkpoint is None:
        return
    reason = None
    # Once a machine: it reads all of the checkpoint.
    if state.is_local_main_process and not state.is_main_process:
        reason = fault(checkpoint) if checkpoint.is_dir() else "there is no such folder"
    reasons = [reason for reason in gather_object([reason]) if reason]
    if reasons:
        raise InputError(
            f"The main process continues from {checkpoint}, and another machine can't ({reasons[0]}). "
            "Set --output_dir to a folder on a disk that all machines share, or copy it there"
        )


def _lock(folder: Path) -> None:
    if folder.resolve() in _held:
        return
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # Ends with the process, however it ends.
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise InputError(
            f"Another process works in {folder} now. Wait for it, or set --output_dir to a new folder"
        ) from error
    except OSError:  # a disk without locks
        logger.warning("%s is on a disk without locks: start no second run in it", folder)
    _held[folder.resolve()] = handle  # open as long as this process lives


def check_vacant(options: dict[str, Any], fingerprint: str) -> None:
    """What `open_run` refuses, said before a model is loaded; nothing is written.

    Raises:
        InputError: as `open_run` does.
    """
    if PartialState().is_main_process:
        rows = _rows_a_step(options, PartialState().num_processes)
        # Before the model is loaded; its weights are looked at later.
        identity = {"data": fingerprint, "rows_a_step": rows, "base": None}
        _check(Path(options["output_dir"]), options, identity)
        _longer(options, identity)


def _check(folder: Path, options: dict[str, Any], identity: dict[str, Any]) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"The output folder {folder} is a file; set --output_dir to a new folder")
    other = f"Set --output_dir to a new folder, or remove {folder} yourself; nothing in it was touched"
    claimed = (folder / ARGUMENTS).is_file()
    # Without options it was never claimed; with other files it is somebody's.
    if folder.is_dir() and not claimed and _strange(folder):
        raise InputError(
            f"The output folder {folder} holds files that are no run's. Set --output_dir to a new one, as "
            f"{folder / 'run'}; nothing in it was touched"
        )
    if claimed and (folder / METRICS).is_file():
        raise InputError(
            f"The output folder {folder} already holds a finished run. {other}. To train on from it, set "
            f"another --output_dir, and --resume_from {folder} with more epochs or steps, or "
            f"--model_name_or_path {folder} for its weights alone"
        )
    reason = _other_run(folder, options, identity) if claimed else None
    if reason:
        raise InputError(f"The output folder {folder} holds {reason}. {other}")


def _claim(folder: Path, options: dict[str, Any], identity: dict[str, Any]) -> Path | None:
    _check(folder, options, identity)
    shorter = _longer(options, identity)
    folder.mkdir(parents=True, exist_ok=True)
    _lock(folder)
    _check(folder, options, identity)  # another process may have been there until now
    # What a killed predecessor left beside the files.
    remove_half_written(folder, ARGUMENTS, RUN, METRICS)
    found = _named(options, identity)
    if found is None and (folder / ARGUMENTS).is_file():
        found = newest(folder)
        logger.warning(
            "Continuing the unfinished run in %s from %s", folder, found.name if found else "its start"
        )
    # As at the first start: how last rows are dealt out follows from it.
    before = _read(folder) or (_read(shorter.parent) if shorter else {})
    started = before.get("processes", PartialState().num_processes)
    if found is None and shorter is not None:
        found = shorter
        logger.warning("%s", _carried_on(shorter, options))
    # this order: a folder with arguments is a claimed one
    write_atomically(folder / RUN, json.dumps(identity | {"processes": started}))
    write_atomically(folder / ARGUMENTS, yaml.safe_dump(options, sort_keys=True, allow_unicode=True))
    return found


def _strange(folder: Path) -> list[str]:
    """Names of what neither a claim that was killed nor a person's `mkdir` leaves."""
    return [
        p.name
        for p in folder.iterdir()
        if p.name not in (LOCK, RUN) and not p.name.startswith((f".{ARGUMENTS}.", f".{RUN}."))
    ]


def _named(options: dict[str, Any], identity: dict[str, Any]) -> Path | None:
    """The checkpoint that the user named, which is whole and of a run with the same options, rows and
    base.
    """
    named = options.get("resume_from_checkpoint")
    if not named or str(named).lower() == "true":
        # transformers' word for "the newest one here", which is found anyway.
        return None
    checkpoint = Path(named)
    reason = fault(checkpoint) if checkpoint.is_dir() else "there is no such folder"
    if reason is None and not (checkpoint.parent / ARGUMENTS).is_file():
        reason = f"no {ARGUMENTS} beside it says what run it is of"
    if reason is None:
        # The checkpoint's own folder: it may be of another run than this one's folder.
        reason = _other_run(checkpoint.parent, options, identity)
    if reason:
        raise InputError(
            f"Can't continue from {named}: {reason}. Set --resume_from_checkpoint to a whole checkpoint of "
            "this run; "
            "to train on from a finished one, with more epochs or other rows, set --model_name_or_path to "
            "its folder"
        )
    return checkpoint


def _longer(options: dict[str, Any], identity: dict[str, Any]) -> Path | None:
    """The last checkpoint of the run that `resume_from` names, which this one makes longer and no other.

    Raises:
        InputError: there is none, the run differs in more than its length, or nothing is left to train.
    """
    named = options.get("resume_from")
    if not named:
        return None
    run = Path(named).expanduser()
    checkpoint = newest(run)
    if checkpoint is None:
        reason: str | None = "it keeps no whole checkpoint, so that optimizer and schedule can't go on"
    else:
        other = _other_run(run, options, identity, LONGER)
        reason = (f"it is {other}" if other else None) or _nothing_left(checkpoint, options)
    if reason:
        raise InputError(
            f"Can't train on from {run}: {reason}. To start anew from its weights, set --model_name_or_path "
            f"{run} instead of --resume_from"
        )
    return checkpoint


def _nothing_left(checkpoint: Path, options: dict[str, Any]) -> str | None:
    """Why a run that goes on from a checkpoint would make no step; None where it makes some."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    done, epochs = state["global_step"], state["epoch"] or 0
    told = state.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {})
    if told.get("should_training_stop") and done < state["max_steps"]:
        return f"it stopped early at step {done}, and would stop there again"
    steps = options.get("max_steps") or -1
    if steps > done or (steps < 0 and options["num_train_epochs"] > epochs):
        return None
    asked = f"--max_steps {steps}" if steps > 0 else f"--num_train_epochs {options['num_train_epochs']}"
    return f"its {checkpoint.name} has made {done} steps ({epochs:g} epochs), and {asked} asks for no more"


def _carried_on(checkpoint: Path, options: dict[str, Any]) -> str:
    """What a longer run takes over from a checkpoint, and in what it isn't the uninterrupted one."""
    schedule, warmup = str(options.get("lr_scheduler_type")), options.get("warmup_steps") or 0
    said = f"Training on from {checkpoint}: weights, optimizer, schedule and streams of chance go on"
    # the one warm-up that doesn't grow with the run is one in steps
    if schedule == "constant" or (schedule == "constant_with_warmup" and not 0 < warmup < 1):
        return said
    return (
        f"{said}. The steps until there went by '{schedule}' over the shorter run, and those to come go by "
        "it over the longer one, so that the weights are not those of an uninterrupted run (those of "
        "--lr_scheduler_type constant are)"
    )


def _other_run(
    folder: Path, options: dict[str, Any], identity: dict[str, Any], free: Collection[str] = ()
) -> str | None:
    """In what the run in a folder is another one, in words; None where it is this one, unfinished or not.

    Args:
        free: options that may differ besides FREE.
    """
    differing, before = difference(folder, options, free), _read(folder)
    a, another = ("a run", "another run") if free else ("an unfinished run", "another, unfinished run")
    if differing:
        return f"{another} ({differing})"
    for name, words in (
        ("data", f"{a} on other rows"),
        ("base", f"{a} on a base with other weights"),
    ):
        # What either side doesn't say can't differ.
        if before.get(name) is not None and identity[name] is not None and before[name] != identity[name]:
            return words
    rows, now = before.get("rows_a_step"), identity["rows_a_step"]
    if rows is not None and now is not None and rows != now:
        return (f"{another} (rows a step over all processes: {rows} there, {now} now; "
                "--per_device_train_batch_size × --gradient_accumulation_steps × processes)")  # fmt: skip
    return None


def _read(folder: Path) -> dict[str, Any]:
    """What a run's folder says of its rows and its base; nothing where it was killed before it said so."""
    try:
        found = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # With checkpoints there was a run, of which nothing can be said any more.
        if (folder / ARGUMENTS).is_file() and checkpoints(folder):
            raise InputError(f"{folder / RUN} can't be read. Set --output_dir to a new folder") from None
        return {}
    return found if isinstance(found, dict) else {}


def started_with(folder: Path) -> int | None:
    """Number of processes that a run had at its first start: how its last rows are dealt out follows
    from that.
    """
    return _read(folder).get("processes")


def difference(folder: Path, options: dict[str, Any], free: Collection[str] = ()) -> str:
    """In which options, free ones aside, the run in a folder is another one; nothing where it is the same."""
    try:
        before = yaml.safe_load((folder / ARGUMENTS).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise InputError(
            f"{folder / ARGUMENTS} can't be read ({error}). Set --output_dir to a new folder"
        ) from error
    differing = sorted(
        k for k in (set(before) | set(options)) - FREE - set(free) if before.get(k) != options.get(k)
    )
    return "; ".join(f"{k}: {before.get(k)!r} there, {options.get(k)!r} now" for k in differing[:5])
