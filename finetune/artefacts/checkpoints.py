"""Checkpoints that are whole. Knows folders and files; knows no model.

A checkpoint counts once it is sealed: a file that names every other file with its size and checksum, written
last and put in place by one rename. What was killed while it was saving has no seal; what was damaged later
doesn't fit it.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.artefacts.files import SEAL, flush, write_atomically
from finetune.artefacts.hashes import hash_file

logger = logging.getLogger(__name__)

NAME = re.compile(r"checkpoint-(\d+)")  # `checkpoint-5.bak` is a person's own


def seal(folder: Path) -> None:
    """Write the seal of a checkpoint that is complete, once the disk holds all of it."""
    files = {}
    # Sorted: two seals of one checkpoint are equal.
    for file in sorted(f for f in folder.rglob("*") if f.is_file() and f.name != SEAL):
        # A rename may reach the disk before the contents of other files do; after a power cut there would be
        # a seal over empty weights.
        flush(file)
        files[str(file.relative_to(folder))] = _stamp(file)
    # Last and by a rename: whoever finds a seal finds a whole checkpoint, at any moment.
    write_atomically(folder / SEAL, json.dumps({"files": files}, indent=1))


def fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None where it is as it was sealed."""
    if not (folder / SEAL).is_file():
        return "it has no seal (the run was stopped while saving)"
    try:
        files = json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]
    # Written by a process that was killed, or by hand.
    except (ValueError, KeyError, TypeError, OSError):
        return "its seal can't be read"
    for name, stamp in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        # Checksums and not sizes and dates alone: a half-written or copied file may have both right.
        if _stamp(folder / name) != stamp:
            return f"{name} was changed or damaged"
    return None


def _stamp(file: Path) -> list[Any]:
    return [file.stat().st_size, hash_file(file)]


def shared_by(checkpoint: Path) -> str:
    """How the processes that wrote a checkpoint shared the model, by what they left in it."""
    if any(checkpoint.glob("pytorch_model_fsdp*")):
        return "shards (FSDP2)"
    # DeepSpeed's own word for which of its folders counts.
    return "DeepSpeed" if (checkpoint / "latest").is_file() else "copies of the model"


def checkpoints(folder: Path) -> list[Path]:
    """Folders named as checkpoints are, whole or not, the newest first."""
    found = [path for path in folder.glob("checkpoint-*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The optimizer step that a checkpoint was made at."""
    return int(checkpoint.name.rpartition("-")[2])


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that is whole, and whose best one so far is; damaged ones are named in
    the log and passed over.
    """
    for checkpoint in checkpoints(folder):
        reason = fault(checkpoint) or _fault_of_best(checkpoint)
        if reason is None:
            return checkpoint
        logger.warning("%s is passed over: %s", checkpoint, reason)
    return None


def _fault_of_best(checkpoint: Path) -> str | None:
    """What is wrong with the checkpoint that this one holds for the best, which the run would end with."""
    state = checkpoint / "trainer_state.json"
    named = json.loads(state.read_text(encoding="utf-8") or "{}") if state.is_file() else {}
    # By its name beside this one: the folder may have been moved since the state was written.
    best = checkpoint.with_name(Path(named.get("best_model_checkpoint") or checkpoint).name)
    reason = fault(best) if best != checkpoint and best.is_dir() else None
    return reason and f"the best one so far is {best.name}, and {reason}"


def rotate(folder: Path, limit: int | None, best: str | None = None) -> None:
    """Remove all but the newest `limit` whole checkpoints and the best one; half ones that are older go too.

    Call when the newest is sealed: a run that is killed at any moment has a whole one.
    """
    if limit is None or limit < 1:
        return
    found = checkpoints(folder)
    # Only sealed ones count towards the limit, or a run that died while saving twice would have its last good
    # one removed.
    kept = [path for path in found if (path / SEAL).is_file()][:limit]
    for path in found:
        if (
            path not in kept
            and path.name != Path(best or "").name
            and kept
            # A newer one without a seal may be one that is being written.
            and step_of(path) < step_of(kept[0])
        ):
            shutil.rmtree(path)


class Sealer(TrainerCallback):
    """Seals each checkpoint once every process has written its part, and then removes old ones.

    Args:
        limit: checkpoints to keep. transformers' own limit removes the old one before the new one is whole.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Every process writes a part (its streams of chance, its shard of the optimizer); sealed earlier, the
        # checkpoint would lack them.
        PartialState().wait_for_everyone()
        if PartialState().is_main_process:
            folder = Path(args.output_dir)  # type: ignore[arg-type]
            checkpoint = folder / f"checkpoint-{state.global_step}"
            # a pickle, which holds a token for the hub; arguments.yaml says the same and runs nothing
            (checkpoint / "training_args.bin").unlink(missing_ok=True)
            seal(checkpoint)
            rotate(folder, self.limit, state.best_model_checkpoint)
        PartialState().wait_for_everyone()
