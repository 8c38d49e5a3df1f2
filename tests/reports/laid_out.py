"""Folders as each verb leaves them, made of files alone: long names, long texts, many classes."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

LONG = "Rückfrage_zur_Rechnungsstellung_ohne_Leerzeichen_und_mit_langem_Namen"
TEXT = (
    "Ich habe die Rechnung doppelt erhalten, und https://example.org/" + "x" * 90 + " half mir nicht weiter."
)


def put(folder: Path, **files: Any) -> Path:
    """JSON files by their stem; a list is a file of lines."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if isinstance(content, list):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content))
        else:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def options(folder: Path, **given: Any) -> None:
    base = {"method": "lora", "model_name_or_path": "minilm", "dataset_name": "tickets.csv"}
    (folder / "arguments.yaml").write_text(yaml.safe_dump(base | {"output_dir": str(folder)} | given))


def train_run(folder: Path, classes: int = 12, rows: int = 160) -> Path:
    """A classifier of many classes with a long name among them."""
    rng = random.Random(0)
    labels = [LONG, *(f"class {n}" for n in range(1, classes))]
    said = [
        {"id": f"row-{n}", "text": f"{n} {TEXT}", "gold": rng.choice(labels),
         "prediction": rng.choice(labels), "score": round(rng.uniform(0.1, 1), 3)}
        for n in range(rows)
    ]  # fmt: skip
    history = [
        {
            "step": s,
            "epoch": s / 20,
            "loss": 2 / s**0.5,
            "grad_norm": 1.0,
            "learning_rate": 1e-3 * (1 - s / 60),
        }
        for s in range(1, 60)
    ]
    history += [{"step": s, "eval_loss": 2 / s**0.4, "eval_accuracy": 0.4 + s / 120} for s in (20, 40, 59)]
    figures = {"accuracy": 0.71, "macro_f1": 0.62, "loss": 0.8, "seconds": 41.0, "peak_memory_mb": 1200.0}
    put(
        folder,
        metrics=figures | {"intervals": {"accuracy": [0.64, 0.78], "macro_f1": [0.5, 0.7]}},
        history=history,
        predictions=said,
        data={
            "columns": {"Anliegen": "text", "Kategorie": "label"},
            "rows": {"training": 1440, "evaluation": rows},
            "classes": {label: 10 + 40 * n for n, label in enumerate(labels)},
        },
        environment={"command": "finetune train --dataset_name tickets.csv " + "--option value " * 12,
                     "processor": "two cores", "date": "2026-11-26"},
    )  # fmt: skip
    (folder / "labels.json").write_text(json.dumps(labels))
    baselines = [
        {"name": "majority", "accuracy": 0.3, "interval": [0.23, 0.37]},
        {"name": "bag of words, logistic regression", "accuracy": 0.68, "interval": [0.6, 0.75]},
    ]
    (folder / "baselines.json").write_text(json.dumps(baselines))
    options(folder, task="classification")
    return folder


def chat_run(folder: Path, task: str) -> Path:
    """Instruction tuning or DPO: curves, and figures without intervals."""
    history = [
        {"step": s, "loss": 1 / s, "grad_norm": 1.0, "learning_rate": 1e-4, "rewards/margins": s / 10}
        for s in range(1, 30)
    ]
    put(folder, metrics={"loss": 0.62, "rewards/margins": 0.31, "rewards/accuracies": 0.8, "seconds": 9.0},
        history=[*history, {"step": 29, "eval_loss": 0.62}])  # fmt: skip
    options(folder, task=task, model_name_or_path="smollm2", dataset_name="chats.jsonl")
    return folder


def ppo_run(folder: Path) -> Path:
    """Rewards that rise while KL runs away, and answers through time."""
    steps: list[dict[str, Any]] = [
        {"step": s, "reward": s / 10, "kl": 0.8 * s, "entropy": 3 - s / 20, "length": 40.0, "ended": 0.9,
         "empty": 0.0, "clip_share": 0.1, "value_loss": 0.4, "explained_variance": 0.3}
        for s in range(1, 31)
    ]  # fmt: skip
    steps += [{"step": s, "true_reward": 0.3 + s / 60, "true_reward_error": 0.02} for s in (0, 30)]
    answers = [
        {
            "step": s,
            "answers": [{"prompt": f"The film {n}", "answer": TEXT, "score": 0.1 * s} for n in range(3)],
        }
        for s in (0, 15, 30)
    ]
    put(folder, metrics={"true_reward": 0.8}, log=steps, answers=answers)
    options(folder, task="ppo", model_name_or_path="smollm2", dataset_name="imdb")
    return folder


def table(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def study_run(folder: Path) -> Path:
    """Six templates, four sets of words, three models."""
    rng = random.Random(0)
    figures = [
        {"model": model, "template": f"sentiment/{template}", "verbalizer": words, "shots": 0, "seed": 0,
         "calibration": way, "rows": 200, "accuracy": (value := round(rng.uniform(0.45, 0.9), 3)),
         "accuracy_low": value - 0.06, "accuracy_high": value + 0.06, "macro_f1": value}
        for model in ("smollm2", "runs/a_rather_long_name_of_a_model", "openai:other")
        for template in ("review", "overall", "verdict", "question", "labelled", "cloze")
        for words in ("good_bad", "named")
        for way in ("raw", "contextual")
    ]  # fmt: skip
    pairs = [
        {"first": figures[0]["template"],
         "second": f"{one['model']} {one['template']}/{one['verbalizer']}, raw", "metric": "accuracy",
         "difference": 0.03, "low": -0.02, "high": 0.08, "level": 0.95, "only_first": 20,
         "only_second": 14, "rows": 200, "test": "McNemar, exact", "p": 0.2, "p_holm": 1.0,
         "verdict": "first is not significantly better"}
        for one in figures[1:20]
    ]  # fmt: skip
    findings = {
        "entry": "sentiment", "kind": "labels", "metric": "accuracy", "labels": ["negative", "positive"],
        "rows": 200, "heading": {"prompt": "sentiment/review", **figures[0]}, "notes": [],
        "baseline": {"majority": "positive", "accuracy": 0.5, "chance": 0.5},
        "population": {"asked": 200, "rows": 500, "name": "films.jsonl", "split": "test", "how": "drawn"},
        "measured_on": "200, drawn plainly, of 500 rows of films.jsonl, test",
        "templates": [{"name": "sentiment/review", "text": "{{ text }}\nThis film is {{ mask }}",
                       "hash": "0" * 64, "example": TEXT + "\nThis film is ▁", "answers": "bad / good"}],
        "models": {"smollm2": "here: log-probabilities of the whole answers"},
    }  # fmt: skip
    put(folder, findings=findings)
    table(folder / "figures.csv", figures)
    table(folder / "pairs.csv", pairs)
    options(folder, prompts=["sentiment"], models=["smollm2"])
    return folder
