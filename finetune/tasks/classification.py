"""One class for a text, or for two: from raw rows to figures. Knows columns, tokenizers and arrays; knows no
model and no trainer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset

from finetune.data.checks import few_shots, overlap, without_empty
from finetune.data.columns import Columns, class_ids, class_names, with_classes
from finetune.data.labelled import labelled, lay_out_classes, say_classes, settled_labels
from finetune.data.laying import laid_out
from finetune.data.places import places_of
from finetune.data.questions import Laid
from finetune.data.sources import DataArguments, Rows, sample
from finetune.errors import InputError
from finetune.metrics import classification
from finetune.metrics.baselines import bag_of_words, composition, majority
from finetune.metrics.bootstrap import each, macro_f1_interval, mean_figure
from finetune.tasks.task import Answer, Asked, Examined, both_splits, shown_texts, softmax


@dataclass(frozen=True)
class Inputs:
    """What rows with one class each are classes of.

    Attributes:
        lay_out: (rows, data options) → rows with the columns that are read.
        filled: (rows, columns, whether empty ones may be left out, which rows these are) → rows whose inputs
            hold something.
        key: (row, columns) → what is equal for equal inputs.
    """

    lay_out: Callable[[Dataset, DataArguments], Laid]
    filled: Callable[[Dataset, Columns, bool, str], Dataset]
    key: Callable[[dict[str, Any], Columns], str]


def text_key(row: dict[str, Any], columns: Columns) -> str:
    """The row's texts, lower-cased."""
    return " ".join(str(row[name]) for name in (columns.text, columns.pair) if name).lower()


def examine(rows: Rows, data: DataArguments, pair: bool) -> Examined:
    """Texts, or pairs of them, with a class each (see `examine_classes`)."""
    return examine_classes(rows, data, Inputs(partial(lay_out_classes, pair=pair), without_empty, text_key))


def examine_classes(rows: Rows, data: DataArguments, inputs: Inputs) -> Examined:
    """Rows for a task on classes, sampled and checked: (rows, columns, names of the classes that training
    rows have).

    Raises:
        InputError: whatever would make the training fail or its figures mean nothing; each names its flag.
    """
    rows, columns = laid_out(rows, data, inputs.lay_out)
    assert rows.train is not None and rows.eval is not None
    class_names(rows.train, columns.label)  # that it holds classes is asked before anything else
    # nothing is trained on: what training would need of its classes is not asked
    if rows.train is rows.eval:
        return _to_be_assessed(rows, columns, data, inputs)
    # both splits together: a spelling or a -1 may stand in one of them alone
    whole, held_out = settled_labels(
        labelled(
            [(rows.train, "training"), (rows.eval, "evaluation")], columns.label, data, data.drop_empty_rows
        ),
        columns.label,
        data,
    )
    # before the sample, so that every sample of a file numbers its classes alike
    declared = class_names(whole, columns.label)
    # classes first: `sample` balances over a ClassLabel alone
    train = inputs.filled(with_classes(whole, columns.label), columns, data.drop_empty_rows, "training")
    evaluation = inputs.filled(held_out, columns, data.drop_empty_rows, "evaluation")
    check_classes(train, columns.label, declared, "training")
    # a declared class without a row would be an output that nothing trains
    labels = seen_classes(train, columns.label, declared)
    check_classes(evaluation, columns.label, labels, "evaluation")
    limit, (shots, seed) = data.max_train_rows, few_shots(data)
    if shots is not None:
        if limit is not None:
            raise InputError(
                "--shots_per_class and --max_train_rows both say how many rows to train on; leave one out"
            )
        # a balanced sample of so many rows has just that many of each class
        limit = check_shots(train, columns.label, labels, shots)
    train = sample(train, limit, seed, columns.label)
    evaluation = sample(
        with_classes(evaluation, columns.label),
        data.max_eval_rows,
        data.sample_seed,
        columns.label if data.balance_eval_rows else None,
    )
    # once more on the sample: a small one may have lost all classes but one
    seen_classes(train, columns.label, labels)
    say_classes(
        labels,
        [(where, _counted(part, columns.label)) for where, part in (("train", train), ("eval", evaluation))],
    )
    # on the samples, which are what is trained and scored
    overlap(train, evaluation, lambda row: inputs.key(row, columns))
    return Examined(Rows(train, evaluation, rows.name), columns, labels)


def _to_be_assessed(rows: Rows, columns: Columns, data: DataArguments, inputs: Inputs) -> Examined:
    """Rows that nothing is learnt from: any classes will do, even one alone, and all names are theirs."""
    assert rows.eval is not None
    (part,) = settled_labels(
        labelled([(rows.eval, "evaluation")], columns.label, data, data.drop_empty_rows), columns.label, data
    )
    held = inputs.filled(with_classes(part, columns.label), columns, data.drop_empty_rows, "evaluation")
    declared = class_names(held, columns.label)
    check_classes(held, columns.label, declared, "evaluation")
    counts = _counted(held, columns.label)
    # the model brings its own classes; these are the ones that stand in the rows
    names = [name for name in declared if counts[name]]
    # without balance: figures are of the file's own population
    held = sample(held, data.max_eval_rows, data.sample_seed)
    return Examined(Rows(held, held, rows.name), columns, names)


