"""Python code in answers and the tests of a column → the share of tests that pass, in a process with limits.

The process has a time limit, a memory limit, an empty folder, no environment and, where the system lets it,
no network. That keeps out endless loops and accidents; it is no jail for code that means harm.
"""

from __future__ import annotations

import ast
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from finetune.alignment.ready_rewards import column_of
from finetune.alignment.rewards import Reward, RewardArguments, RewardPrompt

# Of one answer: seconds of a processor, megabytes of address space.
SECONDS, MEGABYTES = 5, 512
FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)

# Runs in the process: limits first, then the code, then each test by itself. What passed is told behind a
# word that the code
# has no business to know, so that printing can't pass for passing.
RUNNER = r"""
import ctypes, json, os, resource, sys
told = json.load(sys.stdin)
try:
    ctypes.CDLL(None).unshare(0x10000000 | 0x40000000)  # a network of its own, which has no way out
except (AttributeError, OSError):
    pass
for limit, most in ((resource.RLIMIT_CPU, told["seconds"]), (resource.RLIMIT_AS, told["bytes"]),
                    (resource.RLIMIT_FSIZE, 2**20), (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(limit, (most, most))
out, word = os.dup(1), told.pop("word")
devnull = os.open(os.devnull, os.O_WRONLY)
os.dup2(devnull, 1), os.dup2(devnull, 2)
space, passed = {"__name__": "answer"}, []
try:
    exec(compile(told["code"], "answer", "exec"), space)
except BaseException:
    told["tests"] = [None] * len(told["tests"])
for test in told["tests"]:
    try:
        if test is None:
            raise AssertionError
        exec(compile(test, "test", "exec"), space)
        passed.append(True)
    except BaseException:
        passed.append(False)
os.write(out, (word + json.dumps(passed)).encode())
os._exit(0)
"""


def unit_tests(rest: str, settings: RewardArguments) -> Reward:
    """`[COLUMN]` (default: tests) → share of the row's tests that the answer's code passes; None without
    tests.

    A cell is one test as text, or a list of them (MBPP's test_list). The code is what stands in the answer's
    first fence, else prompt and answer where they are a program together, else the answer.
    """
    column = rest or "tests"

    def reward(
        prompts: Sequence[RewardPrompt], completions: Sequence[str], **columns: Any
    ) -> list[float | None]:
        cells = [
            [c] if isinstance(c, str) else list(c or []) for c in column_of(column, columns, "unit_tests")
        ]
        rows = zip(map(code_of, prompts, completions), cells, strict=True)
        # Threads are enough: each waits for a process of its own.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(lambda row: share_passed(*row), rows))

    return reward


def code_of(prompt: RewardPrompt, answer: str) -> str:
    """The program in an answer."""
    fenced = FENCE.search(answer)
    if fenced:
        return fenced[1]
    # HumanEval's prompts are the head of a function, which the answer goes on with.
    whole = prompt + answer if isinstance(prompt, str) else answer
    try:
        ast.parse(whole)
    # Null bytes are a ValueError.
    except (SyntaxError, ValueError):
        return answer
    return whole


def share_passed(code: str, tests: Sequence[str], seconds: int = SECONDS) -> float | None:
    """Share of tests that pass after the code has run; 0.0 where it takes longer or more memory than
    it may.
    """
    if not tests:
        return None
    # Drawn for each run, so that no answer can learn it.
    word = secrets.token_hex(16)
    told = {"code": code, "tests": list(tests), "word": word, "seconds": seconds, "bytes": MEGABYTES * 2**20}
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            # -I: no user site, no path of the folder. An empty environment holds no keys.
            [sys.executable, "-I", "-c", RUNNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, cwd=folder, env={}, start_new_session=True,
        )  # fmt: skip
        try:
            # Two seconds more than the processor's limit: a sleeping program uses none.
            out, _ = process.communicate(json.dumps(told).encode(), timeout=seconds + 2)
        except subprocess.TimeoutExpired:
            out = b""
        finally:
            stop(process)
    said = out.decode(errors="replace")
    # Killed, out of memory, or the code ended the process itself.
    if not said.startswith(word):
        return 0.0
    passed = json.loads(said.removeprefix(word))
    return sum(passed) / len(passed)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started; its session is its own."""
    with process, suppress(ProcessLookupError):  # waits, and closes its pipes
        # The whole group: code may have started processes.
        os.killpg(process.pid, 9)
