"""The comparison of methods: what is trained again, and what would mix two experiments."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path

import pytest
import yaml
from test_train import script, train
from transformers import AutoModelForSequenceClassification

from finetune.cli.parser import parse
from finetune.errors import InputError
from finetune.reports.compare import (
    CompareArguments,
    comparison_row,
    comparison_sections,
    for_people,
    write_recipe,
)
from finetune.reports.page import sections_page


def test_a_finished_run_with_other_options_is_no_part_of_a_new_comparison(tmp_path: Path) -> None:
    path, options = tmp_path / "lora.yaml", {"method": "lora", "seed": 0, "learning_rate": None}
    write_recipe(path, options, finished=False)
    write_recipe(path, options | {"seed": 1}, finished=False)  # nothing was trained by it
    write_recipe(path, options | {"seed": 1}, finished=True)
    with pytest.raises(InputError, match="seed: 1 there, 2 now.*--output_dir"):
        write_recipe(path, options | {"seed": 2}, finished=True)
    assert yaml.safe_load(path.read_text())["seed"] == 1


def test_finished_methods_are_assessed_on_the_same_rows(saved, review_file, tmp_path, monkeypatch, capsys):
    """And not trained again; one that stops ends the comparison and names what is kept."""
    model, root = saved("bert", AutoModelForSequenceClassification), tmp_path / "compared"
    for method in ("lora", "bitfit"):
        train(model, review_file, root / method, "--method", method)
    main = script("compare").main
    told = [
        "--dataset_name", str(review_file), "--model_name_or_path", str(model), "--output_dir", str(root),
        "--bf16", "false", "--methods", "lora", "bitfit",
    ]  # fmt: skip
    started = []
    monkeypatch.setattr(subprocess, "run", lambda *given, **further: started.append(given))
    main(*parse(main, told))
    assert not started and "| lora " in capsys.readouterr().out
    with (root / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["lora", "bitfit"]
    assert all(float(row["low"]) <= float(row["accuracy"]) <= float(row["high"]) for row in rows)
    assert "What each costs and gives" in (root / "comparison.html").read_text()
    assert (root / "comparison.png").is_file()
    monkeypatch.setattr(subprocess, "run", lambda *given, **further: subprocess.CompletedProcess(given, 1))
    with pytest.raises(InputError, match="The run of 'ia3' stopped, see above; the finished ones are kept"):
        main(*parse(main, [*told, "ia3"]))


def test_any_tasks_own_figure_is_compared():
    said = {"pearson": 0.7, "mse": 0.2, "loss": 0.2, "rows": 40, "rows_left_out": 360,
            "intervals": {"pearson": [0.6, 0.8], "mse": [0.1, 0.3]}}  # fmt: skip
    run = {"trainable": 10, "parameters": 100, "seconds": 3.0, "peak_memory_mb": 500.0}
    row = comparison_row("lora", run, said, "pearson")
    assert for_people(row, "pearson")["pearson (95 % interval)"] == "0.700 (0.600–0.800)"
    assert for_people(row, "pearson")["mse"] == "0.200"
    page = sections_page("x", "", comparison_sections([row], "pearson"))
    assert (
        "40 rows; 360 that it was trained on are left out" in page and "commonest" not in page.split("CSV")[0]
    )


def test_options_of_single_methods_are_json_by_method():
    asked = CompareArguments(["lora", "full"], '{"lora": {"r": 8}}', '{"full": 1e-3}')
    assert asked.of_method("lora") == {"method": "lora", "method_kwargs": {"r": 8}}
    assert asked.of_method("full") == {"method": "full", "learning_rate": 1e-3}
    with pytest.raises(InputError, match="--method_options is no JSON"):
        CompareArguments(["lora"], "r=8").of_method("lora")
    with pytest.raises(InputError, match="--learning_rates names loar, not among --methods lora"):
        CompareArguments(["lora"], None, '{"loar": 1}').of_method("lora")
