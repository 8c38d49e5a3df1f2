"""How cost grows: with rows, with tokens of a text, with adapters and with requests at once, each as a curve
and the exponent of a power law through it; and a stream of 50 GB, whose memory must not grow at all.

  python scripts/benchmarks/growth.py rows
  python scripts/benchmarks/growth.py tokens --sizes 128 512 2048
  python scripts/benchmarks/growth.py stream --sizes 50

Seconds are the processor's. Of `rows` they are of a training's start (reading, checking, tokenizing,
evaluating 256 rows, one step), of `tokens` of one step of `finetune pretrain --objective clm` and SmolLM2,
of `adapters` and `requests` the server's for 64 requests over so many adapters, and for so many requests
over eight. The exponent is the slope of log cost by log size; a constant part bends it down, so that the
last two sizes' own slope stands beside it. A stream is made up on the fly, as one file of 100 MB under
many names.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil

sys.path.append(str(Path(__file__).parent))
SCRIPTS = Path(__file__).parents[1]
SIZES = {
    "rows": [1_000, 3_000, 10_000, 30_000, 100_000],
    "tokens": [128, 256, 512, 1024, 2048, 4096],
    "adapters": [1, 4, 16, 64],
    "requests": [1, 8, 50, 200],
    "stream": [50],
}
WORDS = (
    "the",
    "film",
    "was",
    "long",
    "but",
    "its",
    "people",
    "and",
    "places",
    "were",
    "drawn",
    "with",
    "care",
    "so",
    "that",
    "nobody",
    "left",
    "early",
)
TINY = "hidden_size=32,num_hidden_layers=1,num_attention_heads=2,intermediate_size=64"
BLOB, HELD = 100_000, 100_000_000  # characters of a row that training doesn't read; bytes of a file


@dataclass
class Cost:
    size: int
    seconds: float
    memory: float  # MB at most


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("what", choices=tuple(SIZES), help="what grows")
    parser.add_argument("--sizes", type=int, nargs="+", help="how large it gets (a stream in GB)")
    options = parser.parse_args()
    sizes = sorted(options.sizes or SIZES[options.what])
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "stream":
            stream(sizes[-1], Path(folder))
        else:
            print(f"| {options.what} | seconds of the processor | peak memory, MB |\n|---:|---:|---:|")
            costs = []
            for cost in COSTS[options.what](sizes, Path(folder)):
                # line by line: what is there stays there when time is up
                print(f"| {cost.size:,} | {cost.seconds:.2f} | {cost.memory:,.0f} |", flush=True)
                costs.append(cost)
            print("\n".join(exponents(costs)))


def exponents(costs: list[Cost]) -> Iterator[str]:
    """Slopes of seconds and of memory by size, in logarithms."""
    for name in ("seconds", "memory") if len(costs) > 1 else ():
        points = np.log([[cost.size, getattr(cost, name)] for cost in costs])
        slopes = [np.polyfit(*part.T, 1)[0] for part in (points, points[-2:])]
        yield f"{name}: exponent {slopes[0]:.2f}, between the last two {slopes[1]:.2f}"


def run(verb: str, *words: object) -> Cost:
    """A verb in a process of its own: its seconds of the processor, workers' too, and its peak memory."""
    # by path, not by the command's name: the scripts beside this file are what is measured
    command = [sys.executable, str(SCRIPTS / f"{verb}.py"), *map(str, words)]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said = (started.stderr and started.stderr.read()) or ""
    # of this child alone: getrusage(RUSAGE_CHILDREN) would give the largest peak of all so far
    _, status, used = os.wait4(started.pid, 0)
    if status:
        sys.exit(f"{verb} stopped:\n{said[-3000:]}")
    return Cost(0, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def by_rows(sizes: list[int], folder: Path) -> Iterator[Cost]:
    rng = np.random.default_rng(0)
    for size in sizes:
        where = folder / str(size)
        where.mkdir()
        # as many rows to evaluate on at every size: only what is trained on grows
        for split, count in (("train", size), ("validation", 256)):
            # numbered: equal rows would be dropped
            texts = (f"{number} {' '.join(rng.choice(WORDS, 40))}" for number in range(count))
            lines = [f"{text},{'good' if place % 2 else 'bad'}" for place, text in enumerate(texts)]
            (where / f"{split}.csv").write_text("\n".join(["text,label", *lines]))
        cost = run(
            "train", "--task", "classification", "--method", "lora", "--model_name_or_path", "minilm",
            "--dataset_name", where, "--max_length", 64, "--max_steps", 1, "--max_eval_rows", 256,
            "--output_dir", where / "run",
        )  # fmt: skip
        yield Cost(size, cost.seconds, cost.memory)


def by_tokens(sizes: list[int], folder: Path) -> Iterator[Cost]:
    """One step of one text: many steps' cost less two steps', so that loading does not count."""
    texts = [" ".join(np.random.default_rng(seed).choice(WORDS, 2 * sizes[-1])) for seed in range(6)]
    (folder / "train.txt").write_text("\n".join(texts))
    for size in sizes:
        # short ones often enough to stand out of the loading's own differences
        steps = max(2, 4096 // size)
        few, more = (
            run(
                "pretrain", "--objective", "clm", "--model_name_or_path", "smollm2", "--dataset_name", folder,
                "--max_length", size, "--max_steps", total, "--per_device_train_batch_size", 1,
                "--eval_strategy", "no", "--save_strategy", "no", "--max_eval_rows", 1,
                "--output_dir", folder / f"{size}_{total}",
            )
            for total in (2, 2 + steps)
        )  # fmt: skip
        yield Cost(size, (more.seconds - few.seconds) / steps, more.memory)


def by_server(what: str, sizes: list[int], folder: Path) -> Iterator[Cost]:
    from serving import PROMPTS, SERVE, flood, generate, make_adapters, serving, size_mb

    # made once, so that all sizes share their weights
    most = max(sizes) if what == "adapters" else 8
    folders = make_adapters(Namespace(base="smollm2", adapters=most), folder)
    holds = ["--memory_limit_mb", 64 + sum(map(size_mb, folders))]
    for size in sizes:
        adapters, requests = (size, 64) if what == "adapters" else (8, size)
        named = [f"a{place}={one}" for place, one in enumerate(folders[:adapters])]
        jobs = [(f"{PROMPTS[place % 8]} {place}", f"a{place % adapters}") for place in range(requests)]
        with serving([SERVE, "--base", "smollm2", *holds, "--adapters", *named]) as server:
            # each adapter is read before the clock starts
            flood(server, partial(generate, server, 1), [("Hello", f"a{one}") for one in range(adapters)])
            _, found = flood(server, partial(generate, server, 16), jobs)
            yield Cost(size, found["server_cpu_seconds"], server.memory_mb("VmHWM"))


def stream(gigabytes: int, folder: Path) -> None:
    """Trains on all rows of so many GB and prints the memory at each tenth of them."""
    # a column that is read and left out: 50 GB pass by, and training them takes minutes
    blob = "".join(np.random.default_rng(0).choice(list("abcdefgh \n"), BLOB)).replace("\n", "\\n")
    row = '{{"id": {}, "text": "{}", "scan": "{}"}}\n'.format
    count = HELD // BLOB
    with (folder / "part.jsonl").open("w") as file:
        file.writelines(
            row(place, " ".join(WORDS[place % 9 : place % 9 + 8]), blob) for place in range(count)
        )
    files = max(1, math.ceil(gigabytes * 1e9 / (folder / "part.jsonl").stat().st_size))
    rows = folder / "rows"
    rows.mkdir()
    for place in range(files):
        # one file under many names: 50 GB are read without a disk that holds them
        os.link(folder / "part.jsonl", rows / f"train-{place:05}.jsonl")
    (rows / "validation.jsonl").write_text(row(0, " ".join(WORDS), ""))
    batch = 500
    command = [
        sys.executable, SCRIPTS / "pretrain.py", "--objective", "mlm", "--from_config", "bert",
        "--config_overrides", TINY, "--tokenizer_name", "minilm",
        "--dataset_name", rows, "--ignore_columns", "scan",
        "--streaming", "true", "--shuffle_buffer", "100",
        "--max_length", 16, "--per_device_train_batch_size", batch, "--max_steps", files * count // batch,
        "--eval_strategy", "no", "--save_strategy", "no", "--output_dir", folder / "run",
    ]  # fmt: skip
    started, log = time.time(), folder / "log"
    # into a file: nobody empties a pipe while the memory is watched
    with (
        log.open("w") as said,
        subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=said) as process,
    ):
        watch(psutil.Process(process.pid), gigabytes)
    if process.returncode:
        sys.exit(f"pretrain stopped:\n{log.read_text()[-3000:]}")
    steps = json.loads((folder / "run" / "metrics.json").read_text())
    print(f"{files * count:,} rows in {time.time() - started:.0f} seconds of the clock: {steps}")


def watch(process: psutil.Process, gigabytes: int) -> None:
    print("| GB read | memory now, MB |\n|---:|---:|")
    due = 0.0
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        # a worker may end between the two looks at it
        try:
            whole = [process, *process.children(recursive=True)]
            read = sum(one.io_counters().read_chars for one in whole) / 1e9
            memory = sum(one.memory_info().rss for one in whole) / 2**20
        except psutil.NoSuchProcess:
            continue
        if read >= due:
            print(f"| {read:.1f} | {memory:,.0f} |", flush=True)
            due = (int(read * 10 / gigabytes) + 1) * gigabytes / 10
        time.sleep(0.2)


COSTS = {
    "rows": by_rows,
    "tokens": by_tokens,
    "adapters": partial(by_server, "adapters"),
    "requests": partial(by_server, "requests"),
}

if __name__ == "__main__":
    main()
