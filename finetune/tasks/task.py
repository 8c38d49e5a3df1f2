"""What a task is: one row of TASKS, as the functions that each step of the flow needs. Knows no task
by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from finetune.data.checks import not_trained
from finetune.data.columns import Columns, row_classes
from finetune.data.encode import fingerprint
from finetune.data.sources import Rows, load_rows
from finetune.loss import everything, same_labels
from finetune.metrics.bootstrap import Counts, Figure, bootstrap
from finetune.models import heads
from finetune.models.processors import TEXT
from finetune.tasks.options import TaskArguments, remembered

Answer = dict[str, Any]


class Examined(NamedTuple):
    """Rows that were checked and sampled, which of their columns are read, the names of the classes or None,
    and what is known of where the rows are from (see `artefacts.provenance`).
    """

    rows: Rows
    columns: Columns
    labels: list[str] | None
    provenance: Mapping[str, Any] | None = None

    @property
    def fingerprint(self) -> str:
        """Of what the training rows hold; of a stream, that nobody has read, the evaluation rows."""
        # by content, so that a moved or renamed file is the same
        rows = self.rows.train if self.rows.train is not None else self.rows.eval
        assert rows is not None
        return fingerprint(rows, self.columns)


def both_splits(found: Examined) -> tuple[tuple[Dataset, Dataset], list[str], list[str]] | None:
    """Training and evaluation rows, and the class of each of their rows by name: what a baseline learns and
    is held against. None where the rows have no declared classes.
    """
    assert found.rows.train is not None and found.rows.eval is not None
    parts = (found.rows.train, found.rows.eval)
    train, gold = (row_classes(part, found.columns.label) for part in parts)
    return None if train is None or gold is None else (parts, train, gold)


def shown_texts(rows: Dataset, columns: Columns) -> list[Any]:
    """The rows' texts, or pairs of texts."""
    if columns.pair is None:
        return rows[columns.text][:]
    # tuples: `as_columns` tells pairs from texts by them
    return list(zip(rows[columns.text], rows[columns.pair], strict=True))


def nothing_to_bind(options: TaskArguments) -> dict[str, Callable]:
    """No function of the row takes an option."""
    return {}


def only_options(arguments: Mapping[str, Any]) -> tuple[TaskArguments, dict[str, Any]]:
    """What a finished run's arguments.yaml says of its task: the options, and nothing else."""
    return remembered(arguments), {}


@dataclass(frozen=True)
class Asked:
    """Raw rows, and the features that were made of them: several of one row where it is read in windows.

    Attributes:
        rows: raw rows.
        features: in the order of the model's outputs; their column `row` says which raw row they are of.
        labels: names of the classes, None where there are none.
    """

    rows: Dataset
    columns: Columns
    features: Dataset
    labels: list[str] | None

    def in_order(self) -> np.ndarray:
        """Place of each raw row's one feature: of several, the one that is `final`."""
        # features may be sorted by length; stable keeps those of one row in their order
        order = np.argsort(np.asarray(self.features["row"][:]), kind="stable")
        if "final" not in self.features.column_names:
            return order
        # `final` is looked up in the new order
        return order[np.asarray(self.features["final"][:])[order]]


