"""An artefact and rows → figures with intervals. Knows classifiers; knows no training."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from finetune import loss
from finetune.adapters.classifier import Classifier
from finetune.data.checks import without_empty
from finetune.data.columns import Columns, class_ids, find_columns, with_classes
from finetune.data.sources import DataArguments, load_rows, sample
from finetune.metrics import bootstrap, classification
from finetune.tasks.classification import check_classes


@dataclass
class AssessArguments:
    """What is assessed, and where its figures go."""

    artefact: str | None = field(default=None, metadata={"help": "Output folder of a training script."})
    output_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder for metrics.json and the plot (default: assessments/DATA_SPLIT inside the artefact)."
        },
    )
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Rows a batch."})
    bootstrap_samples: int = field(default=2000, metadata={"help": "Samples behind each 95 % interval."})


def assessment_folder(assess: AssessArguments, data: DataArguments) -> Path:
    """Where the figures go: the folder that was named, or one of the artefact's own named after the data."""
    if assess.output_dir:
        return Path(assess.output_dir)
    name = re.sub(r"[^\w.-]+", "_", "_".join(filter(None, (Path(data.name).name, data.eval_split))))
    return Path(str(assess.artefact)) / "assessments" / name


def evaluation_rows(data: DataArguments, classifier: Classifier) -> tuple[Dataset, Columns]:
    """Rows to assess a classifier on, sampled and checked against the labels that it knows.

    Raises:
        InputError: a column that is missing, a label that the classifier never saw, rows without text.
    """
    rows = load_rows(data, train=False).eval
    assert rows is not None
    columns = find_columns(rows, data, classifier.pair)
    rows = without_empty(rows, columns, data.drop_empty_rows, "evaluation")
    check_classes(rows, columns.label, classifier.labels, "evaluation")
    even = columns.label if data.balance_eval_rows else None
    return sample(with_classes(rows, columns.label), data.max_eval_rows, data.sample_seed, even), columns


def assessed_texts(rows: Dataset, columns: Columns) -> list[Any]:
    """The rows' texts (or pairs of texts), as a classifier takes them."""
    return (
        rows[columns.text][:]
        if columns.pair is None
        else list(zip(rows[columns.text], rows[columns.pair], strict=True))
    )


def assess_classifier(
    classifier: Classifier, rows: Dataset, columns: Columns, batch_size: int = 32, samples: int = 2000
) -> dict[str, Any]:
    """Accuracy, F1, loss, each with a 95 % bootstrap interval; figures of each class and the confusion matrix.

    The loss is the mean over rows in nats, exact for any batch size.
    """
    logits = classifier.logits(assessed_texts(rows, columns), batch_size)
    gold = torch.tensor(class_ids(rows, columns.label, classifier.labels))
    losses = loss.cross_entropy(logits, gold).double().numpy()
    predicted, truth, names = logits.argmax(-1).numpy(), gold.numpy(), classifier.labels
    return {
        **classification.class_figures(logits.numpy(), truth, names),
        "loss": float(losses.mean()),
        "rows": len(truth),
        "intervals": {
            "accuracy": bootstrap.interval(predicted == truth, samples),
            "macro_f1": bootstrap.macro_f1_interval(predicted, truth, len(names), samples),
            "loss": bootstrap.interval(losses, samples),
        },
        "labels": names,
        "per_class": classification.per_class(predicted, truth, names),
        "confusion": classification.confusion(predicted, truth, names),
    }
