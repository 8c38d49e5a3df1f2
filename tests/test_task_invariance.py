"""Every task's step is the same however its rows are dealt out, and its loss is the mean over items counted by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_model, make_tokenizer
from safetensors.torch import load_file
from step_gradients import SPLITS
from task_gradients import CASES, COLUMNS, LABELS, kind_of, rows, step_gradients

from finetune.answers import Asked
from finetune.tasks import TaskArguments, answerer, settle
from finetune.training.trainer import TrainingArguments, by_length, make_trainer

TESTS = Path(__file__).parent


def relative_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    norm = torch.stack([value.norm() for name, value in one.items() if name != "loss"]).norm()
    assert norm > 1e-5
    return float(torch.stack([(one[name] - other[name]).norm() for name in one]).norm() / norm)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return {case: step_gradients(*case, SPLITS["batch"], folder) for case in CASES}


@pytest.mark.parametrize(("task", "family"), CASES)
def test_accumulation_changes_no_gradient(whole, task, family, tmp_path):
    assert relative_difference(whole[task, family], step_gradients(task, family, SPLITS["accumulation"], tmp_path)) < 1e-5


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
        str(TESTS / "task_gradients.py"),
    ]
    done = subprocess.run([*command, "processes", str(folder)], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "processes.safetensors")


@pytest.mark.parametrize(("task", "family"), CASES)
def test_two_processes_change_no_gradient(whole, two_processes, task, family):
    prefix = f"{task}/{family}/"
    found = {key.removeprefix(prefix): value for key, value in two_processes.items() if key.startswith(prefix)}
    assert relative_difference(whole[task, family], found) < 1e-5


@pytest.mark.parametrize(("task", "family"), CASES)
def test_padding_changes_no_loss(task, family):
    """One row alone has the loss that it has beside longer ones: heads, attention and items all leave padding out."""
    further = {"max_target_length": 8} if task == "seq2seq" else {}
    row, processor = settle(TaskArguments(task=task, **further), kind_of(family)), make_tokenizer(family)
    labels = LABELS if task in ("multilabel", "tokens") else None
    network = make_model(family, row.model, **(dict(row.config) | ({} if labels is None else {"num_labels": 3})))
    features = list(row.encode(rows(), COLUMNS[task], processor, 20, labels))
    collate = row.collate(processor)

    def losses(part):
        batch = collate(part)
        batch.pop("row")
        gold = batch.pop("labels")
        with torch.no_grad():
            return row.loss(row.forward(network, batch, gold).float(), gold)

    together = losses(features)
    alone = torch.cat([losses([one]) for one in features])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("task", "family"), CASES)
def test_evaluation_does_not_change_with_its_batches(task, family, tmp_path):
    """Figures are sums over all rows: transformers' own evaluation loss is a mean of batch means."""
    further = {"max_target_length": 4} if task == "seq2seq" else {}
    options = TaskArguments(task=task, **further)
    row, processor = settle(options, kind_of(family)), make_tokenizer(family)
    labels = LABELS if task in ("multilabel", "tokens") else None
    network = make_model(family, row.model, **(dict(row.config) | ({} if labels is None else {"num_labels": 3})))
    features = row.encode(rows(), COLUMNS[task], processor, 20, labels)
    asked = Asked(rows(), COLUMNS[task], by_length(features), labels)
    found = []
    for size in (1, 3, 8):
        training = TrainingArguments(output_dir=str(tmp_path), per_device_eval_batch_size=size, bf16=False, disable_tqdm=True)
        answer = answerer(row, options, processor, asked, size)
        trainer = make_trainer(row, network, processor, training, {"eval": features}, labels=labels, answer=answer)
        figures = trainer.evaluate()
        found.append({k: v for k, v in figures.items() if isinstance(v, float) and "time" not in k and "second" not in k})
    assert "eval_loss" in found[0]
    assert found[1] == pytest.approx(found[0], abs=2e-4) and found[2] == pytest.approx(found[0], abs=2e-4)
