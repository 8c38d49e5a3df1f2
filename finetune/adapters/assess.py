"""An artefact of any task and rows → answers, figures and intervals. Knows tasks and artefacts; trains
nothing.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune.adapters.classifier import load_network
from finetune.artefacts.folder import Artefact
from finetune.artefacts.trained_rows import unseen_rows
from finetune.data.narrowed import OwnRowsArguments, UnshownArguments
from finetune.data.sources import DataArguments, Rows, sample
from finetune.errors import InputError
from finetune.metrics.further import MetricArguments, with_metrics
from finetune.models.load import architecture, as_trained
from finetune.tasks.answers import answerer, save_answers
from finetune.tasks.options import TaskArguments
from finetune.tasks.table import TASKS, recalled
from finetune.tasks.task import Examined, Task
from finetune.training.run import all_intervals, ask
from finetune.training.trainer import TrainingArguments, make_trainer

# How rows are read: what is not said is as it was in training.
UNSHOWN = ("show_rows", "check", "licences")
COLUMNS = ("text_column", "text_pair_column", "label_column")
READ_AS = ("class_names", "near_labels", "minus_one", "layout", "learn_turns", "drop_empty_rows")


@dataclass
class AssessArguments(MetricArguments):
    """What is assessed, and where its figures go."""

    artefact: str | None = field(default=None, metadata={"help": "Output folder of a training script."})
    output_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder for metrics.json and the plot (default: assessments/DATA_SPLIT inside the "
            "artefact)."
        },
    )
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Rows a batch."})
    bootstrap_samples: int = field(default=2000, metadata={"help": "Samples behind each 95 % interval."})
    keep_trained_rows: bool = field(
        default=False,
        metadata={"help": "Score rows that the model was trained on too; they are left out else."},
    )


def assessment_folder(assess: AssessArguments, data: DataArguments) -> Path:
    """Where the figures go: the folder that was named, or one of the artefact's own named after the data."""
    if assess.output_dir:
        return Path(assess.output_dir)
    # Named by data and split, so that two assessments don't overwrite each other.
    name = re.sub(r"[^\w.-]+", "_", "_".join(filter(None, (Path(data.name).name, data.eval_split))))
    return Path(str(assess.artefact)) / "assessments" / name


def trained_as(artefact: Artefact) -> tuple[Task, TaskArguments]:
    """The task's row as it was trained, and its options.

    Raises:
        InputError: a folder of pretraining or of preferences, which answers nothing.
    """
    if "task" not in artefact.options:
        raise InputError(
            f"{artefact.folder} holds a model of no task, which answers nothing; tune it with "
            "scripts/train.py"
        )
    if artefact.options["task"] not in TASKS:
        raise InputError(
            f"The run in {artefact.folder} is one of '{artefact.options['task']}', which has no labelled "
            f"rows to be right on; its figures stand on its page ({artefact.folder}/report.html). Answers "
            "are judged by finetune prompt --models"
        )
    return recalled(artefact.options, architecture(as_trained(artefact.options, artefact.source)))


def evaluation_rows(
    artefact: Artefact, row: Task, data: DataArguments, keep_trained_rows: bool | None = None
) -> tuple[Examined, int]:
    """Evaluation rows, checked and sampled, without those that the model was trained on, and how many these
    were.

    Columns that are not named are those of the training, where the rows have them.

    Args:
        keep_trained_rows: leave none out; None where the verb has no such option, and no message names it.

    Raises:
        InputError: rows that the task can't read, labels that the model never saw, rows that were all trained
            on.
    """
    part = row.load(data, train=False).eval
    assert part is not None
    # of a sample that is drawn first, the rows that were trained on would be missing
    # Sampling comes after the trained rows have gone; see below.
    whole = replace(
        data, **read_as(artefact, data, part.column_names), max_train_rows=None, max_eval_rows=None
    )
    found = row.examine(Rows(part, part, data.name), whole)
    # Labels that it knows and the rows lack are no fault.
    strange = sorted(set(found.labels or ()) - set(artefact.labels or ()))
    if strange:
        raise InputError(
            f"The rows have labels that the model never saw: {', '.join(strange[:5])}. Set --label_column"
        )
    assert found.rows.eval is not None
    kept, count = unseen_rows(
        artefact.folder, found.rows.eval, found.columns, row.unseen, keep=keep_trained_rows
    )
    if data.max_eval_rows is not None:
        # they come shuffled: the first ones are the sample that training would have drawn
        # `lead` rows before the sample: a forecast's first window needs what was before it.
        few = kept.select(range(min(row.lead + data.max_eval_rows, len(kept))))
        even = sample(kept, data.max_eval_rows, data.sample_seed, found.columns.label)
        kept = even if data.balance_eval_rows else few
    return found._replace(rows=Rows(kept, kept, data.name), labels=artefact.labels), count


