"""Where tensors go. Knows torch and the launcher's environment; knows nothing of this project."""

from __future__ import annotations

import os

import torch
from torch import Tensor


def device() -> torch.device:
    """Where a network and its batches go: this process's accelerator (CUDA, ROCm, XPU, MPS), else the CPU.

    `ACCELERATE_USE_CPU=true`, which `--use_cpu` sets too, leaves accelerators alone.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return torch.device("cpu")
    if found.type == "mps":  # there is one, and it has no number
        return found
    # the launcher's word first: without it every process of a machine would take the first accelerator
    return torch.device(
        found.type, int(os.environ.get("LOCAL_RANK", torch.accelerator.current_device_index()))
    )


def computed_in(part: Tensor) -> torch.dtype:
    """What a product with it is computed in: autocast's type, else its own."""
    kind = part.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else part.dtype