def _counted(rows: Dataset, column: str) -> Counter[str]:
    names = rows.features[column].names
    # -1 would count for the last class
    return Counter(names[value] for value in rows[column] if value >= 0)


def check_classes(rows: Dataset, column: str, labels: list[str], where: str) -> None:
    """Every row has one of the classes in `labels`.

    Raises:
        InputError: rows with a class that is not among them (an evaluation label never seen in training), or
            with none.
    """
    # by name, so that splits that number their classes otherwise agree
    ids = class_ids(rows, column, labels)
    strange = [index for index, value in enumerate(ids) if value < 0]
    if strange:
        feature = rows.features[column]
        values = Counter(_name(feature, rows[column][index]) for index in strange)
        named = ", ".join(f"{value!r} ({count} rows)" for value, count in values.most_common(5))
        raise InputError(
            f"{len(strange)} {where} rows have a label in '{column}' that no training row has, or none: "
            f"{named} ({places_of(rows, strange)}); "
            f"wanted one of: {', '.join(labels[:20])}. Mend the rows, or set --label_column, --train_split "
            "or --eval_split"
        )


def _name(feature: object, value: object) -> object:
    if isinstance(feature, ClassLabel) and isinstance(value, int) and 0 <= value < feature.num_classes:
        return feature.int2str(value)
    return "no label" if value is None or (value == -1 and isinstance(feature, ClassLabel)) else value


def seen_classes(rows: Dataset, column: str, labels: list[str]) -> list[str]:
    """The classes that training rows really have, in order.

    Raises:
        InputError: only one class, so that there is nothing to learn.
    """
    counts = Counter(class_ids(rows, column, labels))
    seen = [name for index, name in enumerate(labels) if counts[index]]
    if len(seen) < 2:
        only = f"one class only ({seen[0]!r})" if seen else "no class at all"
        raise InputError(
            f"The training rows have {only} in '{column}'; wanted two or more. Set --train_split, "
            "--label_column or --max_train_rows "
            "(a file sorted by label may hold one class in its first rows)"
        )
    return seen


def check_shots(rows: Dataset, column: str, labels: list[str], shots: int) -> int:
    """Number of rows that make `shots` of each class.

    Raises:
        InputError: no shot at all, or a class with fewer rows.
    """
    counts = Counter(class_ids(rows, column, labels))
    # the class that has the fewest rows bounds the shots
    fewest = min(range(len(labels)), key=lambda index: counts[index])
    if not 0 < shots <= counts[fewest]:
        raise InputError(
            f"--shots_per_class {shots}: the class '{labels[fewest]}' has {counts[fewest]} rows; wanted from "
            "1 to as many"
        )
    return shots * len(labels)


def read(kept: np.ndarray, asked: Asked) -> list[Answer]:
    """Logits [rows, classes] → the likeliest class of each row and its probability."""
    assert asked.labels is not None
    # what is kept comes in the order of batches, answers in that of the rows
    chances = softmax(kept)[asked.in_order()]
    gold = np.asarray(asked.features["labels"][:])[asked.in_order()]
    return [
        {
            "gold": asked.labels[wanted],
            "prediction": asked.labels[int(row.argmax())],
            "score": float(row.max()),
        }
        for wanted, row in zip(gold, chances, strict=True)
    ]


def right(answer: Answer) -> float:
    """1 where the answer is the wanted one."""
    return float(answer["prediction"] == answer["gold"])


def details(answers: Sequence[Answer], labels: list[str], samples: int = 2000) -> dict[str, Any]:
    """Each class's figures and the confusion matrix (rows are gold classes), and the interval of macro-F1."""
    # answers hold names; the figures count ids
    place = {name: index for index, name in enumerate(labels)}
    gold, said = (np.array([place[answer[side]] for answer in answers]) for side in ("gold", "prediction"))
    return {
        "labels": labels,
        "per_class": classification.per_class(said, gold, labels),
        "confusion": classification.class_confusion(said, gold, labels),
        "intervals": {"macro_f1": list(macro_f1_interval(said, gold, len(labels), samples))},
    }


def baselines(found: Examined) -> list[dict[str, Any]]:
    """Always the commonest class, and a bag of words, learnt on the training rows."""
    both = both_splits(found)
    if both is None:
        return []
    parts, train, gold = both
    learnt, asked = (_whole_texts(part, found.columns) for part in parts)
    # told from the rows, as the task doesn't say what its texts are
    words = any(any(sign.isspace() for sign in text) for text in learnt)
    linear = bag_of_words if words else composition  # sequences of residues have no words
    made = (majority(gold, train), linear(learnt, train, asked, gold))
    return [one for one in made if one is not None]


def _whole_texts(rows: Dataset, columns: Columns) -> list[str]:
    """One text a row; a bag of words sees no border between two."""
    texts = shown_texts(rows, columns)
    return texts if columns.pair is None else [f"{one} {other}" for one, other in texts]


ACCURACY = {"accuracy": (each(right), mean_figure)}
