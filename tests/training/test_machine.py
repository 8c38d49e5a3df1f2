"""The allocator keeps what is freed and hands it back; verbs are shared in the ways that they were
made for, or refused.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from finetune.cli.parser import launch
from finetune.cli.places import verbs
from finetune.cli.sharing import SHARED_BY, SHARINGS
from finetune.errors import InputError
from finetune.training.machine import has_fast_bf16, micro_batches, processes

ROOT = Path(__file__).parents[2]
SHARDS = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
PILING_UP = """
import sys, time
import psutil, torch
from finetune.training import allocator

megabytes = lambda: psutil.Process().memory_info().rss >> 20
allocator._memory_limit = lambda: int(sys.argv[1]) << 20
allocator.keep_freed_memory()
# 10 MB that go, each before 4 KB that stay
blocks = [(torch.ones(10 << 18), torch.ones(1 << 10)) for _ in range(60)]
small, full = [little for _, little in blocks], megabytes()
del blocks
end = time.monotonic() + 3.5  # the thread that hands back looks once a second
while time.monotonic() < end and full - megabytes() < 500:
    time.sleep(0.1)
print(full - megabytes(), sum(float(little.sum()) for little in small))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_freed_memory_is_kept_up_to_half_of_what_there_is():
    limits = {400: True, 100_000: False}
    # both at once: one of them waits for what doesn't come
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PILING_UP, str(limit)], env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for limit in limits
    ]  # fmt: skip
    for process, handed_back in zip(started, limits.values(), strict=True):
        told, faults = process.communicate(timeout=120)
        assert process.returncode == 0, faults[-3000:]
        less, content = map(float, told.split())
        assert (less > 500) == handed_back
        assert content == 60 * 1024


@pytest.mark.parametrize(
    ("verb", "environment", "complaint"),
    [
        (
            "ppo",
            {"ACCELERATE_USE_DEEPSPEED": "true"},
            "'ppo' can't be shared by DeepSpeed's ZeRO-1 and -2; wanted copies.*gpus.yaml",
        ),
        (
            "train",
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
            "ZeRO-3; wanted",
        ),
        ("ppo", SHARDS, "'ppo' can't be shared by shards"),
        ("train", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "FSDP's first version"),
        ("train", {"ACCELERATE_USE_FSDP": "true"}, "FSDP's first version"),
        ("train", SHARDS, "need GPUs"),
        ("train", SHARDS | {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "set it to false"),
        ("sft", {"ACCELERATE_USE_DEEPSPEED": "true"}, "need GPUs"),
        ("serve", {}, "'serve' can't be shared by copies of the model .DDP.; wanted one process alone"),
        ("train", {"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron"),
    ],
)
def test_ways_of_sharing_that_a_verb_was_not_made_for_are_refused_by_name(
    verb, environment, complaint, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for name, value in ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"} | environment).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=complaint):
        processes(verb)


def test_options_ask_for_a_way_too(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(sys, "argv", ["train.py", "--fsdp", "full_shard"])
    with pytest.raises(InputError, match="need GPUs"):
        processes("train")
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert processes("train") == processes("serve") == 1


@pytest.mark.parametrize("verb", sorted(verb for verb, ways in SHARED_BY.items() if not ways))
def test_verbs_of_one_process_say_so_under_a_launcher(verb, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    script = importlib.import_module(f"finetune.scripts.{verb}")
    with pytest.raises(SystemExit) as ended:
        launch(script.main, ["--nothing", "1"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "A launcher started 2 processes" in said and "without accelerate launch" in said


def test_no_cell_of_what_runs_where_is_silent():
    """Every verb has a line in the docs, which refuses what its row here lacks and nothing else."""
    lines = (
        (ROOT / "docs" / "machines.md").read_text().split("## What runs where")[1].split("*tested here*:")[0]
    )
    table = [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in lines.splitlines() if "|" in line
    ]
    head, told = table[0], {}
    for names, *cells in table[2:]:
        assert len(cells) == len(head) - 1 and all(cells)
        told |= {name.strip(): dict(zip(head[1:], cells, strict=True)) for name in names.split(",")}
    assert set(told) == set(SHARED_BY)
    for verb, cells in told.items():
        for way, column in zip(SHARINGS, ("DDP", "FSDP2", "ZeRO-2"), strict=True):
            assert cells[column].startswith("refused") != (way in SHARED_BY[verb]), (verb, column)


def test_every_verb_that_asks_has_a_row():
    files = [*(ROOT / "scripts").glob("*.py"), *(ROOT / "finetune" / "alignment").glob("*.py")]
    asked = {name for path in files for name in re.findall(r"\bprocesses\(\"(\w+)\"\)", path.read_text())}
    assert {"train", "sft", "ppo", "serve"} <= asked <= set(SHARED_BY)
    assert set(verbs()) <= set(SHARED_BY)


@pytest.mark.parametrize(("processes", "wanted"), [("1", 4), ("2", 2), ("4", 1)])
def test_rows_of_a_step_stay_however_many_processes_there_are(monkeypatch, processes, wanted):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("WORLD_SIZE", processes)
    assert micro_batches(16, 4) == wanted
    for rows in (0, 18):
        with pytest.raises(InputError, match=f"Got --global_batch_size {rows}; wanted a multiple of"):
            micro_batches(rows, 4)


@pytest.mark.parametrize(
    ("held", "gain", "fast"), [("", 4.6, True), ("", 1.5, True), ("", 0.8, False), ("avx2", 4.6, False)]
)
def test_bf16_is_fast_where_products_gain_by_it(monkeypatch, held, gain, fast):
    monkeypatch.setattr("finetune.training.machine.device", lambda: torch.device("cpu"))
    monkeypatch.setattr("finetune.training.machine.bf16_gain", lambda: gain)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", held)
    assert has_fast_bf16() is fast
