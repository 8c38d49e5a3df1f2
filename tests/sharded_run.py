"""A script of this project in shards (FSDP2) or under DeepSpeed, without GPUs: gloo processes that accelerate
is told are GPUs.

What shards, gathers, saves and loads is accelerate's and transformers' own code, on a mesh of CPUs. Started
by a launcher that says which way by its environment.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from types import FunctionType

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from finetune.training import machine


def pretend() -> None:
    """Have accelerate share a model among these processes as it does among GPUs."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    torch.distributed.init_process_group("gloo")
    # the one question that accelerate asks of the machine: what kind of processes these are
    PartialState._prepare_backend = lambda *told, **named: ("gloo", DistributedType.MULTI_GPU)
    # on CPUs both are refused, since without the line above accelerate would train copies
    said = {machine.has_gpus: lambda: True, machine.keep_to_cpu: lambda options: None}
    for module in [found for name, found in sys.modules.items() if name.startswith("finetune")]:
        # also where it was imported by name, as in a process that has everything imported
        for name, value in list(vars(module).items()):
            if isinstance(value, FunctionType) and value in said:
                setattr(module, name, said[value])


if __name__ == "__main__":
    pretend()
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
