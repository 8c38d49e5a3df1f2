"""The allocator keeps what is freed, and hands it back before it becomes too much."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PILING_UP = """
import sys, time
import psutil, torch
from finetune.training import allocator

megabytes = lambda: psutil.Process().memory_info().rss >> 20
allocator._memory_limit = lambda: int(sys.argv[1]) << 20
allocator.keep_freed_memory()
blocks = [(torch.ones(10 << 18), torch.ones(1 << 10)) for _ in range(60)]  # 10 MB that go, each before 4 KB that stay
small, full = [little for _, little in blocks], megabytes()
del blocks
end = time.monotonic() + 4
while time.monotonic() < end and full - megabytes() < 500:
    time.sleep(0.1)
print(full - megabytes(), sum(float(little.sum()) for little in small))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
@pytest.mark.parametrize(("limit", "handed_back"), [(400, True), (100_000, False)])
def test_freed_memory_is_kept_up_to_half_of_what_there_is(limit, handed_back):
    command = [sys.executable, "-c", PILING_UP, str(limit)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    less, content = map(float, done.stdout.split())
    assert (less > 500) == handed_back
    assert content == 60 * 1024
