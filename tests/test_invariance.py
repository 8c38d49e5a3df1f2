"""A step's gradient does not depend on how its rows are dealt out: batch 8 = batch 1 × accumulation 8 = two processes × 4."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import FAMILIES
from safetensors.torch import load_file
from step_gradients import SPLITS, TASK_NAMES, step_gradients

TESTS = Path(__file__).parent


def relative_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    norm = torch.stack([value.norm() for name, value in one.items() if name != "loss"]).norm()
    assert norm > 1e-3
    return float(torch.stack([(one[n] - other[n]).norm() for n in one]).norm() / norm)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return {(t, f): step_gradients(t, f, SPLITS["batch"], folder) for t in TASK_NAMES for f in FAMILIES}


@pytest.mark.parametrize("task", TASK_NAMES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split", ["accumulation", "uneven"])
def test_accumulation_changes_no_gradient(whole, task, family, split, tmp_path):
    assert relative_difference(whole[task, family], step_gradients(task, family, SPLITS[split], tmp_path)) < 1e-5


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(TESTS / "step_gradients.py"),
    ]
    done = subprocess.run([*command, "processes", str(folder)], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "processes.safetensors")


@pytest.mark.parametrize("task", TASK_NAMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_change_no_gradient(whole, two_processes, task, family):
    prefix = f"{task}/{family}/"
    found = {key.removeprefix(prefix): value for key, value in two_processes.items() if key.startswith(prefix)}
    assert relative_difference(whole[task, family], found) < 1e-5
