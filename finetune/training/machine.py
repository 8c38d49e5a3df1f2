"""What the machine can do, and settings that must stand before the first tensor. Knows no model and no rows."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import resource
import threading
import time
from functools import cache
from pathlib import Path

import psutil
import torch
from accelerate import PartialState

from finetune.errors import InputError

logger = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


@cache
def keep_freed_memory() -> None:
    """Have glibc keep freed blocks instead of handing them back to the system at each step; call before the first tensor.

    Otherwise blocks above 32 MB are mapped and unmapped again at every step, and page faults take half of the time. An
    allocator that was preloaded (jemalloc, tcmalloc) or settings of the user's own are left alone. Kept blocks may pile up
    where new ones don't fit between what is in use: above half of the machine's memory all are handed back.
    """
    if (
        platform.libc_ver()[0] != "glibc"
        or "LD_PRELOAD" in os.environ
        or any(k.startswith("MALLOC_") for k in os.environ)
    ):
        return
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # never: a step of a small model may free 2 GB at once
    if hasattr(libc, "mallinfo2"):  # glibc 2.33
        libc.mallinfo2.restype = _Blocks
        threading.Thread(target=_hand_back, args=(libc, _memory_limit() // 2), daemon=True).start()


class _Blocks(ctypes.Structure):
    """glibc's `struct mallinfo2`, in bytes."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


def _hand_back(libc: ctypes.CDLL, limit: int) -> None:
    """Look once a second, for ever. A free block counts while it is resident, which it isn't once it was handed back."""
    process = psutil.Process()
    while True:
        time.sleep(1)
        memory = process.memory_info()
        if memory.rss - memory.shared - libc.mallinfo2().uordblks > limit:  # mapped files are shared
            libc.malloc_trim(0)


def _memory_limit() -> int:
    """Bytes that this process may use: the machine's, or its container's."""
    allowed = Path("/sys/fs/cgroup/memory.max")
    given = allowed.read_text().strip() if allowed.is_file() else "max"
    total = psutil.virtual_memory().total
    return min(total, int(given)) if given.isdigit() else total


def has_fast_bf16() -> bool:
    """Whether matrix products in bf16 are faster than in float32 here: GPUs that support it, CPUs with AMX or AVX-512 BF16."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return bool(able.get("amx_bf16") or able.get("avx512_bf16"))


def world_size() -> int:
    """Number of processes that this run really has, checked against what the launcher was asked for.

    Raises:
        InputError: a launcher was asked for several processes and started one, or several GPUs stand behind one process.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if "WORLD_SIZE" not in os.environ and "MASTER_ADDR" in os.environ:
        # accelerate's simple launcher sets the address when it was asked for several processes, and then starts one
        raise InputError(
            "Several processes were asked for and one was started: `accelerate launch --cpu --num_processes N` does that. "
            "Wanted: accelerate launch --config_file scripts/accelerate/two_cpus.yaml ..., or torchrun --nproc_per_node N ..."
        )
    if size == 1 and torch.cuda.device_count() > 1 and "LOCAL_RANK" not in os.environ:
        raise InputError(
            f"{torch.cuda.device_count()} GPUs are visible to one process, which would train by DataParallel, slow and with other "
            "losses. Wanted: accelerate launch --config_file scripts/accelerate/gpus.yaml ..., or CUDA_VISIBLE_DEVICES=0"
        )
    return size


def join_processes() -> PartialState:
    """This run's processes, each knowing of the others; on CPUs with gloo between them.

    Left alone, accelerate joins processes by GPUs only: on CPUs each would believe to be the only one, and do all of the work.

    Raises:
        InputError: as `world_size` does.
    """
    size = world_size()
    state = PartialState(cpu=not torch.cuda.is_available())
    if state.num_processes != size:
        raise InputError(
            f"{size} processes were started, {state.num_processes} know of each other. Wanted: scripts/accelerate/two_cpus.yaml"
        )
    if size > 1 and state.is_main_process and not torch.cuda.is_available():
        threads = torch.get_num_threads()
        logger.warning(
            "%d processes, %d threads each; one process with OMP_NUM_THREADS=%d gives the same bytes",
            size,
            threads,
            threads,
        )
    return state


def describe(processes: int, bf16: bool) -> str:
    """One line for the log: processes, device, precision, threads."""
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads"
    )
    many = "1 process" if processes == 1 else f"{processes} processes"
    return f"{many} on {device}; {'bf16 autocast, float32 masters' if bf16 else 'float32'}"


def peak_memory_mb() -> float:
    """Most memory that this process has held so far, in MB: the GPU's where there is one, else the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**20 if platform.system() == "Darwin" else 2**10
    )
