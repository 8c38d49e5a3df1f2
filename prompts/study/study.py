"""Templates × verbalizers × examples × seeds × models on one data set → scores, and which to take. Knows
rows; knows no files.

The prompt is chosen on training rows; what it is worth is said on rows that chose nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune.errors import InputError
from finetune.metrics import classification
from prompts.study import ensemble
from prompts.study.asking import CALIBRATIONS, Answers
from prompts.study.rows import Row
from prompts.templates.entries import Entry
from prompts.templates.reading import read_entry
from prompts.templates.prompt import Prompt, split_name

logger = logging.getLogger(__name__)


def named_prompts(
    names: Sequence[str], labels: Sequence[str] | None = None, values: Sequence[Any] | None = None
) -> tuple[Entry, list[Prompt]]:
    """The entry that all names are of, and its prompts: every template with every verbalizer where none is
    named.

    Args:
        values: what stands in the data for each label, which promptsource's answers are made of.

    Raises:
        InputError: names of several entries, or nothing there under a name.
    """
    files = {split_name(name)[0] for name in names}
    if len(files) != 1:
        raise InputError(
            f"Prompts of several entries ({', '.join(sorted(files))}); wanted one task a run. Set --prompts"
        )
    entry = read_entry(files.pop())
    found: dict[str, Prompt] = {}
    for name in names:
        _, template, verbalizer = split_name(name)
        for t in [template] if template else entry.templates:
            own = [t] if entry.paired else list(entry.words)
            for v in [verbalizer] if verbalizer else own:
                prompt = Prompt(entry.template(t), entry.verbalizer(v, labels, values))
                found.setdefault(prompt.name, prompt)
    return entry, list(found.values())


def for_family(prompts: list[Prompt], family: str, row: Row) -> list[Prompt]:
    """The prompts that a kind of model can be asked: text after the slot is out of a causal model's sight."""
    fit = [p for p in prompts if family != "causal" or not p.template.render(row.columns).after.strip()]
    left = sorted({p.template.name for p in prompts} - {p.template.name for p in fit})
    if left and fit:
        logger.warning("Left out for a causal model, as text follows their slot: %s", ", ".join(left))
    if not fit:
        raise InputError(
            f"{', '.join(left)}: text follows the slot, which a causal model can't see; wanted "
            f"{{{{ mask }}}} at the end. "
            "Set --prompts, or --models to a masked model"
        )
    return fit


def value_of(scores: np.ndarray, gold: np.ndarray, labels: Sequence[str], metric: str) -> float:
    """One figure of scores [rows, labels]: accuracy, macro_f1, micro_f1 or matthews."""
    figures = classification.class_figures(scores, gold, labels)
    if metric not in figures:
        raise InputError(
            f"Unknown metric '{metric}'; wanted one of: {', '.join(figures)}. Mend the entry's `metric`"
        )
    return figures[metric]


def choose_prompt(
    found: list[Answers], gold: np.ndarray, labels: Sequence[str], metric: str
) -> tuple[Answers, str]:
    """The cell and calibration with the best figure on the training rows; the first of equal ones."""
    options = [(answers, how) for answers in found for how in CALIBRATIONS]
    return max(
        options, key=lambda option: value_of(option[0].scores(option[1], "training"), gold, labels, metric)
    )


def ensembles(found: list[Answers], gold_training: np.ndarray | None) -> dict[str, np.ndarray]:
    """Scores on unseen rows of all prompts together: mean, vote, weighted by training accuracy; raw and
    batch-calibrated."""
    made = {}
    for how in ("raw", "batch"):
        stack = np.stack([answers.scores(how) for answers in found])
        made[f"mean, {how}"], made[f"vote, {how}"] = ensemble.mean(stack), ensemble.vote(stack)
        if gold_training is not None and len(gold_training):
            right = [(answers.scores(how, "training").argmax(1) == gold_training).mean() for answers in found]
            made[f"weighted, {how}"] = ensemble.weighted(stack, np.array(right) + 1e-9)
    return made