def rows_as_trained(artefact: Artefact, data: OwnRowsArguments) -> UnshownArguments:
    """Which rows: those that are named, or those that the run was evaluated on, but for what else is asked
    for."""
    given, plain = vars(data), vars(type(data)())
    # The run's own rows, but for what was asked for here.
    if data.dataset_name is None:
        own = {name: artefact.options[name] for name in given if name in artefact.options}
        asked = {name: value for name, value in given.items() if value != plain[name]}
        if "eval_split" in asked:
            # a named split is no part of the training file
            own.pop("hold_out", None)
        given = own | asked
    return UnshownArguments(**{name: value for name, value in given.items() if name not in UNSHOWN})


def read_as(artefact: Artefact, data: DataArguments, there: list[str]) -> dict[str, Any]:
    """How the training rows were read, as far as `data` does not say otherwise and the columns are there."""
    plain = DataArguments()
    open_ones = {
        name: artefact.options[name]
        for name in (*COLUMNS, *READ_AS, "ignore_columns")
        # Said here counts: an option that stands at its default was not said.
        if artefact.options.get(name) is not None and vars(data)[name] == vars(plain)[name]
    }
    for name in COLUMNS:
        # Columns may be nested (a.b); the first part must be there.
        if str(open_ones.get(name, "")).partition(".")[0] not in there:
            open_ones.pop(name, None)
    if "ignore_columns" in open_ones:
        kept = [column for column in open_ones["ignore_columns"] if column.partition(".")[0] in there]
        open_ones["ignore_columns"] = kept or None
    return open_ones


def assess_task(
    artefact: Artefact,
    data: DataArguments,
    assess: AssessArguments | None = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Figures of an artefact on the evaluation rows of `data`, read and asked as in its training.

    Args:
        folder: where answers are written to.

    Returns:
        The task's figures, `loss` (nats an item), `rows`, `rows_left_out` (those that were trained on),
        `rows_trained_on` (of them, where they are kept), `intervals` of 95 %, and what the task shows beside
        (`per_class` and `confusion` of classes).

    Raises:
        InputError: a folder of pretraining, rows that the task can't read, labels that the model never saw,
            no such metric.
    """
    # other verbs have no such option, which no message may name then
    keep = assess and assess.keep_trained_rows
    assess = assess or AssessArguments()
    row, options = trained_as(artefact)
    row = replace(row, figures=with_metrics(row.figures, assess.metrics))
    found, trained = evaluation_rows(artefact, row, data, keep)
    processor, network = load_network(artefact, row=row)
    features = row.encode(found.rows.eval, found.columns, processor, options.max_length, found.labels)
    asked = ask(found, features)
    size, samples = assess.per_device_eval_batch_size, assess.bootstrap_samples
    # Training options want a folder, in which nothing is left.
    with tempfile.TemporaryDirectory() as scratch:
        # In float32, so that figures don't depend on the machine.
        training = TrainingArguments(
            output_dir=scratch, per_device_eval_batch_size=size, bf16=False, disable_tqdm=True
        )
        answer = answerer(row, options, processor, asked, size)
        trainer = make_trainer(
            row, network, processor, training, {"eval": features}, labels=found.labels, answer=answer
        )
        figures = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}
        # transformers adds its own time.
        figures.pop("model_preparation_time", None)
    if folder is not None and trainer.answers:
        folder.mkdir(parents=True, exist_ok=True)
        save_answers(trainer.answers, asked, str(folder), row.show)
    bounds = all_intervals(trainer, asked, figures, samples)
    details = row.details(trainer.answers, found.labels, samples) if row.details else {}
    return (
        figures
        # Rows that were asked, which windows and samples may have made fewer.
        | {"rows": len(asked.rows), "rows_left_out": 0 if keep else trained}
        # said in the file too: who reads it later doesn't know the command
        | ({"rows_trained_on": trained} if keep else {})
        | details
        | {"intervals": bounds | details.get("intervals", {})}
    )
