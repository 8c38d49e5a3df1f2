"""A task on two processes leaves the figures and the predictions that it leaves on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bounds import near
from task_gradients import rows
from test_train_tasks import SCRIPTS, columns_of, figures, run
from transformers import AutoModel, AutoModelForSeq2SeqLM

TESTS = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "family", "kind"), [("seq2seq", "t5", AutoModelForSeq2SeqLM), ("tokens", "bert", AutoModel)]
)
def test_two_processes_leave_the_figures_of_one(task, family, kind, saved, tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    for split in ("train", "validation"):
        rows().select(range(8 if split == "train" else 7)).to_parquet(str(folder / f"{split}.parquet"))
    model = saved(family, kind, initializer_factor=3.0) if family == "t5" else saved(family, kind)
    arguments = [
        "--task", task, *columns_of(task), "--method", "full", "--model_name_or_path", model,
        "--dataset_name", folder,
        "--max_length", 24, "--num_train_epochs", 2, "--save_predictions", "true", "--bf16", "false",
        "--save_strategy", "no",
        "--learning_rate", 0.01, "--per_device_eval_batch_size", 2,
    ]  # fmt: skip
    run("train", *arguments, "--output_dir", tmp_path / "one", "--per_device_train_batch_size", 4)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        SCRIPTS / "train.py",
        *arguments,
    ]
    command += ["--output_dir", tmp_path / "two", "--per_device_train_batch_size", 2]
    done = subprocess.run(
        list(map(str, command)),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = figures(tmp_path / "one"), figures(tmp_path / "two")
    for name, value in one.items():
        if isinstance(value, float) and name not in (
            "runtime",
            "samples_per_second",
            "steps_per_second",
            "seconds",
            "processor_seconds",
            "peak_memory_mb",
        ):
            assert near(two[name], value, 1e-4), name
    texts = [
        [
            json.loads(line)["prediction"]
            for line in (tmp_path / name / "predictions.jsonl").read_text().splitlines()
        ]
        for name in ("one", "two")
    ]
    assert texts[0] == texts[1] and len(texts[0]) == 7
