"""An artefact of any task and rows → answers, figures and intervals. Knows tasks and artefacts; trains nothing."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.adapters.classifier import load_network
from finetune.artefacts.folder import Artefact
from finetune.data.sources import DataArguments, Rows, load_rows
from finetune.errors import InputError
from finetune.models.load import ModelArguments, architecture
from finetune.tasks.answers import answerer, save_answers
from finetune.tasks.table import recalled
from finetune.tasks.task import Asked, intervals
from finetune.training.options import TrainingArguments
from finetune.training.trainer import by_length, make_trainer

COLUMNS = ("text_column", "text_pair_column", "label_column")


def assess_task(
    artefact: Artefact,
    data: DataArguments,
    batch_size: int = 32,
    samples: int = 2000,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Figures of an artefact on the evaluation rows of `data`, read and asked as in its training; answers go into `folder`.

    Columns that are not named are those of the training, where the rows have them.

    Raises:
        InputError: a folder of pretraining, rows that the task can't read, labels that the model never saw.
    """
    if "task" not in artefact.options:
        raise InputError(
            f"{artefact.folder} holds a pretrained model, which answers nothing; tune it with scripts/train.py"
        )
    model = {name: value for name, value in artefact.options.items() if name in vars(ModelArguments())}
    row, options = recalled(artefact.options, architecture(ModelArguments(**model)))
    part = load_rows(data, train=False).eval
    assert part is not None
    named = {name: artefact.options.get(name) for name in COLUMNS if vars(data)[name] is None}
    there = {
        name: column for name, column in named.items() if str(column).partition(".")[0] in part.column_names
    }
    data = replace(data, **there, max_train_rows=None)
    rows, columns, seen = row.examine(Rows(part, part, data.name), data)
    labels = artefact.labels
    strange = sorted(set(seen or ()) - set(labels or ()))
    if strange:
        raise InputError(
            f"The rows have labels that the model never saw: {', '.join(strange[:5])}. Set --label_column"
        )
    processor, network = load_network(artefact, row=row)
    features = row.encode(rows.eval, columns, processor, options.max_length, labels)
    held = rows.eval.select(
        sorted(set(features["row"][:]))
    )  # rows of which nothing is left to learn are not asked
    asked = Asked(held, columns, by_length(features), labels)
    answer = answerer(row, options, processor, asked, batch_size)
    with tempfile.TemporaryDirectory() as scratch:
        training = TrainingArguments(
            output_dir=scratch, per_device_eval_batch_size=batch_size, bf16=False, disable_tqdm=True
        )
        trainer = make_trainer(
            row, network, processor, training, {"eval": features}, labels=labels, answer=answer
        )
        figures = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}
    if folder is not None and trainer.answers:
        folder.mkdir(parents=True, exist_ok=True)
        save_answers(trainer.answers, asked, str(folder))
    return figures | {
        "rows": len(held),
        "intervals": intervals(row, trainer.answers, figures, samples),
    }
