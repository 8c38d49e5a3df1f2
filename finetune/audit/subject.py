"""An artefact → what is attacked: its model, rows that it was trained on and rows that it wasn't. Knows
artefacts and tasks; knows no attack.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from finetune.artefacts.folder import Artefact
from finetune.artefacts.trained_rows import read_trained_rows, row_hashes
from finetune.audit.options import AuditArguments
from finetune.audit.reading import rows_of_run
from finetune.errors import InputError
from finetune.tasks.options import TaskArguments
from finetune.tasks.task import Examined, Task

logger = logging.getLogger(__name__)

LEAST_OTHERS = 8  # held-out rows that an interval can be of


@dataclass(frozen=True)
class Attacked:
    """What is attacked.

    Attributes:
        found: members first, then the others; labels are the artefact's.
        places: of the members among the run's training rows, [members].
        trained: how many rows the run was trained on.
        aligned, repeatable: see `audit.reading.RunRows`.
    """

    artefact: Artefact
    row: Task
    options: TaskArguments
    found: Examined
    places: np.ndarray
    trained: int
    aligned: bool = False
    repeatable: bool = True

    @property
    def members(self) -> int:
        return len(self.places)

    @property
    def rows(self) -> Dataset:
        assert self.found.rows.train is not None
        return self.found.rows.train

    def learnable(self, processor: Any) -> Attacked:
        """The same without rows of which nothing is left to learn within --max_length, which cost nothing."""
        there = sorted(set(self.features(processor)["row"][:]))
        if len(there) < len(self.rows):
            gone = len(self.rows) - len(there)
            logger.warning("%d of %d rows have nothing to learn and are left out", gone, len(self.rows))
        return self.kept(there)

    def without(self, texts: set[str]) -> Attacked:
        """The same without rows of these texts, such as planted ones, which are like no other."""
        # chats are lists, which no set can be asked for, and hold no planted text
        if not texts:
            return self
        found = enumerate(self.rows[self.found.columns.text])
        return self.kept([place for place, text in found if text not in texts])

    def kept(self, there: list[int]) -> Attacked:
        """The same with these rows alone, by their places."""
        # places below `members` are members, here and in what is made
        rows, members = self.rows.select(there), [place for place in there if place < self.members]
        found = self.found._replace(rows=replace(self.found.rows, train=rows, eval=rows))
        return replace(self, found=found, places=self.places[members])

    def features(self, processor: Any, rows: Dataset | None = None) -> Dataset:
        """Features of these rows, or of all that are attacked."""
        chosen = self.rows if rows is None else rows
        return self.row.encode(
            chosen, self.found.columns, processor, self.options.max_length, self.found.labels
        )


def find_attacked(artefact: Artefact, audit: AuditArguments) -> Attacked:
    """Members, rebuilt from what the run says of its rows and told by their hashes, and held-out rows: those
    that were named, else the run's evaluation rows.

    Raises:
        InputError: the run doesn't say which rows it was trained on, or they are not there any more; held-out
            rows that were trained on.
    """
    known = read_trained_rows(artefact.folder)
    if known is None:
        raise InputError(
            f"{artefact.folder} does not say which rows it was trained on (no trained_rows.safetensors), so "
            "that nobody can be told from others. Set --artefact to a run of train, sft, pretrain or dpo, "
            "not on a stream"
        )
    run = rows_of_run(artefact)
    whole = run.whole
    members = whole.rows.train
    # every row is looked up: a file that has changed would make strangers of members
    there = np.array([one in known for one in row_hashes(members, whole.columns)])
    if not there.all() or not len(there):
        raise InputError(
            f"Of the {len(there)} training rows that {run.name} gives now, {artefact.folder} was trained on "
            f"{int(there.sum())}: they are others than then. Bring back the file that dataset_name in its "
            "arguments.yaml names"
        )
    others = run.others(audit.held_out) if audit.held_out else whole.rows.eval
    # by hash, too: named rows may hold some that were trained on
    others = without_overlap(artefact, others, whole, known, audit)
    rng = np.random.default_rng(audit.audit_seed)
    order = rng.permutation(len(members))
    if run.row.classes:
        column = whole.columns.label
        order = of_known_classes(order, np.asarray(members[column][:]), np.asarray(others[column][:]))
    # a sample in the order of the file, whose places `name_of` tells
    places = np.sort(order[: audit.max_rows])
    apart = rng.permutation(len(others))
    # classes differ in loss: in other shares they would be told apart instead of members
    if run.row.classes:
        apart = as_shared(apart, np.asarray(others[column]), np.asarray(members.select(places)[column]))
    apart = np.sort(apart[: audit.max_rows])
    # held-out rows of another source may lack a column that nothing reads
    names = [name for name in members.column_names if name in others.column_names]
    both = concatenate_datasets(
        [members.select(places).select_columns(names), others.select(apart).select_columns(names)]
    )
    # one object for both splits, members first
    found = whole._replace(rows=replace(whole.rows, train=both, eval=both), labels=artefact.labels)
    return Attacked(artefact, run.row, run.options, found, places, len(members), run.aligned, run.repeatable)


def without_overlap(
    artefact: Artefact, others: Dataset | None, whole: Examined, known: set[int], audit: AuditArguments
) -> Dataset:
    """Held-out rows that the run has not seen.

    Raises:
        InputError: it has seen some, and nobody said to leave them out; or there are none left.
    """
    if others is None:
        raise InputError("The run kept no rows aside; set --held_out to rows that it has not seen")
    fresh = [place for place, one in enumerate(row_hashes(others, whole.columns)) if one not in known]
    seen = len(others) - len(fresh)
    if seen and not audit.drop_overlap:
        raise InputError(
            f"{seen} of {len(others)} held-out rows overlap with those that {artefact.folder} was trained "
            "on, which would count members as strangers. Set --drop_overlap true to leave them out, or "
            "--held_out to rows that it has not seen"
        )
    if len(fresh) < LEAST_OTHERS:
        raise InputError(
            f"{len(fresh)} held-out rows that the run has not seen; wanted {LEAST_OTHERS} or more. Set "
            "--held_out"
        )
    return others.select(fresh)


def of_known_classes(order: np.ndarray, labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Members whose class some held-out row has, in their order: one of a rare class has nobody to be told
    from.

    Args:
        order: places of members, [members].
        labels: of members, by place, [members].
        others: labels of held-out rows, [others].
    """
    kept = order[np.isin(labels[order], others)]
    if len(kept) < len(order):
        logger.warning(
            "%d training rows have a class that no held-out row has, and are left out",
            len(order) - len(kept),
        )
    return kept


def as_shared(order: np.ndarray, labels: np.ndarray, members: np.ndarray) -> np.ndarray:
    """As many held-out rows as there are with the members' shares of each class, in their order: else an
    attack would tell classes, not members.

    Args:
        order: places of held-out rows, [others].
        labels: of held-out rows, [others].
        members: labels of the members, [members].
    """
    counts = {label: int((members == label).sum()) for label in np.unique(members)}
    there = {label: int((labels == label).sum()) for label in counts}
    # the scarcest class bounds all: fewer rows, in the right shares
    share = min((there[label] / count for label, count in counts.items()), default=0.0)
    left = {label: int(share * count) for label, count in counts.items()}
    kept = []
    for place in order:
        label = labels[place]
        # a class that no member has gets none
        if left.get(label, 0) > 0:
            left[label] -= 1
            kept.append(place)
    if len(kept) < LEAST_OTHERS:
        raise InputError(
            f"{len(kept)} held-out rows have the classes of the training rows in their shares; wanted "
            f"{LEAST_OTHERS} or more. Set --held_out to rows with all classes"
        )
    return np.array(kept)
