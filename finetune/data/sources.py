"""Where rows come from: a hub name, a local folder or file, or a built-in corpus → train and evaluation splits.

Knows files and splits; knows no tokenizer, no model and no task.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict

from finetune.data.corpora import CORPORA
from finetune.errors import InputError

logger = logging.getLogger(__name__)

READERS = {
    "parquet": "parquet",
    "csv": "csv",
    "tsv": "csv",
    "json": "json",
    "jsonl": "json",
    "txt": "text",
    "text": "text",
}
SPLIT_NAMES = {"dev": "validation", "valid": "validation", "val": "validation", "eval": "validation"}


@dataclass
class DataArguments:
    """Which rows, and which of their columns."""

    dataset_name: str = field(
        default="reviews",
        metadata={
            "help": "A hub name, a local folder or file (parquet, csv, tsv, json, jsonl, txt), or a built-in corpus (reviews)."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub data set."})
    data_files: list[str] | None = field(
        default=None,
        metadata={"help": "Files inside dataset_name, as split=path pairs: train=a.parquet test=b.parquet."},
    )
    train_split: str = field(
        default="train", metadata={"help": "Split to train on; a slice as train[:50%] is taken too."}
    )
    eval_split: str | None = field(
        default=None,
        metadata={
            "help": "Split to evaluate on (default: validation, else test, else a tenth of the training rows, kept aside)."
        },
    )
    text_column: str | None = field(
        default=None, metadata={"help": "Column with the text (default: found by its usual names)."}
    )
    text_pair_column: str | None = field(
        default=None, metadata={"help": "Column with the second text, for tasks on pairs."}
    )
    label_column: str | None = field(default=None, metadata={"help": "Column with the label or target."})
    max_train_rows: int | None = field(
        default=None,
        metadata={
            "help": "Train on this many rows: a seeded sample, balanced over the classes where there are any."
        },
    )
    max_eval_rows: int | None = field(default=None, metadata={"help": "The same for evaluation."})
    drop_empty_rows: bool = field(
        default=False, metadata={"help": "Leave rows without text out instead of stopping."}
    )
    sample_seed: int = field(default=0, metadata={"help": "Seed of the samples and of a split kept aside."})


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
            "help": "Runs with other training samples and seeds, each in its folder; figures as mean and deviation."
        },
    )


@dataclass(frozen=True)
class Rows:
    """Raw rows with their splits settled. `train` or `eval` is None where it was not asked for."""

    train: Dataset | None
    eval: Dataset | None
    name: str

    def splits(self) -> list[tuple[str, Dataset]]:
        """The splits that are there, with their names."""
        return [
            (name, part) for name, part in (("train", self.train), ("eval", self.eval)) if part is not None
        ]


def load_rows(data: DataArguments, train: bool = True, fallback: str | None = "train") -> Rows:
    """Read the splits that a run needs; `train=False` reads the evaluation split alone, or `fallback` where there is none.

    Raises:
        InputError: nothing there under that name, an unreadable file, a split that does not exist, 0 rows.
    """
    if not train:
        return Rows(None, _evaluation(data, fallback), data.dataset_name)
    splits = read_splits(data.dataset_name, data.dataset_config, data.data_files)
    training = _split(splits, data.train_split, "--train_split")
    held_out = data.eval_split or _default_eval(splits, None)
    if held_out is not None:
        return Rows(training, _split(splits, held_out, "--eval_split"), data.dataset_name)
    if len(training) < 2:
        raise InputError(
            f"{data.dataset_name} has {len(training)} rows and no evaluation split; name one by --eval_split"
        )
    parts = training.train_test_split(test_size=max(1, len(training) // 10), seed=data.sample_seed)
    logger.warning(
        "%s has no evaluation split: %d of its rows are kept aside for it",
        data.dataset_name,
        len(parts["test"]),
    )
    return Rows(parts["train"], parts["test"], data.dataset_name)


def _evaluation(data: DataArguments, fallback: str | None) -> Dataset:
    """The evaluation split alone: beside it may lie more than can be read at once."""
    files = (
        {}
        if data.dataset_name in CORPORA
        else _files_of(Path(data.dataset_name).expanduser(), data.data_files)
    )
    base = str(data.eval_split or _default_eval(files, fallback)).partition("[")[0]
    splits = (
        _read_files({base: files[base]})
        if base in files
        else read_splits(data.dataset_name, data.dataset_config, data.data_files)
    )
    name = data.eval_split or _default_eval(splits, fallback)
    if name is None:
        raise InputError(f"{data.dataset_name} has no evaluation split; name one by --eval_split")
    return _split(splits, name, "--eval_split")


def read_splits(name: str, config: str | None = None, data_files: list[str] | None = None) -> DatasetDict:
    """All splits under a name, whatever kind of source it is."""
    path = Path(name).expanduser()
    if name in CORPORA and not data_files:
        return CORPORA[name]()
    files = _files_of(path, data_files)
    if files:
        return _read_files(files)
    if path.is_dir() and ((path / "dataset_dict.json").exists() or (path / "state.json").exists()):
        saved = datasets.load_from_disk(str(path))
        return saved if isinstance(saved, DatasetDict) else DatasetDict({"train": saved})
    if path.exists():
        raise InputError(
            f"{path} holds no file that can be read; wanted one of: {', '.join(sorted(READERS))}. Set --data_files"
        )
    return _read_hub(name, config)


def _files_of(path: Path, data_files: list[str] | None) -> dict[str, list[Path]]:
    """Split name → files. A folder's files are named after their split: train.parquet, data/test-00000-of-00002.parquet."""
    if data_files:
        pairs = [entry.split("=", 1) if "=" in entry else ["train", entry] for entry in data_files]
        found: dict[str, list[Path]] = {}
        for split, entry in pairs:
            file = path / entry if path.is_dir() else Path(entry)
            if not file.is_file():
                raise InputError(f"No file {file}, named by --data_files {split}={entry}")
            found.setdefault(split, []).append(file)
        return found
    if path.is_file():
        if path.suffix.lstrip(".") not in READERS:
            raise InputError(f"{path} ends in '{path.suffix}'; wanted one of: {', '.join(sorted(READERS))}")
        return {"train": [path]}
    if not path.is_dir():
        return {}
    found = {}
    for file in sorted(
        f
        for f in path.rglob("*")
        if f.suffix.lstrip(".") in READERS and not f.name.startswith(("README", "."))
    ):
        if file.name in ("dataset_info.json", "state.json", "dataset_dict.json"):
            return {}
        stem = re.sub(r"-\d{5}-of-\d{5}.*$", "", file.stem)
        found.setdefault(SPLIT_NAMES.get(stem, stem), []).append(file)
    return {"train": next(iter(found.values()))} if len(found) == 1 else _of_one_kind(found)


