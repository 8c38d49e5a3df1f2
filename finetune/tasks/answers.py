"""What evaluation keeps of a model's outputs → one answer a raw row, and the file that holds them. Knows rows
and arrays.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from finetune.data.columns import Columns
from finetune.metrics import texts
from finetune.tasks.options import TaskArguments
from finetune.tasks.task import Answer, Asked, Task, shown_texts
from finetune.tasks.written import writer

logger = logging.getLogger(__name__)

PREDICTIONS = "predictions.jsonl"


def answerer(
    row: Task, options: TaskArguments, processor: Any, asked: Asked, batch_size: int
) -> Callable[[Any, Any], list[Answer]] | None:
    """(what evaluation kept, network) → one answer a raw row, read off or written; None where evaluation
    gives none.

    Raises:
        InputError: options of generation that are no JSON mapping.
    """
    # evaluation by loss alone, as of sft where it writes no answers
    if not row.answers:
        return None
    if row.read is not None:
        read = row.read
        return lambda kept, network: read(kept, asked)
    # signatures of the metrics: scores compare only under the same
    logger.warning("%s", "; ".join(f"{name} {value}" for name, value in texts.signatures().items()))
    write = writer(options, processor, asked, batch_size)
    return lambda kept, network: write(network)


def save_answers(
    answers: Sequence[Answer],
    asked: Asked,
    folder: str,
    show: Callable[[Dataset, Columns], list[Any]] = shown_texts,
) -> Path:
    """Writes predictions.jsonl, a line a row: id (its number where there is none), text (or what `show` gives
    for another input), gold, prediction, score, and more.
    """
    rows, columns = asked.rows, asked.columns
    # the data set's own names where it has them
    ids = rows["id"][:] if "id" in rows.column_names else range(len(rows))
    records = (
        {"id": name, "text": text} | answer
        for name, text, answer in zip(ids, show(rows, columns), answers, strict=True)
    )
    file = Path(folder) / PREDICTIONS
    file.write_text(
        "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8"
    )
    return file
