"""Rows that are read as they are needed, where all of them would be too many at once. Knows files and the
hub; knows no columns.
"""

from __future__ import annotations

from pathlib import Path

import datasets

from finetune.data.corpora import CORPORA
from finetune.data.files import Reading, kind_of
from finetune.data.folders import files_of, read_folder, split_of
from finetune.data.places import columns_of
from finetune.errors import InputError


def open_stream(
    name: str, config: str | None, data_files: list[str] | None, split: str
) -> datasets.IterableDataset:
    """One split, read as it is needed: Parquet from local files or the hub; text files whole, as their rows
    are told from all.

    Raises:
        InputError: nothing there under that name, or no such split.
    """
    if name in CORPORA and not data_files:
        return split_of(CORPORA[name](), split, "--train_split").to_iterable_dataset()
    files = files_of(Path(name).expanduser(), data_files)
    if files and split not in files:
        raise InputError(f"No split '{split}' in {name}; there are: {', '.join(files)}. Set --train_split")
    if files and kind_of(files[split][0]) != "parquet":
        rows = read_folder({split: files[split]}, Reading(""))[split]
        return rows.select_columns(columns_of(rows)).to_iterable_dataset()
    try:
        if not files:
            return datasets.load_dataset(name, config, split=split, streaming=True)
        return datasets.load_dataset(
            "parquet", data_files=[str(file) for file in files[split]], split="train", streaming=True
        )
    except Exception as error:  # whatever a reader or the hub says
        raise InputError(
            f"Cannot stream '{name}': {type(error).__name__}: {error}. Set --dataset_name or --mixture"
        ) from error