def _of_one_kind(files: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """The files of the training rows' kind: what lies beside train.parquet as input.txt is no split."""
    readers = {READERS[file.suffix.lstrip(".")] for file in files.get("train", [])}
    others = {
        split: [f for f in paths if READERS[f.suffix.lstrip(".")] not in readers]
        for split, paths in files.items()
    }
    strange = [str(file) for paths in others.values() for file in paths]
    if len(readers) != 1 or not strange:
        return files
    logger.warning(
        "Left aside, as the training rows are of another kind: %s (--data_files names others)",
        ", ".join(strange),
    )
    kept = {split: [file for file in paths if file not in others[split]] for split, paths in files.items()}
    return {split: paths for split, paths in kept.items() if paths}


def _read_files(files: dict[str, list[Path]]) -> DatasetDict:
    kinds = {file.suffix.lstrip(".") for paths in files.values() for file in paths}
    readers = {READERS.get(kind, kind) for kind in kinds}
    if len(readers) > 1 or not readers <= set(READERS.values()):
        raise InputError(
            f"Files of several kinds ({', '.join(sorted(kinds))}); name those of one kind by --data_files"
        )
    options = {"delimiter": "\t"} if kinds == {"tsv"} else {}
    splits = DatasetDict()
    for split, paths in files.items():
        try:  # one by one: splits of one folder need not have the same columns
            splits[split] = datasets.load_dataset(
                readers.copy().pop(), data_files=[str(p) for p in paths], split="train", **options
            )
        except Exception as error:  # whatever a reader says of a damaged file, with the name of the file
            cause = error.__cause__ or error
            names = ", ".join(str(p) for p in paths)
            if "corresponds to no data" in str(error):
                raise InputError(f"{names} has 0 rows; name files with rows by --data_files") from error
            raise InputError(
                f"Cannot read {names}: {type(cause).__name__}: {cause}. Mend it or name others by --data_files"
            ) from error
    return splits


def _read_hub(name: str, config: str | None) -> DatasetDict:
    try:
        found = datasets.load_dataset(name, config)
    except Exception as error:
        near = ", ".join(CORPORA)
        raise InputError(
            f"No data set '{name}': not a file or folder here, not a built-in corpus ({near}), and the hub answers "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}. Set --dataset_name"
        ) from error
    return found


