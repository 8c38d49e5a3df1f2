"""Under which licence each row stands, and where it is from: noted, counted, and refused where it is told to.
Knows rows and the front matter of a data set's README; knows no task.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from datasets import Dataset

from finetune.data.places import LICENCE, SOURCE, columns_of
from finetune.errors import InputError

logger = logging.getLogger(__name__)

NAMES = ("licence", "license")  # columns that are taken for it by themselves
NONE = "(none)"


@dataclass
class LicenceArguments:
    """What rows say of their licence and source, and which are trained on."""

    licence_column: str | None = field(
        default=None,
        metadata={"help": "Column with each row's licence (default: licence or license, where it is there)."},
    )
    source_column: str | None = field(
        default=None, metadata={"help": "Column that says where each row is from, for provenance.json."}
    )
    licences: list[str] | None = field(
        default=None,
        metadata={
            "help": "Train on rows of these licences alone; the log counts what is refused, and rows "
            "that say none among them."
        },
    )


def noted(rows: Dataset, data: Any, name: str) -> Dataset:
    """Rows whose columns of licence and source stand aside, where no task looks for texts.

    A data set without such a column has the licence that the front matter of its README.md declares.

    Args:
        data: options of the rows, of one data set.

    Raises:
        InputError: a column that is named and not there; licences wanted and nothing that says them.
    """
    there = columns_of(rows)
    for flag, column in (("licence_column", data.licence_column), ("source_column", data.source_column)):
        if column is not None and column not in there:
            raise InputError(f"No column '{column}' in {name}, named by --{flag}; it has {', '.join(there)}")
    if data.source_column is not None:
        # under a name with `__`, which no layout reads as text
        rows = rows.rename_column(data.source_column, SOURCE)
    taken = (data.text_column, data.label_column, data.text_pair_column)
    # a column that is the task's own text or label stays where it is
    own = data.licence_column or next((one for one in NAMES if one in there and one not in taken), None)
    if own is not None:
        return rows.rename_column(own, LICENCE)
    declared = declared_licence(name)
    if declared is None and data.licences:
        raise InputError(
            f"--licences {' '.join(data.licences)}: nothing says the licence of {name}; set "
            "--licence_column, or declare one in the front matter of its README.md (license: mit)"
        )
    return rows.add_column(LICENCE, [declared] * len(rows)) if data.licences else rows


def declared_licence(name: str) -> str | None:
    """What the front matter of the README.md beside a data set's files says, as the hub's cards do."""
    path = Path(name).expanduser()
    file = (path if path.is_dir() else path.parent) / "README.md"
    if not path.exists() or not file.is_file():
        return None
    # front matter stands between two lines of dashes at the very beginning
    head, _, rest = file.read_text(encoding="utf-8", errors="replace").partition("---\n")
    # dashes further down part the text, and declare nothing
    if head.strip():
        return None
    try:
        told = yaml.safe_load(rest.partition("\n---")[0])
    except yaml.YAMLError:
        return None
    found = (told.get("license") or told.get("licence")) if isinstance(told, dict) else None
    return None if found is None else ", ".join(map(str, found)) if isinstance(found, list) else str(found)


def admitted(rows: Dataset, licences: Sequence[str] | None, name: str) -> Dataset:
    """The rows of the licences that are wanted; the log counts those of others, and those that have none.

    Raises:
        InputError: no row is left.
    """
    if not licences:
        return rows
    # case aside: MIT and mit
    wanted = {_plain(one) for one in licences}
    kept = [place for place, one in enumerate(rows[LICENCE]) if _plain(one) in wanted]
    others = Counter(told(one) for one in rows[LICENCE] if _plain(one) not in wanted)
    said = ", ".join(f"{one} {count}" for one, count in others.most_common(8))
    if not kept:
        raise InputError(
            f"No training row of {name} has a licence among --licences {' '.join(licences)}; they "
            f"have: {said}"
        )
    if others:
        logger.warning(
            "%d of %d training rows of %s are refused by their licence: %s (--licences %s)",
            len(rows) - len(kept), len(rows), name, said, " ".join(licences),
        )  # fmt: skip
    return rows.select(kept) if others else rows


def told(value: Any) -> str:
    """A licence or a source as a word."""
    return str(value).strip() if value is not None and str(value).strip() else NONE


def _plain(value: Any) -> str:
    return told(value).lower()


def counted(rows: Dataset, column: str) -> dict[str, int]:
    """How many rows have each licence, or source; nothing where nobody says."""
    if column not in rows.column_names:
        return {}
    return dict(Counter(told(value) for value in rows[column]).most_common())


def file_entry(file: Path, root: Path) -> dict[str, Any]:
    """Name, hash and size of a file that rows were read from."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        # a MiB at a time: files may be larger than memory
        while block := stream.read(1 << 20):
            digest.update(block)
    inside = root in file.parents
    name = str(file.relative_to(root)) if inside else file.name
    return {"file": name, "sha256": digest.hexdigest(), "bytes": file.stat().st_size}


def with_licences(rows: Dataset, data: Any, train: bool = True) -> Dataset:
    """Rows `noted` and, where they are trained on, `admitted`; of evaluation rows no column is wanted."""
    if train:
        return admitted(noted(rows, data, data.name), data.licences, data.name)
    named = {"licence_column": data.licence_column, "source_column": data.source_column}
    # evaluation rows may lack what training rows must have
    there = {flag: column if column in rows.column_names else None for flag, column in named.items()}
    # verbs that only read have no option of licences, which `replace` would refuse to set
    return noted(rows, SimpleNamespace(**(vars(data) | there | {"licences": None})), data.name)
