"""Whose rows a run was trained on → `provenance.json`: files with their hashes, licences, sources, rows used.

Knows options and rows; knows no task. No text of a row is in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset

from finetune.artefacts.files import write_atomically
from finetune.data.corpora import CORPORA
from finetune.data.folders import files_of
from finetune.data.licences import counted, declared_licence, file_entry
from finetune.data.mixing import weighted
from finetune.data.places import LICENCE, SOURCE
from finetune.data.sources import Rows, TextArguments

PROVENANCE = "provenance.json"


def provenance_of(rows: Rows, data: TextArguments) -> dict[str, Any]:
    """Each data set's files, declared licence, and how many of its training rows stand under each licence and
    come from each source.

    Args:
        rows: as they were read, before a task samples and mixes them; none where they are a stream.
    """
    # Without parts all rows are of the one set.
    sets = {part.name: part.rows for part in rows.train_parts} or {data.name: rows.train}
    # `train[:10%]` is a part of the split's files.
    split = data.train_split.partition("[")[0]
    entries = []
    for name in weighted(data.dataset_name):
        path = Path(name).expanduser()
        # Packaged data has no files of the user's.
        files = {} if name in CORPORA else files_of(path, data.data_files)
        part = sets.get(name)
        entries.append(
            {
                "name": name,
                "config": data.dataset_config,
                "split": data.train_split,
                "files": [file_entry(file, path) for file in files.get(split, ())],
                "licence": declared_licence(name),
                "rows": None if part is None else len(part),
                "licences": {} if part is None else counted(part, LICENCE),
                "sources": {} if part is None else counted(part, SOURCE),
            }
        )
    return {"licences_wanted": data.licences, "data": entries}


def save_provenance(folder: str | Path, told: Mapping[str, Any], used: Sized | None) -> None:
    """Write `provenance.json`, once the folder is claimed; the main process does.

    Args:
        told: see `provenance_of`.
        used: what is trained on, after any sample: rows, pairs or prompts; None of a stream.
    """
    # one writer; the others read nothing of this file
    if not PartialState().is_main_process:
        return
    found = dict(told) if used is None else {**told, "rows_used": len(used)}
    # of what was made of rows only their number is known
    if isinstance(used, Dataset):
        found |= {"licences_used": counted(used, LICENCE), "sources_used": counted(used, SOURCE)}
    # With what was told before sampling: which files, and how many of them were used.
    write_atomically(Path(folder) / PROVENANCE, json.dumps(found, indent=1, ensure_ascii=False))


def licence_of(told: Mapping[str, Any]) -> str | None:
    """The one licence of all training rows; None where there are several, or rows that say none."""
    found = set()
    for entry in told["data"]:
        # A row's own licence counts; the set's declared one where rows say none.
        found |= set(entry["licences"]) or {entry["licence"]}
    # One and known: a mixture with an unknown is unknown.
    return found.pop() if len(found) == 1 and found != {None} else None
