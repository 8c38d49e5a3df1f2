"""Where rows come from: hub names, local files, or a built-in corpus → train and evaluation splits.

Knows files and splits; knows no tokenizer, no model and no task.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict

from finetune.data.corpora import CORPORA
from finetune.data.files import DOCUMENTS, Reading, endings
from finetune.data.folders import (
    default_eval,
    files_of,
    groups_apart,
    kept_aside,
    numbered,
    read_folder,
    split_of,
)
from finetune.data.hub import read_hub
from finetune.data.licences import LicenceArguments, with_licences
from finetune.data.media_folders import are_strays, read_media_folder
from finetune.data.mixing import Part, weighted
from finetune.data.places import columns_of
from finetune.errors import InputError

logger = logging.getLogger(__name__)


@dataclass
class SourceArguments:
    """Which data sets, and how their files are read."""

    dataset_name: list[str] = field(
        default_factory=lambda: ["reviews"],
        metadata={
            "help": "Hub names, local folders or files (parquet, csv, tsv, json, jsonl, txt, conll, xlsx; "
            "also .gz, .zst; folders of pictures or sounds by class), or a built-in corpus (reviews). "
            "Several are mixed; NAME=0.3 takes 0.3 of NAME's rows, NAME=2 each row twice."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub data set."})
    data_files: list[str] | None = field(
        default=None,
        metadata={"help": "Files inside dataset_name, as split=path pairs: train=a.parquet test=b.parquet."},
    )
    eval_dataset_name: list[str] | None = field(
        default=None,
        metadata={
            "help": "Data sets to evaluate on, with figures for each (default: dataset_name's own rows)."
        },
    )
    train_split: str = field(
        default="train", metadata={"help": "Split to train on; a slice as train[:50%] is taken too."}
    )
    eval_split: str | None = field(
        default=None,
        metadata={
            "help": "Split to evaluate on (default: validation, else test, else a tenth of the training "
            "rows, kept aside with the classes in proportion)."
        },
    )
    hold_out: str | None = field(
        default=None,
        metadata={
            "help": "Evaluate on whole groups of the training split that training never sees: speaker=lucas, "
            "or speaker for about a tenth of that column's values."
        },
    )
    documents: str | None = field(
        default=None,
        metadata={
            "help": "What a row of a .txt file is: lines, paragraphs, files (default: lines; files for a "
            "folder of books)."
        },
    )
    encoding: str | None = field(
        default=None,
        metadata={"help": "Encoding of text files (default: told from their bytes, UTF-8 first)."},
    )

    def __post_init__(self) -> None:
        # one name may be given as such, in Python and in a recipe
        if isinstance(self.dataset_name, (str, Path)):
            self.dataset_name = [str(self.dataset_name)]
        if isinstance(self.eval_dataset_name, (str, Path)):
            self.eval_dataset_name = [str(self.eval_dataset_name)]
        if self.dataset_name == []:
            raise InputError("No data set; set --dataset_name")
        if self.hold_out and (self.eval_split or self.eval_dataset_name):
            raise InputError(
                "--hold_out says what to evaluate on, and so does "
                f"--{'eval_split' if self.eval_split else 'eval_dataset_name'}; leave one out"
            )
        if self.documents is not None and self.documents not in DOCUMENTS:
            raise InputError(f"Got --documents {self.documents}; wanted one of: {', '.join(DOCUMENTS)}")
        if self.data_files and len(self.dataset_name or ()) > 1:
            raise InputError(
                "--data_files names files of one data set, and --dataset_name names several; leave one out"
            )

    @property
    def name(self) -> str:
        """All data sets, as a message names them."""
        return ", ".join(self.dataset_name or ())


@dataclass
class ColumnArguments(LicenceArguments, SourceArguments):
    """Which rows, and which of their columns."""

    text_option = "--text_column"  # what messages call it; no option itself
    text_column: str | None = field(
        default=None,
        metadata={"help": "Column with the text, picture or sound (default: found by its usual names)."},
    )
    text_pair_column: str | None = field(
        default=None, metadata={"help": "Column with the second text, for tasks on pairs."}
    )
    label_column: str | None = field(default=None, metadata={"help": "Column with the label or target."})
    ignore_columns: list[str] | None = field(
        default=None,
        metadata={"help": "Columns with text that are not wanted; else a run stops at a text nothing reads."},
    )
    max_train_rows: int | None = field(
        default=None,
        metadata={
            "help": "Train on this many rows: a seeded sample, balanced over the classes where there are any."
        },
    )
    max_eval_rows: int | None = field(
        default=None,
        metadata={"help": "Evaluate on this many rows: a seeded sample, as the classes fall."},
    )
    balance_eval_rows: bool = field(
        default=False,
        metadata={"help": "Draw max_eval_rows evenly over the classes: figures of another population."},
    )
    class_names: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the classes 0, 1, ... where the rows hold numbers or 0/1 vectors."},
    )
    near_labels: str | None = field(
        default=None,
        metadata={
            "help": "Labels that differ by blanks or case alone: merge them, or keep them apart (default: "
            "stop and name them)."
        },
    )
    minus_one: str | None = field(
        default=None,
        metadata={
            "help": "Label -1, or -: drop its rows, or keep it (default: drop beside 3 classes, else ask)."
        },
    )
    drop_empty_rows: bool = field(
        default=False, metadata={"help": "Leave rows without text or label out instead of stopping."}
    )
    sample_seed: int = field(default=0, metadata={"help": "Seed of the samples and of a split kept aside."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.near_labels not in (None, "merge", "keep"):
            raise InputError(f"Got --near_labels {self.near_labels}; wanted merge or keep")
        if self.minus_one not in (None, "drop", "keep"):
            raise InputError(f"Got --minus_one {self.minus_one}; wanted drop or keep")


@dataclass
class TextArguments(ColumnArguments):
    """The same, and how much is printed of them."""

    show_rows: int = field(
        default=1, metadata={"help": "Print so many rows as the model sees them, what is learnt marked."}
    )
    check: bool = field(
        default=False, metadata={"help": "Read, check and print the rows, then stop: nothing is trained."}
    )


@dataclass
class DataArguments(TextArguments):
    """The same where rows are more than texts, which can be laid out in several ways."""

    layout: str | None = field(
        default=None,
        metadata={
            "help": "How rows are laid out: a row of LAYOUTS, as alpaca, sharegpt, messages (default: told "
            "from the columns)."
        },
    )
    learn_turns: str | None = field(
        default=None,
        metadata={
            "help": "Answers of a chat to learn: all, or last (default: all, but for those in `history` and "
            "in a prompt)."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learn_turns not in (None, "all", "last"):
            raise InputError(f"Got --learn_turns {self.learn_turns}; wanted all or last")


@dataclass
class FewShotArguments(DataArguments):
    """Rows to train on that may be few of each class, and drawn several times."""

    train_sample_seed: int | None = field(
        default=None, metadata={"help": "Seed of the training sample alone (default: sample_seed)."}
    )
    shots_per_class: int | None = field(
        default=None, metadata={"help": "Train on this many rows of each class: few-shot fine-tuning."}
    )
    seeds: int = field(
        default=1,
        metadata={
            "help": "Runs with other training samples and seeds, each in its folder; figures as mean and "
            "deviation."
        },
    )


@dataclass(frozen=True)
class Rows:
    """Raw rows with their splits settled. `train` or `eval` is None where it was not asked for.

    `train_parts` and `eval_parts` are the data sets that they come from where there are several; `train` and
    `eval` are then the first ones', until `finetune.data.layouts` has brought all into one layout and mixed
    them.
    """

    train: Dataset | None
    eval: Dataset | None
    name: str
    train_parts: tuple[Part, ...] = ()
    eval_parts: tuple[Part, ...] = ()
    where: str = ""  # what messages call rows that are both splits
    silent: bool = False  # of what each column is for, which the first rows of a stream have said

    def changed(self, change: Callable[[Dataset], Dataset]) -> Rows:
        """The same with each split changed; rows that are both splits stay one."""
        train = self.train and change(self.train)  # once: assessments have one object for both splits
        evaluation = train if self.eval is self.train else self.eval and change(self.eval)
        parts = [
            tuple(replace(one, rows=change(one.rows)) for one in some)
            for some in (self.train_parts, self.eval_parts)
        ]
        return Rows(train, evaluation, self.name, *parts, self.where, self.silent)

    def splits(self) -> list[tuple[str, Dataset]]:
        """The splits that are there, with their names."""
        return [
            (name, part) for name, part in (("train", self.train), ("eval", self.eval)) if part is not None
        ]


def load_rows(data: TextArguments, train: bool = True, fallback: str | None = "train") -> Rows:
    """The splits that a run needs; `train=False`: the evaluation split alone, or `fallback` without one.

    Raises:
        InputError: nothing there under that name, an unreadable file, a split that does not exist, 0 rows.
    """
    weights = weighted(data.dataset_name)
    single = [replace(data, dataset_name=[name], eval_dataset_name=None) for name in weights]
    tested = [
        replace(data, dataset_name=[name], eval_dataset_name=None, data_files=None)
        for name in data.eval_dataset_name or ()
    ]
    if not train:  # training rows may be many, or not there at all
        parts = [Part(one.name, _evaluation(one, fallback)) for one in tested or single]
        name = data.name if len(parts) > 1 else parts[0].name
        return Rows(None, parts[0].rows, name, (), tuple(parts) if len(parts) > 1 else ())
    if len(single) == 1 and not tested and set(weights.values()) == {1.0}:  # nothing to mix
        return _both(single[0])
    if tested:  # then no training row is kept aside
        trained = [_training(one) for one in single]
        evaluated = [Part(one.name, _evaluation(one, "train")) for one in tested]
    else:
        both = [_both(one) for one in single]
        trained = [rows.train for rows in both]
        evaluated = [Part(rows.name, rows.eval) for rows in both]
    mixed = tuple(Part(one.name, rows, weights[one.name]) for one, rows in zip(single, trained, strict=True))
    return Rows(mixed[0].rows, evaluated[0].rows, data.name, mixed, tuple(evaluated))


def _training(data: TextArguments) -> Dataset:
    return with_licences(split_of(load_splits(data), data.train_split, "--train_split"), data)


def _both(data: TextArguments) -> Rows:
    """Training and evaluation rows of one data set; a tenth is kept aside where it has none to
    evaluate on.
    """
    splits = load_splits(data)
    training = with_licences(split_of(splits, data.train_split, "--train_split"), data)
    if data.hold_out:
        kept, aside = groups_apart(training, data.hold_out, data.sample_seed)
        return Rows(training.select(kept), training.select(aside), data.name)
    held_out = data.eval_split or default_eval(splits, None)
    if held_out is not None:
        evaluation = with_licences(split_of(splits, held_out, "--eval_split"), data, train=False)
        # one object for both splits would say that nothing is trained
        return Rows(training, evaluation.select(range(len(evaluation))), data.name)
    if len(training) < 2:  # one to evaluate on, and one to train on
        raise InputError(
            f"{data.name} has {len(training)} rows and no evaluation split; name one by --eval_split"
        )
    kept, aside = kept_aside(training, data.label_column, data.sample_seed)
    logger.warning("%s has no evaluation split: %d of its rows are kept aside for it", data.name, len(aside))
    return Rows(training.select(kept), training.select(aside), data.name)


def _reading(data: SourceArguments) -> Reading:
    return Reading(data.documents or "", data.encoding)


def _evaluation(data: TextArguments, fallback: str | None) -> Dataset:
    """The evaluation split alone: beside it may lie more than can be read at once."""
    if data.hold_out:
        rows = _training(data)  # the same column and seed give the same groups as in training
        return rows.select(groups_apart(rows, data.hold_out, data.sample_seed)[1])
    files = {} if data.name in CORPORA else files_of(Path(data.name).expanduser(), data.data_files)
    base = str(data.eval_split or default_eval(files, fallback)).partition("[")[0]  # test[:9]
    splits = read_folder({base: files[base]}, _reading(data)) if base in files else load_splits(data)
    name = data.eval_split or default_eval(splits, fallback)
    if name is None:
        raise InputError(f"{data.name} has no evaluation split; name one by --eval_split")
    return with_licences(split_of(splits, name, "--eval_split"), data, train=False)


def read_splits(name: str, config: str | None = None, data_files: list[str] | None = None) -> DatasetDict:
    """All splits under a name, whatever kind of source it is."""
    found = _splits(name, config, data_files, Reading(""))
    return DatasetDict({split: rows.select_columns(columns_of(rows)) for split, rows in found.items()})


def load_splits(data: SourceArguments) -> DatasetDict:
    """All splits of one data set, with the places of their rows."""
    return _splits(data.name, data.dataset_config, data.data_files, _reading(data))


def _splits(name: str, config: str | None, data_files: list[str] | None, reading: Reading) -> DatasetDict:
    """The same, with places."""
    path = Path(name).expanduser()
    if name in CORPORA and not data_files:  # whatever lies in the current folder
        return numbered(CORPORA[name]())
    files = files_of(path, data_files)
    if files and (data_files or not are_strays(path, files)):
        return read_folder(files, reading)
    if path.is_dir() and ((path / "dataset_dict.json").exists() or (path / "state.json").exists()):
        saved = datasets.load_from_disk(str(path))  # of one split or of several
        return numbered(saved if isinstance(saved, DatasetDict) else DatasetDict({"train": saved}))
    if media := read_media_folder(path):
        return media
    if path.exists():  # never looked for on the hub, where another's may have its name
        raise InputError(
            f"{path} holds no file that can be read; wanted one of: {endings()}, or folders of pictures or "
            "sounds. Set --data_files"
        )
    return numbered(read_hub(name, config))


def sample(rows: Dataset, limit: int | None, seed: int, label: str | None = None) -> Dataset:
    """A seeded, shuffled sample of at most `limit` rows; with a class column, as many of each class as there
    can be.

    Rows come shuffled even without a limit: published files are often sorted by label.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(rows))  # before the limit: fewer rows begin the same order
    if limit is None or limit >= len(rows):
        return rows.select(order)
    if limit < 1:
        raise InputError(f"Asked for {limit} rows; wanted 1 or more. Set --max_train_rows or --max_eval_rows")
    if label is None or not isinstance(rows.features[label], ClassLabel):
        return rows.select(order[:limit])
    classes = np.asarray(rows[label][:])[order]  # shuffled, so that a class's first are a random choice
    # the n-th row of each class comes before the (n+1)-th of any: taking the first `limit` fills the classes
    # evenly
    rank = np.zeros(len(order), dtype=np.int64)
    for value in np.unique(classes):
        members = np.flatnonzero(classes == value)
        rank[members] = np.arange(len(members))
    chosen = np.sort(np.argsort(rank, kind="stable")[:limit])  # back in shuffled order, not by class
    return rows.select(order[chosen])
