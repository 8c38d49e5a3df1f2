"""From options to rows by what they are for, and to all prompts together. Knows rows and arrays; asks no
model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from datasets import Dataset

from finetune.data.folders import default_eval
from finetune.data.labelled import named_classes
from finetune.data.sources import ColumnArguments, Rows, load_rows, read_splits, sample
from finetune.errors import InputError
from prompts.study import ensemble
from prompts.study.accounted import account_for
from prompts.study.asking import Notes
from prompts.study.findings import Population
from prompts.study.options import AnswerArguments, StudyArguments, check_numbers, study_columns
from prompts.study.parts import Parts, split_rows
from prompts.study.prompts import named_entry, named_prompts, with_choices
from prompts.study.rows import StudyRow, StudyTable, read_rows, renamed, source_of
from prompts.study.trained import rows_to_ask
from prompts.study.tune import TuneArguments
from prompts.study.weighed import Answers
from prompts.templates.entries import Entry
from prompts.templates.prompt import Prompt

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """What a search for instructions came to: the hand-written template it began with, the one it found, how
    many it tried."""

    base: str
    found: str | None
    tried: int


@dataclass(frozen=True)
class Loaded:
    """What a study asks: an entry, its prompts that weigh labels, rows by what they are for.

    Attributes:
        notes: prompts that can't be made of this data.
    """

    entry: Entry
    prompts: list[Prompt]
    parts: Parts
    labels: tuple[str, ...]
    population: Population
    notes: Notes = field(default_factory=Notes)
    trial: Trial | None = None


POOL = 5000  # training rows that are looked at
UNREAD = (
    "text_column",
    "text_pair_column",
    "ignore_columns",
    "drop_empty_rows",
    "near_labels",
    "minus_one",
)


def check_read(data: ColumnArguments) -> None:
    """Refuse options that nothing here reads.

    Raises:
        InputError: one is set.
    """
    idle = next((name for name in UNREAD if vars(data).get(name)), None)
    if idle:
        raise InputError(
            f"--{idle} isn't read here: templates name their columns. Set --columns text=COLUMN instead"
        )
    # one population a run: a suite parts several evaluation sets before
    if len(data.dataset_name) > 1:
        raise InputError(
            "Prompts are chosen on one data set a run; name one by --dataset_name, those to measure on by "
            "--eval_dataset_name, or several runs in a --suite"
        )


def _named(rows: Rows, column: str, data: ColumnArguments) -> Rows:
    """The rows with names for their classes 0, 1, ..., where --class_names gives them."""
    train, measured = (
        part
        if part is None or column not in part.column_names
        else named_classes(part, column, data.class_names)
        for part in (rows.train, rows.eval)
    )
    return replace(rows, train=train, eval=measured)


def read_parts(
    study: StudyArguments,
    data: ColumnArguments,
    tuning: TuneArguments,
    answers: AnswerArguments | None = None,
) -> Loaded:
    """Rows by what they are for, and the prompts that weigh labels, for labels that the data may name.

    Raises:
        InputError: nothing there under a name, columns or labels that don't fit, too few rows, an option that
            isn't read.
    """
    check_numbers(study)
    check_read(data)
    entry = named_entry(study.prompts)
    if not entry.words and (study.search or study.soft_rows or tuning.tune):
        raise InputError(
            f"'{entry.name}' has texts written or choices weighed, no labels: leave out --search, "
            "--soft_rows and --tune"
        )
    # training rows are read only where something needs them
    needs = bool(
        max(study.shots) or _chooses(entry, study, data) or study.search or study.soft_rows or tuning.tune
    )
    # a check reads the measured rows alone
    rows = load_rows(data, train=needs and not study.check)
    assert rows.eval is not None
    given = study_columns((answers or AnswerArguments()).columns)
    measured = (data.eval_dataset_name or [data.name])[0]
    source = renamed(source_of(entry, measured), given, rows.eval)
    label = data.label_column or given.get("label")
    column = label or source.columns.get("label", "label")
    rows = _named(rows, column, data)
    assert rows.eval is not None
    splits = [split for split in (rows.eval, rows.train) if split is not None]
    # before the sample is drawn, which would be smaller without them
    keep = bool(answers and answers.keep_trained_rows)
    kept, trained = rows_to_ask(rows.eval, study.models, keep)
    # the column may be named otherwise in the data
    even = data.balance_eval_rows and column in kept.column_names
    asked = sample(kept, data.max_eval_rows, data.sample_seed, column if even else None)
    account_for(asked, entry, source, label, names=study.prompts, where=f"{measured}, rows to measure on")
    unseen = read_rows(asked, entry, source, label, splits)
    notes = Notes()
    _note_strange(notes, entry, unseen)
    entry = with_choices(entry, unseen.labels, unseen.values, notes)
    prompts = named_prompts(entry, study.prompts, unseen.labels, unseen.values, notes) if entry.words else []
    how = "drawn evenly over the classes" if even and len(asked) < len(kept) else "drawn plainly"
    population = Population(
        measured,
        data.eval_split or "its rows to evaluate on",
        len(rows.eval),
        len(asked),
        how,
        questions=len(unseen.rows) + sum(map(len, unseen.strange.values())),
        **{"trained_on" if keep else "left_out": trained},
    )
    # without training rows: a check asks nothing
    if study.check:
        return Loaded(
            entry, prompts, Parts(unseen.rows, [], [], [], [], []), unseen.labels, population, notes
        )
    # the data set to choose on may have columns of its own
    other = source if rows.train is None else renamed(source_of(entry, data.name), given, rows.train)
    training = _training(rows.train, data, column, lambda part: read_rows(part, entry, other, label, splits))
    if training is not None:
        _note_strange(notes, entry, training)
    if training is not None and training.labels != unseen.labels:
        raise InputError(
            f"{data.name} tells {', '.join(training.labels)} apart, {measured} {', '.join(unseen.labels)}; "
            "set --eval_dataset_name to one of the same labels, or --choose_rows 0"
        )
    parts = split_rows(training, unseen, study, tuning.tune_rows if tuning.tune else 0, bool(entry.words))
    return Loaded(entry, prompts, parts, unseen.labels, population, notes)


def _note_strange(notes: Notes, entry: Entry, table: StudyTable) -> None:
    for name, places in table.strange.items():
        for place in places:
            notes.trouble(
                "", entry.name, f"left out: the label '{name}' is none of {', '.join(table.labels)}", place
            )


def _training(train: Dataset | None, data: ColumnArguments, column: str, read: object) -> StudyTable | None:
    if train is None:
        return None
    # evenly over the classes where there are any
    by_class = column if column in train.column_names else None
    # type: ignore[operator]
    return read(sample(train, data.max_train_rows or POOL, data.sample_seed, by_class))


def _chooses(entry: Entry, study: StudyArguments, data: ColumnArguments) -> bool:
    """Whether training rows are wanted to choose on: where the data has them apart from those measured,
    unless asked."""
    if study.choose_rows is not None:
        # 0 chooses none
        return study.choose_rows > 0
    if entry.words:
        return True
    if data.eval_dataset_name:
        return True
    splits = read_splits(data.name, data.dataset_config, data.data_files)
    # a slice of a split is of that split
    measured = str(data.eval_split or default_eval(splits, None)).partition("[")[0]
    # rows apart from those measured, or the choice would know them
    return (
        measured in splits
        and measured != data.train_split.partition("[")[0]
        and data.train_split.partition("[")[0] in splits
    )


def together(found: Sequence[Answers], parts: Mapping[str, Sequence[StudyRow]]) -> dict[str, np.ndarray]:
    """`ensembles` of one model's prompts; none where one of them, or a row of one, has no answer."""
    # prompts are combined row by row, and a combination of some would hide the others
    whole = all(
        len(one.rows()) == len(parts["unseen"]) and not np.isnan(one.scores("raw")).any() for one in found
    )
    return ensembles(found, parts["training"]) if len(found) > 1 and whole else {}


def ensembles(found: Sequence[Answers], training: Sequence[StudyRow]) -> dict[str, np.ndarray]:
    """Scores on unseen rows of all prompts together: mean, vote, weighted by training accuracy; raw and
    batch-calibrated."""
    made = {}
    for how in ("raw", "batch"):
        stack = np.stack([answers.scores(how) for answers in found])
        made[f"mean, {how}"], made[f"vote, {how}"] = ensemble.mean(stack), ensemble.vote(stack)
        # none to weigh by
        if len(training):
            right = [_accuracy(answers, how, training) for answers in found]
            # all wrong is no reason for an error: the weights are then alike
            made[f"weighted, {how}"] = ensemble.weighted_mean(stack, np.array(right) + 1e-9)
    return made


def _accuracy(answers: Answers, how: str, training: Sequence[StudyRow]) -> float:
    places = answers.rows("training")
    gold = np.array([training[i].label for i in places])
    return float((answers.scores(how, "training").argmax(1) == gold).mean()) if len(places) else 0.0
