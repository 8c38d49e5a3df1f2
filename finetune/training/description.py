"""Rows and features of a run → `data.json` and `baselines.json` for its page and card. Knows no models and no
trainer.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset

from finetune.artefacts.files import write_atomically
from finetune.metrics.baselines import bag_of_words, majority
from finetune.tasks.task import Examined

DATA, BASELINES = "data.json", "baselines.json"
MOST_LENGTHS = 4000  # a histogram needs no more, and a page should stay small


def describe_rows(found: Examined, features: Mapping[str, Dataset], folder: str | Path) -> None:
    """Write what each column became, how many rows there are, classes with counts, and lengths in tokens.

    For rows of one class each, also what needs no language model: always the commonest class, and a bag of
    words, learnt on the training rows and scored on the evaluation rows. Call on the main process.
    """
    path, columns = Path(folder), found.columns
    roles = {"text": columns.text, "second text": columns.pair, "label": columns.label}
    told: dict[str, Any] = {
        "columns": {role: name for role, name in roles.items() if name},
        "rows": {
            {"train": "training", "eval": "evaluation"}[split]: len(part)
            for split, part in found.rows.splits()
        },
        "lengths": features["train"]["length"][:MOST_LENGTHS] if "train" in features else [],
    }
    train = _classes(found, found.rows.train)
    if train is not None:
        told["classes"] = dict(Counter(train).most_common())
    write_atomically(path / DATA, json.dumps(told, ensure_ascii=False))
    gold = _classes(found, found.rows.eval)
    if train is not None and gold is not None:
        write_atomically(path / BASELINES, json.dumps(_baselines(found, train, gold), ensure_ascii=False))


def _classes(found: Examined, rows: Dataset | None) -> list[str] | None:
    """Each row's class by name; None for rows that have none, or several."""
    if rows is None or found.labels is None or not isinstance(rows.features[found.columns.label], ClassLabel):
        return None
    names = rows.features[found.columns.label].names
    return [names[place] for place in rows[found.columns.label]]


def _baselines(found: Examined, train: list[str], gold: list[str]) -> list[dict[str, object]]:
    assert found.rows.train is not None and found.rows.eval is not None
    learnt, asked = (_texts(found, part) for part in (found.rows.train, found.rows.eval))
    return [
        one for one in (majority(gold, train), bag_of_words(learnt, train, asked, gold)) if one is not None
    ]


def _texts(found: Examined, rows: Dataset) -> list[str]:
    """One text a row; a bag of words sees no border between two."""
    first, second = found.columns.text, found.columns.pair
    texts = rows[first][:]
    return (
        texts
        if second is None
        else [f"{one} {other}" for one, other in zip(texts, rows[second], strict=True)]
    )
