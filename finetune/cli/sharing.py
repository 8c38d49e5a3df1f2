"""How several processes may share a verb's work. Knows verbs' names and the launcher's environment; imports
no torch: a verb that reads files and no model answers at once.
"""

from __future__ import annotations

import os

from finetune.errors import InputError

# What isn't here is refused at the start, by name.
SHARED_BY = {
    "train": ("ddp", "fsdp2", "zero"), "sft": ("ddp", "fsdp2", "zero"), "pretrain": ("ddp", "fsdp2", "zero"),
    "dpo": ("ddp", "fsdp2", "zero"), "reward": ("ddp", "fsdp2"), "ppo": ("ddp",),
    "grpo": ("ddp",), "rloo": ("ddp",),
    "prefer": ("ddp",), "align": ("ddp",), "prompt": ("ddp",), "fuse": ("ddp",), "frontier": (), "serve": (),
    "assess": (), "ladder": (), "adapter": (), "compare": (), "tokenizer": (), "board": (), "report": (),
    "compare_runs": (),
    "import_task": (), "audit": (), "export": (), "trace": (), "overlap": (), "show": (), "check": (),
}  # fmt: skip
SHARINGS = {
    "ddp": "copies of the model (DDP)",
    "fsdp2": "shards (FSDP2)",
    "zero": "DeepSpeed's ZeRO-1 and -2",
}
FILES = {"ddp": "gpus.yaml or, on CPUs, two_cpus.yaml", "fsdp2": "fsdp2.yaml", "zero": "zero2.yaml"}


def wanted(verb: str) -> str:
    """The ways that a verb was made for, with the configuration of each."""
    ways = [f"{SHARINGS[way]} by scripts/accelerate/{FILES[way]}" for way in SHARED_BY[verb]]
    return ", or ".join(ways) or "one process alone, without accelerate launch and torchrun"


def check_alone(verb: str) -> None:
    """A launcher started one process for a verb that works in one: others would do all of its work again, and
    write the same files.

    Raises:
        InputError: it started several.
    """
    started = os.environ.get("WORLD_SIZE", "1")
    if started != "1" and SHARED_BY.get(verb) == ():
        name = verb.replace("_", "-")
        raise InputError(f"A launcher started {started} processes of '{name}'; wanted {wanted(verb)}")
