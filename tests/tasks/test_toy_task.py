"""A new task is one file and one row of TASKS: a toy goes through training, assessment and intervals
that way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from test_train import script
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from finetune.adapters.assess import assess_task
from finetune.artefacts.folder import read_artefact
from finetune.cli.parser import parse
from finetune.data.checks import checked_splits
from finetune.data.columns import Columns
from finetune.data.encode import sequence
from finetune.data.sources import DataArguments, Rows
from finetune.metrics.bootstrap import each, mean_figure
from finetune.tasks import table
from finetune.tasks.task import Answer, Asked, Examined, Task
from finetune.training import run as steps  # noqa: F401  (the modules that must not know the toy are loaded before it)


def toy_file() -> SimpleNamespace:
    """What a task's own file holds: how often the word "good" stands in a text, learnt as a rate of a
    Poisson.
    """

    def examine(rows: Rows, data: DataArguments) -> Examined:
        columns = Columns("text", None, "goods")
        return Examined(*checked_splits(rows, data, columns, lambda part, columns, where: None), None)

    def encode(rows: Dataset, columns: Columns, processor, max_length: int, labels) -> Dataset:
        features = sequence(rows, columns, processor, max_length, None)
        return features.add_column("labels", [float(count) for count in rows[columns.label]])

    def poisson(logits: Tensor, labels: Tensor) -> Tensor:
        return torch.nn.functional.poisson_nll_loss(logits[:, 0].float(), labels.float(), reduction="none")

    def metrics(kept: np.ndarray, gold: np.ndarray, names) -> dict[str, float]:
        return {"off_by": float(np.abs(np.exp(kept[:, 0]) - gold).mean())}

    def read(kept: np.ndarray, asked: Asked) -> list[Answer]:
        rates = np.exp(kept[asked.in_order(), 0])
        return [
            {"gold": gold, "prediction": float(rate), "score": float(rate)}
            for gold, rate in zip(asked.rows["goods"], rates, strict=True)
        ]

    def details(answers: Sequence[Answer], labels, samples: int) -> dict[str, float]:
        return {"largest": max(answer["prediction"] for answer in answers)}

    off_by = each(lambda answer: abs(answer["prediction"] - answer["gold"]))
    return SimpleNamespace(
        examine=examine, encode=encode, poisson=poisson, metrics=metrics, read=read, details=details,
        intervals={"off_by": (off_by, mean_figure)},
    )  # fmt: skip


@pytest.fixture
def toy(monkeypatch) -> Task:
    from finetune.data import collate
    from finetune.loss import items

    file = toy_file()
    row = Task(
        AutoModelForSequenceClassification, file.examine, file.encode, collate.sequences,
        file.poisson, items, file.metrics, "SEQ_CLS",
        pooled=True, best="off_by", read=file.read, details=file.details, intervals=file.intervals,
        config={"num_labels": 1},
    )  # fmt: skip
    monkeypatch.setitem(table.TASKS, "counts", row)
    return row


def test_a_toy_task_is_trained_assessed_and_bounded(toy, saved, tmp_path):
    lines = [
        {"text": " ".join(["good"] * (n % 4) + ["film"] * (1 + n % 3) + ["slow"] * (n // 4)), "goods": n % 4}
        for n in range(24)
    ]
    folder = tmp_path / "rows"
    folder.mkdir()
    for split, part in (("train", lines[:16]), ("test", lines[16:])):
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(line) for line in part))
    main, out = script("train").main, tmp_path / "run"
    model = saved("bert", AutoModelForSequenceClassification)
    given = (
        "--task counts --method full --max_length 24 --num_train_epochs 2 --bf16 false "
        f"--model_name_or_path {model} "
    )
    main(*parse(main, [*given.split(), "--dataset_name", str(folder), "--output_dir", str(out)]))
    trained = json.loads((out / "metrics.json").read_text())
    low, high = trained["intervals"]["off_by"]
    assert low <= trained["off_by"] <= high
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 8
    assessed = assess_task(read_artefact(out), DataArguments([str(folder)], eval_split="test"))
    assert assessed["off_by"] == pytest.approx(trained["off_by"], rel=1e-4)
    assert assessed["intervals"].keys() == {"off_by", "loss"} and assessed["largest"] > 0
    assert assessed["rows"] == 8 and assessed["rows_left_out"] == 0


def test_one_file_is_assessed_on_the_rows_that_were_kept_aside(toy, saved, tmp_path):
    """The commonest input: one file, a tenth of which training keeps aside; nothing names a split
    afterwards.
    """
    words = ("film", "story", "actor", "slow", "bright")
    lines = [
        {"text": f"{a} {b} good {c}", "goods": 1 + (n % 2)}
        for n, (a, b, c) in enumerate((a, b, c) for a in words for b in words for c in ("fine", "dull"))
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    main, out = script("train").main, tmp_path / "run"
    model = saved("bert", AutoModelForSequenceClassification)
    given = (
        "--task counts --method full --max_length 24 --num_train_epochs 1 --bf16 false "
        f"--model_name_or_path {model} "
    )
    main(*parse(main, [*given.split(), "--dataset_name", str(file), "--output_dir", str(out)]))
    assessed = assess_task(read_artefact(out), DataArguments([str(file)]))
    assert (assessed["rows"], assessed["rows_left_out"]) == (5, 45)
    assert assessed["off_by"] == pytest.approx(
        json.loads((out / "metrics.json").read_text())["off_by"], rel=1e-4
    )
