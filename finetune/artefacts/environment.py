"""Where a run ran, and what repeats it: versions, processor, command. Knows no model and no rows."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ENVIRONMENT = "environment.json"
PACKAGES = ("finetune-and-prompt", "torch", "transformers", "peft", "trl", "accelerate", "datasets")


def environment() -> dict[str, str]:
    """What another person needs to repeat a run, as texts; no name of a user, a host or a home."""
    found = {
        "command": command(),
        # UTC, so that runs of several machines can be put in order.
        "started": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "threads": str(torch.get_num_threads()),
        # A launcher sets it; without one there is one process.
        "processes": os.environ.get("WORLD_SIZE", "1"),
    }
    if torch.cuda.is_available():
        found["GPU"] = f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    return found | _versions() | _commit()


def command() -> str:
    """The command line of this process, as one would type it."""
    first, *rest = sys.argv
    script = Path(first)
    # an entry point's full path is of this machine only
    shown = script.name if script.parent.name in ("bin", "Scripts") else os.path.relpath(script)
    return shlex.join([*([] if script.suffix != ".py" else ["python"]), shown, *rest])


def processor() -> str:
    """The processor's name and what decides the speed of matrix products on it."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    # Linux says it; elsewhere Python's own word has to do.
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    able = [key for key, has in torch.cpu.get_capabilities().items() if has is True and key in WIDTHS]
    # ATEN_CPU_CAPABILITY holds kernels to less than the processor has
    held = os.environ.get("ATEN_CPU_CAPABILITY")
    parts = [
        name or platform.processor() or platform.machine(),
        *able,
        *([f"held to {held}"] if held else []),
    ]
    return ", ".join(filter(None, parts))


WIDTHS = {"avx2", "avx512_f", "avx512_bf16", "amx_bf16", "neon", "sve"}


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a clone that was not installed
            continue
    return found


def _commit() -> dict[str, str]:
    """The commit of the clone this package runs from; nothing for an installed one."""
    root = Path(__file__).parents[2]
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return {}
    done = subprocess.run(
        [git, "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {"commit": done.stdout.strip()} if done.returncode == 0 else {}
