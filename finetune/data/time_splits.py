"""Where the rows of one series come from → training and evaluation part, in order of time. Knows files and
splits; knows no model.

A part to evaluate on begins with what came before it: a forecast of its first row is made from rows of the
part before.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace

from datasets import Dataset, DatasetDict, concatenate_datasets

from finetune.data.folders import SPLITS, default_eval, sliced, split_of
from finetune.data.series import even_step, find_time, read_times
from finetune.data.sources import DataArguments, Rows, load_splits
from finetune.errors import InputError

logger = logging.getLogger(__name__)

WHOLE = "all"  # the split to assess that is all rows; those that were trained on are left out
SHARES = (0.7, 0.1)  # of the rows, for training and validation; the rest is the test


def load_series(
    data: DataArguments,
    train: bool = True,
    *,
    split_rows: str | None = None,
    time_column: str | None = None,
    context: int = 0,
) -> Rows:
    """The parts of a series that a run needs: training rows, and evaluation rows with `context` rows before
    them; `train=False` reads the latter alone, of which the split `all` is the whole series.

    Files that are splits already are taken as they are, unless `split_rows` cuts the whole anew.

    Raises:
        InputError: several data sets, no such split, a part that can't be cut, or splits that overlap in
            time.
    """
    if len(data.dataset_name or ()) > 1 or data.eval_dataset_name:
        raise InputError(
            f"Several data sets ({data.name}); a forecast is learnt from one series. Set --dataset_name to "
            "one"
        )
    splits = load_splits(data)
    if not train and data.eval_split == WHOLE:
        return Rows(None, _in_one(splits, time_column, data.name), data.name)
    base, _, bounds = str(data.eval_split).partition("[")
    by_hand = bool(bounds) and base in splits  # slices of the files as they are
    if split_rows is not None:
        splits = cut(_in_one(splits, time_column, data.name), split_rows, data.name)
    elif len(splits) == 1 and not by_hand:
        (whole,) = splits.values()
        # never a random tenth: rows of the future would stand in training
        splits = cut(whole, ",".join(map(str, SHARES)), data.name)
    evaluated = data.eval_split or default_eval(splits, None)
    if evaluated is None:
        raise InputError(
            f"{data.name} has no split to evaluate on; it has {', '.join(splits)}. Set --eval_split, or "
            "--split_rows to cut it"
        )
    held = split_of(splits, evaluated, "--eval_split")
    # from the rows ahead, not from the evaluation's own: all of these are scored
    before = _before(splits, evaluated, time_column, data.name)
    if before is not None and context:
        held = concatenate_datasets([before.select(range(max(0, len(before) - context), len(before))), held])
    if not train:
        return Rows(None, held, data.name)
    return Rows(split_of(splits, data.train_split, "--train_split"), held, data.name)


def cut(whole: Dataset, wanted: str, name: str) -> DatasetDict:
    """The rows in their order as train, validation and test.

    Args:
        wanted: rows of the three as 8640,2880,2880, or of the first two, or their shares as 0.7,0.1; the rest
            is the test, or is left out where the test's rows are given.

    Raises:
        InputError: no such numbers, or a part without rows.
    """
    parts = [part.strip() for part in wanted.split(",")]
    if not 2 <= len(parts) <= 3 or not all(re.fullmatch(r"\d+(\.\d+)?", part) for part in parts):
        raise InputError(
            f"--split_rows '{wanted}' is no two or three numbers; wanted the rows of training, validation "
            "and test as 8640,2880,2880, or shares as 0.7,0.1"
        )
    sizes = [float(part) for part in parts]
    # shares, not rows
    if max(sizes) < 1:
        sizes = [size * len(whole) for size in sizes]
    rest = len(whole) - int(sizes[0]) - int(sizes[1])
    counts = [int(sizes[0]), int(sizes[1]), min(rest, int(sizes[2])) if len(sizes) > 2 else rest]
    if min(counts[:2]) < 1 or rest < 0:
        raise InputError(
            f"--split_rows {wanted} of {name}'s {len(whole)} rows leaves a part without rows; wanted some "
            "for training and some for validation"
        )
    edges = [0, counts[0], counts[0] + counts[1], sum(counts)]
    found = {
        split: whole.select(range(low, high))
        for split, low, high in zip(SPLITS, edges, edges[1:], strict=False)
        if high > low
    }
    said = ", ".join(f"{split} {len(part)}" for split, part in found.items())
    left = len(whole) - edges[-1]
    short = int(sizes[2]) - counts[2] if len(sizes) > 2 else 0
    beside = f"; the last {left} are left out" if left else ""
    beside += f"; the test has {short} rows fewer than were asked for" if short > 0 else ""
    logger.warning("%s in order of time: %s rows%s", name, said, beside)
    return DatasetDict(found)


def _in_one(splits: DatasetDict, time_column: str | None, name: str) -> Dataset:
    """All splits one after another, by the time of their first rows."""
    parts = list(splits.values())
    if len(parts) == 1:
        return parts[0]
    time = find_time(parts[0], time_column, name)
    if time is None:
        raise InputError(
            f"{name} has {len(parts)} files and no column of times to put them in order; set --time_column, "
            "or leave --split_rows out"
        )
    # by time, since names sort as test, train, validation
    parts.sort(key=lambda part: read_times(part.select([0]), time, name)[0])
    return concatenate_datasets(parts)


def _before(splits: DatasetDict, wanted: str, time_column: str | None, name: str) -> Dataset | None:
    """The rows of the part that ends where the evaluation part begins; None where none does."""
    base, _, bounds = wanted.partition("[")
    if bounds:  # the same split goes on before the slice
        first = sliced(bounds, len(splits[base]), "--eval_split").start
        return splits[base].select(range(first)) if first else None
    order = [split for split in SPLITS if split in splits]
    if base not in order or order.index(base) == 0:
        return None
    # all parts ahead: a short validation part may hold less than the context
    whole = concatenate_datasets([splits[split] for split in order[: order.index(base)]])
    time = find_time(whole, time_column, name)
    if time is None:
        return whole
    # two rows tell the step; reading all times again would take long
    try:
        ends = read_times(whole.select(range(max(0, len(whole) - 2), len(whole))), time, name)
    except InputError:
        # all that can't be read are counted, and the first one named
        read_times(whole, time, name)
        raise
    begins = read_times(splits[base].select([0]), time, name)[0]
    if begins <= ends[-1]:
        # one file out of order is that, and no two files that overlap
        even_step(read_times(whole, time, name), whole, time)
        raise InputError(
            f"The {base} rows of {name} begin at {begins.astype('datetime64[s]')}, before the rows ahead of "
            f"them end at {ends[-1].astype('datetime64[s]')}: a forecast would be scored on what was "
            "learnt. Mend the files, or cut them anew by --split_rows"
        )
    follows = len(ends) > 1 and abs((begins - ends[1]) / (ends[1] - ends[0]) - 1) < 0.15  # months differ
    return whole if follows else None


def limited(rows: Rows, data: DataArguments, context: int) -> Rows:
    """The last `max_train_rows` rows of the training part, and the first `max_eval_rows` of the evaluation
    part behind its context: a sample of a series is a stretch of it.
    """
    train, held = rows.train, rows.eval
    assert held is not None
    if train is not None and data.max_train_rows is not None:
        train = train.select(range(max(0, len(train) - data.max_train_rows), len(train)))
    if data.max_eval_rows is not None:
        held = held.select(range(min(len(held), context + data.max_eval_rows)))
    return replace(rows, train=train, eval=held)
