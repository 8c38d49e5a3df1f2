"""Rows of a data set by what they are for in a study. Knows rows; knows no prompts and no models."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from finetune.errors import InputError
from prompts.study.options import StudyArguments
from prompts.study.rows import StudyRow, StudyTable

logger = logging.getLogger(__name__)
EXAMPLES = 1000  # rows that examples are drawn from


@dataclass(frozen=True)
class Parts:
    """Rows by what they are for: the study is measured on `unseen`, the rest is of the training split."""

    unseen: list[StudyRow]
    training: list[StudyRow]
    examples: list[StudyRow]
    search: list[StudyRow]
    tuning: list[StudyRow]
    soft: list[StudyRow]


WEIGHED, WRITTEN = 200, 50  # rows to choose on, where none are named


def split_rows(
    training: StudyTable | None,
    unseen: StudyTable,
    study: StudyArguments,
    tuning: int = 0,
    labelled: bool = True,
) -> Parts:
    """Training rows in disjoint parts, none of them a row of `unseen`.

    Args:
        labelled: rows without a label are left out, with a count.

    Raises:
        InputError: no labelled rows, or too few for what was asked.
    """
    # texts have no label to be without
    kept = [row for row in unseen.rows if row.label >= 0 or not labelled]
    if len(kept) < len(unseen.rows):
        logger.warning(
            "%d of %d rows have no label and are left out", len(unseen.rows) - len(kept), len(unseen.rows)
        )
    if not kept:
        raise InputError("0 rows with a label to measure on. Set --eval_split or --label_column")
    # by identity: a training row that is measured too would be known
    known = {row.identity for row in kept}
    pool = (
        [row for row in training.rows if row.identity not in known and (row.label >= 0 or not labelled)]
        if training
        else []
    )
    choose = study.choose_rows
    if choose is None:
        # what the other parts don't need
        room = max(0, len(pool) - max(study.shots) - tuning - study.soft_rows)
        usual = WEIGHED if labelled else WRITTEN
        # with none at all nothing could be chosen, which is refused below
        choose = min(usual, room) if room or not labelled else usual
        if 0 < choose < usual:
            logger.warning("%d rows to choose on, as there are no more (--choose_rows)", choose)
    wanted = (choose, study.search_rows if study.search else 0, tuning, study.soft_rows)
    if len(pool) < sum(wanted) + max(study.shots):
        raise InputError(
            f"{len(pool)} training rows for {wanted[0]} to choose on, {wanted[1]} to search on, {tuning} "
            "to tune on and "
            f"{max(study.shots)} examples. Set --choose_rows, --search_rows, --tune_rows or --shots"
        )
    # one after the other from the front: none is in two parts
    first, second, third, fourth = np.cumsum(wanted)
    examples = pool[fourth : fourth + EXAMPLES]
    return Parts(kept, pool[:first], examples, pool[first:second], pool[second:third], pool[third:fourth])
