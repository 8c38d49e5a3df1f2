"""Checkpoints that are whole, and runs that continue. Knows folders and files; knows no model.

A checkpoint counts once it is sealed: a file that names every other file with its size and checksum, written last and put in
place by one rename. What was killed while it was saving has no seal; what was damaged later doesn't fit it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.artefacts.environment import ENVIRONMENT, environment
from finetune.errors import InputError

logger = logging.getLogger(__name__)

SEAL, ARGUMENTS, METRICS, RUN = "seal.json", "arguments.yaml", "metrics.json", "run.json"
# What may differ between a run and its continuation: where and how it reports, not what it computes.
FREE = {"output_dir", "logging_dir", "logging_steps", "logging_strategy", "report_to", "run_name", "disable_tqdm", "resume_from_checkpoint",
        "save_total_limit", "local_rank", "deepspeed", "log_level", "ddp_timeout", "overwrite"}  # fmt: skip


def write_atomically(path: Path, text: str) -> None:
    """The file as it was or as it shall be, never half."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def seal(folder: Path) -> None:
    """Write the seal of a checkpoint that is complete."""
    files = {
        str(f.relative_to(folder)): _stamp(f)
        for f in sorted(folder.rglob("*"))
        if f.is_file() and f.name != SEAL
    }
    write_atomically(folder / SEAL, json.dumps({"files": files}, indent=1))


def fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None where it is as it was sealed."""
    if not (folder / SEAL).is_file():
        return "it has no seal (the run was stopped while saving)"
    try:
        files = json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError):
        return "its seal can't be read"
    for name, stamp in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _stamp(folder / name) != stamp:
            return f"{name} was changed or damaged"
    return None


def _stamp(file: Path) -> list[Any]:
    with file.open("rb") as content:
        return [file.stat().st_size, hashlib.file_digest(content, "sha256").hexdigest()]


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; damaged ones are named in the log and passed over."""
    found = sorted(
        folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True
    )
    for checkpoint in found:
        reason = fault(checkpoint)
        if reason is None:
            return checkpoint
        logger.warning("%s is passed over: %s", checkpoint, reason)
    return None


def open_run(options: dict[str, Any], fingerprint: str, overwrite: bool = False) -> Path | None:
    """Claim an output folder for a run. Gives back the checkpoint to continue from, or None for a fresh start.

    A folder with the same run unfinished is continued; a folder with anything else is left as it is. Call on every process;
    the main one writes.

    Args:
        options: every option as resolved; `output_dir` is the folder.
        fingerprint: of the training rows, so that a run never continues on other data.

    Raises:
        InputError: the folder holds another run, a finished one, or files that are no run's; or a checkpoint that was named
            by `resume_from_checkpoint` is damaged.
    """
    folder = Path(options["output_dir"])
    with PartialState().main_process_first():
        checkpoint = _claim(folder, options, fingerprint)
        if PartialState().is_main_process:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(
                    f"Can't make the output folder {folder} ({error.strerror}); set --output_dir to another"
                ) from error
            write_atomically(folder / ARGUMENTS, yaml.safe_dump(options, sort_keys=True, allow_unicode=True))
            write_atomically(folder / RUN, json.dumps({"data": fingerprint}))
            write_atomically(folder / ENVIRONMENT, json.dumps(environment(), ensure_ascii=False, indent=1))
    return checkpoint


def check_vacant(options: dict[str, Any], fingerprint: str) -> None:
    """What `open_run` refuses, said before a model is loaded; nothing is written.

    Raises:
        InputError: as `open_run` does.
    """
    folder = Path(options["output_dir"])
    if folder.exists() and not folder.is_dir():
        raise InputError(f"The output folder {folder} is a file; set --output_dir to a new folder")
    if _named_checkpoint(options) or not folder.exists() or not any(folder.iterdir()):
        return
    other = f"Set --output_dir to a new folder, or remove {folder} yourself; nothing in it was touched"
    if not (folder / ARGUMENTS).is_file():
        raise InputError(f"The output folder {folder} holds files that are no run's. {other}")
    if (folder / METRICS).is_file():
        raise InputError(f"The output folder {folder} already holds a finished run. {other}")
    if not PartialState().is_main_process:  # the main process checks it, and may have written its own options
        return
    differing = difference(folder, options)
    if differing:
        raise InputError(f"The output folder {folder} holds another, unfinished run ({differing}). {other}")
    if json.loads((folder / RUN).read_text(encoding="utf-8"))["data"] != fingerprint:
        raise InputError(f"The output folder {folder} holds an unfinished run on other rows. {other}")


def _named_checkpoint(options: dict[str, Any]) -> Path | None:
    """The checkpoint that `resume_from_checkpoint` names."""
    named = options.get("resume_from_checkpoint")
    if not named or named in ("true", "True"):
        return None
    reason = fault(Path(named)) if Path(named).is_dir() else "there is no such folder"
    if reason:
        raise InputError(
            f"Can't continue from {named}: {reason}. Set --resume_from_checkpoint to a whole checkpoint"
        )
    return Path(named)


def _claim(folder: Path, options: dict[str, Any], fingerprint: str) -> Path | None:
    check_vacant(options, fingerprint)
    named = _named_checkpoint(options)
    if named is not None or not (folder / ARGUMENTS).is_file():
        return named
    found = newest(folder)
    if PartialState().is_main_process:
        logger.warning(
            "Continuing the unfinished run in %s from %s", folder, found.name if found else "its start"
        )
    return found


def difference(folder: Path, options: dict[str, Any]) -> str:
    """In which options, free ones aside, the run in a folder is another one; nothing where it is the same."""
    before = yaml.safe_load((folder / ARGUMENTS).read_text(encoding="utf-8"))
    differing = sorted(k for k in (set(before) | set(options)) - FREE if before.get(k) != options.get(k))
    return "; ".join(f"{k}: {before.get(k)!r} there, {options.get(k)!r} now" for k in differing[:5])


class Sealer(TrainerCallback):
    """Seals each checkpoint once every process has written its part."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        PartialState().wait_for_everyone()
        if PartialState().is_main_process:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")  # type: ignore[arg-type]
