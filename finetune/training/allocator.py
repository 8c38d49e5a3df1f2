"""glibc's allocator, told once to keep what is freed. Knows no tensor: it must speak before the first one."""

from __future__ import annotations

import ctypes
import os
import platform
import threading
import time
from functools import cache
from pathlib import Path

import psutil

# the numbers that <malloc.h> gives these options; ctypes sees no macros
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


@cache
def keep_freed_memory() -> None:
    """Have glibc keep freed blocks instead of handing them back to the system at each step; call before the
    first tensor.

    Otherwise blocks above 32 MB are mapped and unmapped again at every step, and page faults take half of the
    time. An allocator that was preloaded (jemalloc, tcmalloc) or settings of the user's own are left alone.
    Kept blocks may pile up where new ones don't fit between what is in use: above half of the machine's
    memory all are handed back.
    """
    # musl and others have no `mallopt`; what is set by the environment is the user's own tuning
    if (
        platform.libc_ver()[0] != "glibc"
        or "LD_PRELOAD" in os.environ
        or any(k.startswith("MALLOC_") for k in os.environ)
    ):
        return
    # by name, since this process has loaded it already: the settings are of the allocator that torch uses
    libc = ctypes.CDLL("libc.so.6")
    # with none mapped, every block comes from the heap, where a freed one can be taken again
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # never: a step of a small model may free 2 GB at once
    # without its figures nobody could tell when to hand back, so that nothing is watched
    if hasattr(libc, "mallinfo2"):  # glibc 2.33
        libc.mallinfo2.restype = _Blocks
        threading.Thread(target=_hand_back, args=(libc, _memory_limit() // 2), daemon=True).start()


class _Blocks(ctypes.Structure):
    """glibc's `struct mallinfo2`, in bytes."""

    # all ten, in order and of this width: glibc writes the whole struct, whichever of them is read here
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            [
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
            ]  # its own order
        )
    ]


def _hand_back(libc: ctypes.CDLL, limit: int) -> None:
    """Look once a second, for ever. A free block counts while it is resident, which it isn't once it was
    handed back.
    """
    process = psutil.Process()
    while True:
        time.sleep(1)
        memory = process.memory_info()
        # private memory that no live block accounts for: what was freed and is still held
        if memory.rss - memory.shared - libc.mallinfo2().uordblks > limit:  # mapped files are shared
            libc.malloc_trim(0)


def _memory_limit() -> int:
    """Bytes that this process may use: the machine's, or its container's."""
    # of cgroups in their second version; "max" stands there for no limit
    allowed = Path("/sys/fs/cgroup/memory.max")
    given = allowed.read_text().strip() if allowed.is_file() else "max"
    total = psutil.virtual_memory().total
    # a container sees the whole machine's memory and is killed at its own limit
    return min(total, int(given)) if given.isdigit() else total