def _default_eval(splits: Mapping[str, Any], fallback: str | None) -> str | None:
    return next((name for name in ("validation", "test") if name in splits), fallback)


def _split(splits: DatasetDict, name: str, flag: str) -> Dataset:
    base, _, bounds = name.partition("[")
    if base not in splits:
        raise InputError(f"No split '{base}'; there are: {', '.join(splits)}. Set {flag}")
    rows = splits[base]
    if bounds:
        rows = rows.select(_slice(bounds, len(rows), flag))
    if len(rows) == 0:
        raise InputError(f"Split '{name}' has 0 rows; name another by {flag}")
    return rows


def _slice(bounds: str, length: int, flag: str) -> range:
    match = re.fullmatch(r"(-?\d+%?)?:(-?\d+%?)?\]", bounds)
    if not match:
        raise InputError(
            f"Cannot read the slice '[{bounds}'; wanted [start:end] in rows or per cent. Set {flag}"
        )
    edges = [
        None if edge is None else int(edge[:-1]) * length // 100 if edge.endswith("%") else int(edge)
        for edge in match.groups()
    ]
    return range(length)[slice(*edges)]


def sample(rows: Dataset, limit: int | None, seed: int, label: str | None = None) -> Dataset:
    """A seeded, shuffled sample of at most `limit` rows; with a class column, as many of each class as there can be.

    Rows come shuffled even without a limit: published files are often sorted by label.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(rows))
    if limit is None or limit >= len(rows):
        return rows.select(order)
    if limit < 1:
        raise InputError(f"Asked for {limit} rows; wanted 1 or more. Set --max_train_rows or --max_eval_rows")
    if label is None or not isinstance(rows.features[label], ClassLabel):
        return rows.select(order[:limit])
    classes = np.asarray(rows[label][:])[order]
    # the n-th row of each class comes before the (n+1)-th of any: taking the first `limit` fills the classes evenly
    rank = np.zeros(len(order), dtype=np.int64)
    for value in np.unique(classes):
        members = np.flatnonzero(classes == value)
        rank[members] = np.arange(len(members))
    chosen = np.sort(np.argsort(rank, kind="stable")[:limit])
    return rows.select(order[chosen])


def open_stream(
    name: str, config: str | None, data_files: list[str] | None, split: str
) -> datasets.IterableDataset:
    """One split, read as it is needed: from local files or from the hub.

    Raises:
        InputError: nothing there under that name, or no such split.
    """
    if name in CORPORA and not data_files:
        return _split(CORPORA[name](), split, "--train_split").to_iterable_dataset()
    files = _files_of(Path(name).expanduser(), data_files)
    if files and split not in files:
        raise InputError(f"No split '{split}' in {name}; there are: {', '.join(files)}. Set --train_split")
    try:
        if not files:
            return datasets.load_dataset(name, config, split=split, streaming=True)
        reader = READERS[files[split][0].suffix.lstrip(".")]
        return datasets.load_dataset(
            reader, data_files=[str(file) for file in files[split]], split="train", streaming=True
        )
    except Exception as error:  # whatever a reader or the hub says
        raise InputError(
            f"Cannot stream '{name}': {type(error).__name__}: {error}. Set --dataset_name or --mixture"
        ) from error
