"""Graded answers → token ids, the places that are read, and a target for each. Knows rows and tokenizers;
knows no model.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset

from finetune.alignment.graded_options import AttributeArguments, GradedOptions, ProcessArguments
from finetune.alignment.preferences import pair_ids
from finetune.data.graded import lay_out_graded, lay_out_steps
from finetune.data.laying import laid_out
from finetune.data.places import places_of
from finetune.data.sources import DataArguments, load_rows, sample
from finetune.errors import InputError

logger = logging.getLogger(__name__)

Marks = dict[str, Any]  # input_ids [tokens], places [read], targets [read, heads], NaN where there is none


def read_graded(
    data: DataArguments, training: AttributeArguments | ProcessArguments, processor: Any
) -> tuple[Dataset, Dataset, list[tuple[float, float]]]:
    """Training and held-out marks, and mean and deviation of each head's training grades, in which targets of
    attributes are counted; of steps 0 and 1.

    Raises:
        InputError: rows that can't teach anything, grades that are all alike.
    """
    steps = isinstance(training, ProcessArguments)
    names = [] if steps else list(training.attributes or [])
    rows, _ = laid_out(
        load_rows(data), data, lay_out_steps if steps else partial(lay_out_graded, names=names)
    )
    assert rows.train is not None and rows.eval is not None
    train = sample(rows.train, data.max_train_rows, data.sample_seed)
    held_out = sample(rows.eval, data.max_eval_rows, data.sample_seed)
    mark: Callable[[dict[str, Any]], Marks]
    if steps:
        verdicts = {said for row in train["labels"][:] for said in row}
        if len(verdicts) < 2:
            raise InputError(
                f"All steps of the training rows have the verdict {verdicts or 'none'}; nothing could be "
                "learnt. Set --dataset_name or --label_column"
            )
        scale = [(0.0, 1.0)]
        separator, limit = training.step_separator, int(training.max_length or 0)
        mark = partial(mark_steps, processor=processor, separator=separator, limit=limit)
    else:
        scale = [grade_spread(name, train[name][:]) for name in names]
        mark = partial(mark_whole, processor=processor, scale=dict(zip(names, scale, strict=True)),
                       limit=int(training.max_length or 0))  # fmt: skip
    parts = [
        _marked(part, mark, training, where) for part, where in ((train, "training"), (held_out, "held-out"))
    ]
    return parts[0], parts[1], scale


def grade_spread(name: str, grades: Sequence[float | None]) -> tuple[float, float]:
    """Mean and deviation of a column's grades, those that are missing aside.

    Raises:
        InputError: there are none, or they are all alike.
    """
    known = [grade for grade in grades if grade is not None]
    deviation = float(np.std(known)) if known else 0.0
    if not deviation:
        raise InputError(
            f"The training rows' '{name}' says nothing ({len(known)} numbers, no two of them different); "
            "leave it out of --attributes"
        )
    return float(np.mean(known)), deviation


def mark_whole(
    row: dict[str, Any], processor: Any, scale: dict[str, tuple[float, float]], limit: int
) -> Marks:
    """An answer read at its last token, a target a head in deviations from the training grades' mean."""
    ids = pair_ids(processor, row["prompt"], row["completion"], row.get("tools"))
    said = row["completion"] if isinstance(row["completion"], str) else row["completion"][-1]["content"]
    # From the end, where the score is read, as a reward cuts what it is asked.
    kept = ids[-limit:] if limit else ids
    targets = [
        math.nan if row[name] is None else (row[name] - mean) / deviation
        for name, (mean, deviation) in scale.items()
    ]
    known = bool((said or "").strip()) and not all(map(math.isnan, targets))
    return {
        "input_ids": kept, "places": [len(kept) - 1] if known else [], "targets": [targets] if known else [],
        "cut": len(ids) > len(kept),
    }  # fmt: skip


def mark_steps(row: dict[str, Any], processor: Any, separator: str, limit: int) -> Marks:
    """Each step read at its last token; steps behind `limit` tokens aren't, nor is a step without text."""
    ids, places = step_places(processor, row["prompt"], row["completions"], separator)
    told = zip(places, row["completions"], row["labels"], strict=True)
    seen = [(place, float(good)) for place, step, good in told
            if step.strip() and (not limit or place < limit)]  # fmt: skip
    return {
        "input_ids": ids[:limit] if limit else ids, "places": [place for place, _ in seen],
        "targets": [[good] for _, good in seen], "cut": bool(limit) and len(ids) > limit,
    }  # fmt: skip


def step_places(
    processor: Any, prompt: str, steps: Sequence[str], separator: str
) -> tuple[list[int], list[int]]:
    """Ids of a question with the steps of an answer, a separator before each, and the place of each step's
    last token.

    All as one text: tokenised apart, a step would begin with other tokens than it is written with.
    """
    text, ends = prompt, []
    for step in steps:
        text += separator + step
        ends.append(len(text))
    found = processor(text, return_offsets_mapping=True)
    # Special tokens stand for no text, and might stand behind it.
    real = [place for place, (start, stop) in enumerate(found["offset_mapping"]) if stop > start]
    starts = [found["offset_mapping"][place][0] for place in real]
    # The last token that begins before the step ends; it may hold the separator behind it, too.
    return found["input_ids"], [real[max(0, bisect_left(starts, end) - 1)] for end in ends]


def _marked(
    rows: Dataset, mark: Callable[[dict[str, Any]], Marks], training: GradedOptions, where: str
) -> Dataset:
    found = [mark(row) for row in rows]
    cut = sum(one.pop("cut") for one in found)
    if cut:
        logger.warning("%d of %d %s answers exceed --max_length and are cut", cut, len(found), where)
    bad = [index for index, one in enumerate(found) if not one["places"]]
    if bad:
        said = f"{len(bad)} of {len(found)} {where} rows have no text or no grade within --max_length"
        told = f"{said} ({places_of(rows, bad)})"
        if not training.drop_faulty_rows:
            raise InputError(f"{told}. Mend them, or set --drop_faulty_rows to leave them out")
        if len(bad) == len(found):
            raise InputError(f"{told}, and none is left; set --dataset_name or --max_length")
        logger.warning("%s and are left out", told)
    return Dataset.from_list([one for one in found if one["places"]])
