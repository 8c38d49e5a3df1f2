"""A data set → the rows that all ways learn from, and the unseen ones that all are measured on. Knows rows;
knows no models.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from datasets import Dataset

from finetune.artefacts.trained_rows import read_texts_alone
from finetune.data.columns import Columns, class_ids
from finetune.data.encode import fingerprint
from finetune.data.sources import DataArguments, Rows, load_rows
from finetune.errors import InputError
from finetune.tasks.table import find_task
from finetune.tasks.task import Examined
from prompts.study.trained import rows_to_ask

logger = logging.getLogger(__name__)
UNSEEN = 300  # rows, where the user names no number
COUNTS = (16, 64, 256, 1024, 4096)


@dataclass(frozen=True)
class LadderRows:
    """Rows by what they are for.

    Attributes:
        pool: rows that labelled ones are drawn from.
        unseen: rows that every way is measured on; none of their texts is in the pool.
        pool_classes, gold: number of each row's class.
    """

    name: str
    pool: Dataset
    unseen: Dataset
    columns: Columns
    labels: list[str]
    pool_classes: np.ndarray
    gold: np.ndarray

    @property
    def fingerprint(self) -> str:
        """Of all that is learnt from and measured on."""
        # both parts: a ladder on other unseen rows is another one
        return fingerprint(self.pool, self.columns)[:16] + fingerprint(self.unseen, self.columns)[:16]

    def labelled(self, count: int, seed: int) -> Dataset:
        """`count` rows of the pool: one of each class first, then as they come; more of them hold fewer."""
        return self.pool.select(drawn(self.pool_classes, count, seed))

    def examined(self, train: Dataset) -> Examined:
        """What a run's steps take: these rows to train on, and the unseen ones."""
        return Examined(Rows(train, self.unseen, self.name), self.columns, self.labels)


def drawn(classes: np.ndarray, count: int, seed: int) -> list[int]:
    """Places of `count` rows: the first of each class in a seeded order, then the others in that order."""
    # one order for all counts: fewer rows are among more, so that a curve grows by rows that were added
    order = np.random.default_rng(seed).permutation(len(classes))
    seen: set[int] = set()
    firsts: list[int] = []
    others: list[int] = []
    for place in order:
        # the first of each class in front, so that a few rows know all classes
        (others if classes[place] in seen else firsts).append(int(place))
        seen.add(int(classes[place]))
    return [*firsts, *others][:count]


def ladder_rows(data: DataArguments, models: Sequence[str] = ()) -> LadderRows:
    """Rows of a classification, checked as `train` checks them.

    Args:
        models: those that ways begin with; rows that one of them was trained on are measured by none.

    Raises:
        InputError: rows that no class can be learnt from, or none that are left to learn from.
    """
    data = replace(data, max_eval_rows=data.max_eval_rows or UNSEEN)
    # before the sample is drawn, so that it has its full size
    read = _unseen_by(
        [one for one in models if not read_texts_alone(Path(one).expanduser())], load_rows(data)
    )
    found = find_task("classification").examine(read, data)
    assert found.rows.train is not None and found.rows.eval is not None and found.labels is not None
    unseen = found.rows.eval
    # but for case and white space: near copies would be known by heart
    texts = {" ".join(str(text).lower().split()) for text in unseen[found.columns.text]}
    kept = [
        place
        for place, text in enumerate(found.rows.train[found.columns.text])
        if " ".join(str(text).lower().split()) not in texts
    ]
    if len(kept) < len(found.rows.train):
        logger.warning(
            "%d training rows have the text of an unseen row and are left out",
            len(found.rows.train) - len(kept),
        )
    # the unseen rows stay, for all ways are measured on them
    pool = found.rows.train.select(kept)
    if len(pool) < 4:
        raise InputError(
            f"{data.name} has {len(pool)} rows to learn from; wanted 4 or more. Set --train_split"
        )
    classes, gold = (np.array(class_ids(part, found.columns.label, found.labels)) for part in (pool, unseen))
    return LadderRows(data.name, pool, unseen, found.columns, found.labels, classes, gold)


def _unseen_by(models: Sequence[str], rows: Rows) -> Rows:
    if rows.eval is None:
        return rows
    kept = tuple(replace(one, rows=rows_to_ask(one.rows, models)[0]) for one in rows.eval_parts)
    # of several data sets `eval` is the first
    first = kept[0].rows if kept else rows_to_ask(rows.eval, models)[0]
    return replace(rows, eval=first, eval_parts=kept)


def settled_counts(asked: Sequence[int] | None, rows: int, most: int | None = None) -> list[int]:
    """Numbers of labels, ascending: those asked for, or 16, 64, 256, ... and all rows up to 4096.

    Raises:
        InputError: more labels than there are rows.
    """
    if asked is not None:
        if max(asked) > rows:
            raise InputError(
                f"--label_counts {max(asked)} and there are {rows} rows to learn from; set it lower"
            )
        return sorted(set(asked))
    most = min(rows, most or COUNTS[-1])
    # all rows in the end; a count just below them would say the same
    return [count for count in COUNTS if count < 0.8 * most] + [most]
