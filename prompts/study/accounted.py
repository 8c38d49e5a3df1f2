"""What templates read of each column, said before a model is asked. Knows entries and rows; knows no
models."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from datasets import Dataset

from finetune.data.accounting import NUL, account, cell_texts, unread
from finetune.data.columns import listed
from finetune.data.places import columns_of
from finetune.errors import InputError
from prompts.study.prompts import asked_templates
from prompts.study.rows import columns_read
from prompts.templates.entries import Entry, Source

logger = logging.getLogger(__name__)


def account_for(
    data: Dataset, entry: Entry, source: Source, label: str | None, *, names: Sequence[str], where: str
) -> None:
    """Print which columns the templates that are asked read, which is the label, and which nothing reads.

    A text that no template reads is named in the log and stops nothing: templates say themselves what they
    read, and most entries read a part of their data set.

    Args:
        label: the column that was named for it.
        names: of the prompts, as `--prompts` has them.

    Raises:
        InputError: neither what templates read nor the label is there.
    """
    there = columns_of(data)
    read = {
        name for template in asked_templates(entry, names) if template.is_valid for name in template.columns
    }
    _want_all(entry, source, label, sorted(read), there)
    used = columns_read(data, entry, source, label, read)
    own = list(dict.fromkeys(path.partition(".")[0] for paths in used.values() for path in paths))
    kept = [name for name in own if name in there]
    unused = unread(data, used, lambda row: NUL.join(cell_texts([row[name] for name in kept])))
    lost = [name for name, what in unused.items() if what == "text"]
    account(used, unused, where, lenient=True)
    if lost:
        logger.warning(
            "%s: no template of '%s' that is asked reads %s", where, entry.name, " or ".join(map(repr, lost))
        )


def _want_all(entry: Entry, source: Source, label: str | None, read: Sequence[str], there: list[str]) -> None:
    """Ask for the label and for what templates read at once; one of them alone is said by who reads it."""
    mark = label or source.columns.get("label", "label")
    texts = [name for name in read if source.columns.get(name, name).partition(".")[0] not in there]
    if source.rows == "plain" and entry.words and texts and mark not in there:
        raise InputError(
            f"{entry.name}: no columns {listed([repr(name) for name in (*texts, mark)])} in the data; it has "
            f"{', '.join(there)}. Set --columns {' '.join(f'{name}=COLUMN' for name in texts)} and "
            "--label_column"
        )
