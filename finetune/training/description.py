"""Rows and features of a run → `data.json` and `baselines.json` for its page and card. Knows no models and no
trainer.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset

from finetune.artefacts.files import write_atomically
from finetune.artefacts.provenance import licence_of
from finetune.data.columns import row_classes
from finetune.tasks.task import Examined

DATA, BASELINES = "data.json", "baselines.json"
MOST_LENGTHS = 4000  # a histogram needs no more, and a page should stay small


def describe_rows(
    found: Examined,
    features: Mapping[str, Dataset],
    folder: str | Path,
    baselines: Callable[[Examined], list[dict[str, Any]]] | None = None,
) -> None:
    """Write what each column became, how many rows there are, classes with counts, and lengths in tokens.

    With `baselines` (see `Task.baselines`) also what needs no such model, learnt on the training rows and
    scored on the evaluation rows. Call on the main process.
    """
    path, columns = Path(folder), found.columns
    # a series has no texts: its `text` is the time, and channels have the place of a label
    roles = {"text": columns.text, "second text": columns.pair, "label": columns.label}
    if columns.further:
        roles = {"time": columns.text, "channels": ", ".join(columns.further)}
    told: dict[str, Any] = {
        "columns": {role: name for role, name in roles.items() if name},
        "rows": {
            # the page's words for the splits, not the names in the tables
            {"train": "training", "eval": "evaluation"}[split]: len(part)
            for split, part in found.rows.splits()
        },
        "lengths": _lengths(features),
    }
    if found.provenance is not None:
        told["licence"] = licence_of(found.provenance)
    # a stream has no training rows at hand, so that no class is counted
    if found.rows.train is not None and found.labels is not None:
        train = row_classes(found.rows.train, columns.label)
        if train is not None:
            # by number of rows, so that a page shows the largest first
            told["classes"] = dict(Counter(train).most_common())
    write_atomically(path / DATA, json.dumps(told, ensure_ascii=False))
    # both splits: learnt on the one, scored on the other
    if baselines is not None and found.rows.train is not None and found.rows.eval is not None:
        write_atomically(path / BASELINES, json.dumps(baselines(found), ensure_ascii=False))


def _lengths(features: Mapping[str, Dataset]) -> list[int]:
    """Tokens of training rows; none where all are alike, as pictures are, or where they are a stream."""
    train = features.get("train")
    # a stream is no Dataset and has no lengths until it is read
    found = train["length"][:MOST_LENGTHS] if isinstance(train, Dataset) else []
    return found if len(set(found)) > 1 else []
