"""The wheel by itself: installed into a fresh environment, run from an empty folder, the repository
not in sight.
"""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from pathlib import Path

import installed
import pytest

from finetune.cli.launcher import this_machine

ROOT = Path(__file__).parents[2]
wheel, environment = installed.wheel, installed.environment  # fixtures
pytestmark = pytest.mark.slow
FEW = ("--config", "reviews_lora", "--max_train_rows", "32", "--max_eval_rows", "16", "--max_steps", "2")


@pytest.fixture
def call(environment: Path, tmp_path: Path):
    """A program of the environment, in an empty folder; what it printed."""

    def run(program: str, *arguments: str) -> str:
        variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        variables |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [str(environment / "bin" / program), *arguments],
            env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert not done.returncode, done.stdout[-1000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    return run


def test_it_carries_scripts_recipes_launchers_prompts_and_pages(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    for inside, folder in (
        ("finetune/scripts", ROOT / "scripts"),
        ("prompts", ROOT / "prompts"),
        ("finetune", ROOT / "finetune"),
    ):
        for path in folder.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"{inside}/{path.relative_to(folder)}" in names, path


def test_a_recipe_is_trained_by_name(call, tmp_path: Path):
    said = call("finetune", "train", *FEW, "--output_dir", "r")
    assert "1 process on" in said and "step 2/2" in said
    assert 0 <= json.loads((tmp_path / "r" / "metrics.json").read_text())["accuracy"] <= 1
    call(
        "finetune",
        "assess",
        "--artefact",
        "r",
        "--dataset_name",
        "reviews",
        "--eval_split",
        "test",
        "--max_eval_rows",
        "16",
    )
    assert list((tmp_path / "r" / "assessments").glob("*/metrics.json"))


@pytest.mark.skipif(this_machine().processors < 2, reason="two processes need two processors")
def test_two_processes_are_launched(call, tmp_path: Path):
    said = call("finetune", "launch", "--processes", "2", "train", *FEW, "--output_dir", "r")
    assert "2 processes on" in said and (tmp_path / "r" / "metrics.json").is_file()


def test_any_launcher_starts_a_verb_as_a_module(call, tmp_path: Path):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    said = call("python", *torchrun, "-m", "finetune.scripts.train", *FEW, "--output_dir", "r")
    assert "2 processes on" in said and (tmp_path / "r" / "metrics.json").is_file()


def test_the_verbs_are_functions(call, environment: Path):
    code = (
        "import finetune; from finetune import train\n"
        "left = train(config='reviews_lora', max_train_rows=32, max_eval_rows=16, max_steps=2, "
        "output_dir='r')\n"
        "print(finetune.__file__, left.folder, 'accuracy' in left.figures)"
    )
    last = call("python", "-c", code).strip().splitlines()
    found = next(line for line in last if line.startswith(str(environment)))
    assert found.endswith(" r True")


def test_what_there_is_is_told(call):
    assert "sentiment" in call("finetune", "prompts") and "reviews_lora" in call("finetune", "recipes")
    assert "classification" in call("finetune", "tasks") and "bottleneck" in call("finetune", "methods")
    assert "mlm" in call("finetune", "objectives") and "finetune-and-prompt 0" in call(
        "finetune", "--version"
    )
    assert "--adapters_dir" in call("finetune", "serve", "--help")
