"""What this processor is fast at, asked of it once and kept. Knows torch and a file; knows no run.

A list of processors is never complete, and says nothing of what a library's kernels make of them.
"""

from __future__ import annotations

import json
import os
import time
from functools import cache
from pathlib import Path

import torch

from finetune.artefacts.environment import processor
from finetune.artefacts.files import write_atomically
from finetune.models.names import cache_root

# of a product as an encoder makes it: a few milliseconds, far from any call's own cost
ROWS, WIDTH = 512, 768
TIMES = 12


@cache
def bf16_gain() -> float:
    """How many times as fast matrix products are in bf16 as in float32 on this processor.

    Measured in a tenth of a second and kept in a file, so that all runs on a machine decide alike: by the
    processor, by torch's version and by what its kernels are held to.
    """
    # oneDNN's own limit, which torch's capabilities don't show
    key = f"{processor()}, torch {torch.__version__}, {os.environ.get('ONEDNN_MAX_CPU_ISA', 'all')}"
    file = cache_root() / "bf16_gain.json"
    known = _read(file)
    if key not in known:
        known[key] = round(_seconds(torch.float32) / _seconds(torch.bfloat16), 2)
        _keep(file, known)
    return known[key]


def _read(file: Path) -> dict[str, float]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {str(name): float(gain) for name, gain in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):  # none yet, or damaged: it is measured again
        return {}


def _keep(file: Path, known: dict[str, float]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(known, indent=1))
    except OSError:  # a home that can't be written to: measured at each start
        return


@torch.no_grad()
def _seconds(dtype: torch.dtype) -> float:
    """The fastest of some products: what comes between only makes others slower."""
    # ones, and no random numbers, which would move the run's own stream
    states, weight = torch.ones(ROWS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype)
    took = []
    for _ in range(TIMES):
        start = time.perf_counter()
        torch.nn.functional.linear(states, weight)
        took.append(time.perf_counter() - start)
    return min(took)
