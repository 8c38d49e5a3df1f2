"""A finished run → the teacher of another. Knows artefacts and tasks; knows no trainer."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor

from finetune.adapters.assess import trained_as
from finetune.adapters.classifier import load_classifier, load_network
from finetune.artefacts.folder import Artefact, read_artefact
from finetune.artefacts.hashes import hash_processor
from finetune.artefacts.trained_rows import read_trained_rows, row_hashes
from finetune.device import device
from finetune.errors import InputError
from finetune.tasks.task import Examined, Task, shown_texts
from finetune.training.distil import DistilArguments, Teacher

logger = logging.getLogger(__name__)

# Tasks whose answers are distributions over what both models know.
TAUGHT = ("classification", "pairs", "sft")


def load_teacher(
    distil: DistilArguments, name: str, row: Task, found: Examined, processor: Any
) -> Teacher | None:
    """The logits of `distil.teacher` for training rows; None where there is no teacher.

    A classifier is asked once for each row, with its own tokenizer and length; a language model at each step.

    Args:
        name: of the student's task.
        processor: the student's tokenizer.

    Raises:
        InputError: no artefact, another task, other classes, or a language model with another tokenizer.
    """
    if distil.teacher is None:
        return None
    artefact = read_artefact(distil.teacher)
    _, options = trained_as(artefact)
    if name not in TAUGHT:
        raise InputError(
            f"The task '{name}' has no use for --teacher; wanted one class a text (classification, pairs) or "
            "a language model (sft)"
        )
    # The student's rows would mean something else to a model of another task.
    if options.task != name:
        raise InputError(
            f"The teacher in {artefact.folder} was trained on the task '{options.task}', this is '{name}'; "
            "set --teacher to a run on the same task"
        )
    # Said and not refused: the user may know of it.
    _say_leak(artefact, found)
    return _classes(artefact, found) if row.classes else _tokens(artefact, row, processor)


def _classes(artefact: Artefact, found: Examined) -> Teacher:
    classifier = load_classifier(artefact.folder)
    mine, theirs = found.labels or [], classifier.labels
    if set(mine) != set(theirs):
        raise InputError(
            f"The teacher in {artefact.folder} tells {', '.join(theirs)} apart, and the rows have "
            f"{', '.join(mine)}; set --teacher to a run on the same classes"
        )
    assert found.rows.train is not None
    texts = shown_texts(found.rows.train, found.columns)
    # In the student's order of classes; each row asked once, [rows, classes].
    table = classifier.logits(texts)[:, [theirs.index(label) for label in mine]]

    def teach(inputs: dict[str, Any], labels: Tensor, rows: Tensor) -> Tensor:
        # Rows come on the model's device; the table stays on the CPU.
        return table[rows.cpu()]

    return teach


def _tokens(artefact: Artefact, row: Task, processor: Any) -> Teacher:
    own, network = load_network(artefact)
    # Distributions are compared token by token.
    if hash_processor(own)["tokenizer"] != hash_processor(processor)["tokenizer"]:
        raise InputError(
            f"The teacher in {artefact.folder} has another tokenizer than the student, so that its tokens "
            "are others; set --teacher or --model_name_or_path"
        )
    network = network.to(device()).eval().requires_grad_(False)

    def teach(inputs: dict[str, Any], labels: Tensor, rows: Tensor) -> Tensor:
        # In the student's own way of calling, so that what counts is counted alike.
        return row.forward(network, inputs, labels)

    return teach


def _say_leak(artefact: Artefact, found: Examined) -> None:
    """Rows that the student is evaluated on and the teacher has learnt, said in the log."""
    known = read_trained_rows(artefact.folder)
    if known is None or found.rows.eval is None:
        return
    many = sum(one in known for one in row_hashes(found.rows.eval, found.columns))
    if many:
        logger.warning(
            "%d of %d evaluation rows are among those that the teacher in %s was trained on: what it says of "
            "the others may lean on them",
            many, len(found.rows.eval), artefact.folder,
        )  # fmt: skip