@dataclass(frozen=True)
class Task:
    """One task. A file of this room has the functions under the names that they have here.

    Attributes:
        model: transformers' auto class.
        examine: (rows, data options) → (rows sampled and checked, columns, names of the classes or None).
        encode: (rows, columns, processor, max_length, labels) → features.
        collate: processor → (features → batch).
        loss: (logits, labels) → summed loss of each row [batch].
        items: labels → number of items that the loss of each row is summed over [batch].
        metrics: (what is kept of the logits, labels, label names) → figures.
        peft: PEFT's name of the task.
        pair: whether a row has two texts.
        classes: whether the answer to a text is one of the classes.
        pooled: whether the head reads one vector of a whole text.
        best: the figure that tells the better of two models; greater is better.
        forward: (model, batch without labels, labels) → logits, where a head wants more than its `logits`.
        keep: (logits, labels) → what evaluation keeps of a batch [batch, ...]; a vocabulary's would not fit.
        read: (what is kept, what was asked) → one answer a raw row; None where a model writes its answers.
        answers: whether evaluation gives an answer to each raw row.
        figures: (answers, label names) → further figures, where those of single logits don't say it.
        details: (answers, label names, bootstrap samples) → what an assessment shows beside figures.
        intervals: figure → (what is summed of each answer, the figure of such sums); see `metrics.bootstrap`.
        config: entries of the model's configuration.
        start: (network, processor, rows that were examined) → None, where these are told of the training
            rows before the first step.
        takes: options that the task reads beside those that every task does.
        bind: options → functions of this row with the options in them, by the row's own names.
        recall: arguments.yaml of a finished run → (options, further entries of this row as they were
            trained).
        decoder_only: the row to take for a model that has no encoder, where that is another.
        reads: what a row's input is: text, or a row of `models.processors.READERS`.
        show: (rows, columns) → what stands for each input in predictions.jsonl and on pages.
        baselines: rows that were examined → what needs no such model, scored on the same rows: name, figure,
            interval.
        load: (data options, whether training rows are read) → raw rows with their splits.
        sized: (configuration, the user's entries of it, rows that were examined) → the configuration that a
            model which is made anew for them has.
        keep_labels: labels → what evaluation keeps of them; those of a long horizon would not fit.
        unseen: whether each raw row was trained on [rows] → places of those that an assessment reads.
        lead: raw rows of an evaluation part that stand before the first one that is scored.
        block: neighbouring answers that depend on each other, and are resampled together.
    """

    model: Any
    examine: Callable
    encode: Callable
    collate: Callable
    loss: Callable
    items: Callable
    metrics: Callable
    peft: str
    pair: bool = False
    classes: bool = False
    pooled: bool = False
    best: str = "accuracy"
    forward: Callable = heads.head_logits
    keep: Callable = everything
    read: Callable | None = None
    answers: bool = True
    figures: Callable | None = None
    details: Callable | None = None
    intervals: Mapping[str, tuple[Counts, Figure]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    start: Callable | None = None
    takes: frozenset[str] = frozenset()
    bind: Callable[[TaskArguments], dict[str, Callable]] = nothing_to_bind
    recall: Callable[[Mapping[str, Any]], tuple[TaskArguments, dict[str, Any]]] = only_options
    decoder_only: Task | None = None
    reads: str = TEXT
    show: Callable[[Dataset, Columns], list[Any]] = shown_texts
    baselines: Callable[[Examined], list[dict[str, Any]]] | None = None
    load: Callable[..., Rows] = load_rows
    sized: Callable[..., Any] | None = None
    keep_labels: Callable = same_labels
    unseen: Callable[[np.ndarray], np.ndarray] = not_trained
    lead: int = 0
    block: int = 1

    @property
    def writes(self) -> bool:
        """Whether answers are texts that the model writes, not something read off its logits."""
        return self.read is None

    def bound(self, options: TaskArguments) -> Task:
        """The row with the options in its functions."""
        # a copy: TASKS itself never changes
        return replace(self, **self.bind(options))  # type: ignore[arg-type]


def intervals(
    row: Task, answers: Sequence[Answer], figures: Mapping[str, Any], samples: int = 2000
) -> dict[str, list[float]]:
    """The 95 % interval of each of the `figures` that has one: {"accuracy": [low, high]}; none without
    answers.
    """
    if not answers:
        return {}
    return {
        name: list(bootstrap(counts(answers), figure, samples, block=row.block))
        for name, (counts, figure) in row.intervals.items()
        if name in figures
    }


def softmax(values: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis, in float64."""
    # less the maximum, so that nothing overflows
    weights = np.exp(values.astype(np.float64) - values.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)
