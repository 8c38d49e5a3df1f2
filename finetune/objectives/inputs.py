"""Raw rows → checked texts → features, for pretraining. Knows columns and encoders; knows no model and no
objective.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import numpy as np
from datasets import ClassLabel, Dataset
from transformers import PreTrainedTokenizerBase

from finetune.data.accounting import account, unread, without
from finetune.data.checks import without_empty
from finetune.data.columns import LABELS, PAIRS, TEXTS, Columns, Wanted, first_there, settle_columns
from finetune.data.corpora import CORPORA
from finetune.data.encode import cached, fingerprint
from finetune.data.places import columns_of
from finetune.data.questions import Laid
from finetune.data.sources import TextArguments, sample
from finetune.errors import InputError
from finetune.objectives import documents

logger = logging.getLogger(__name__)
Roles = dict[str, str]  # what a column is to the objective (text, pair, negative, score) → its name


def find_roles(there: list[str], data: TextArguments, wanted: dict[str, str | None]) -> Roles:
    """The text's column and those named in `wanted` (role → column or None).

    Raises:
        InputError: a column that is not there, or none with a usual name.
    """
    # `pair` is --text_pair_column, the other roles go by their own names
    flags = {"pair": "--text_pair_column"}
    named = {role: column for role, column in wanted.items() if column is not None}
    sought = [Wanted("--text_column", data.text_column, TEXTS)]
    sought += [Wanted(flags.get(role, f"--{role}_column"), column) for role, column in named.items()]
    return dict(zip(("text", *named), settle_columns(sought, there, data.name), strict=True))


def lay_out_texts(rows: Dataset, data: TextArguments) -> Laid:
    """Rows of texts alone."""
    return laid_roles(rows, find_roles(columns_of(rows), data, {}))


def laid_roles(rows: Dataset, roles: Roles) -> Laid:
    """Rows whose columns are read as they are, by what they are to the objective."""
    used = {role: [column] for role, column in roles.items()}
    return Laid(rows, Columns(roles["text"], None, ""), used, lambda row: str(row[roles["text"]]))


def account_roles(rows: Dataset, roles: Roles, data: TextArguments, where: str) -> None:
    """Say what each column is for.

    Raises:
        InputError: one holds a text that nothing reads.
    """
    # named by the user as not wanted
    kept = without(rows, data.ignore_columns or ())
    laid = laid_roles(kept, roles)
    # packaged corpora serve many tasks: columns that this one doesn't read are no mistake
    lenient = any(name in CORPORA for name in data.dataset_name)
    account(laid.used, unread(kept, laid.used, laid.texts), f"{data.name}, {where} rows", lenient=lenient)


def find_pair(there: list[str], data: TextArguments) -> str | None:
    # what is named is not looked for: a wrong name is an error later, and not another column
    """The second text's column: named, or by a usual name beside the first's; None where there is none."""
    if data.text_pair_column is not None:
        return data.text_pair_column
    first = data.text_column or first_there(TEXTS, there, data.name, "--text_column")
    # usual pairs of names, of which both must be there
    return next((second for one, second in PAIRS if one == first and second in there), None)


def with_label(rows: Dataset, label: str, data: TextArguments) -> Dataset:
    """The rows whose label has that name.

    Raises:
        InputError: no row has it.
    """
    column = data.label_column or first_there(LABELS, columns_of(rows), data.name, "--label_column")
    feature = rows.features[column]
    # a class by its name or by its number, as it is stored
    names = list(feature.names) if isinstance(feature, ClassLabel) else []
    wanted = names.index(label) if label in names else label
    # numbers read from a CSV file are no text, and the flag is
    kept = [place for place, value in enumerate(rows[column]) if value == wanted or str(value) == label]
    if not kept:
        seen = names or sorted({str(value) for value in rows[column]})[:20]
        raise InputError(
            f"No row has the label '{label}' in '{column}'; there are: {', '.join(seen)}. Set "
            "--positive_label"
        )
    return rows.select(kept)


def settled_rows(rows: Dataset, roles: Roles, data: TextArguments, where: str, limit: int | None) -> Dataset:
    """A seeded sample of rows that all have text.

    Raises:
        InputError: rows without text, where --drop_empty_rows does not leave them out.
    """
    # texts alone have no label column
    columns = Columns(roles["text"], roles.get("pair"), "")
    rows = without_empty(rows, columns, data.drop_empty_rows, where)
    if "negative" in roles:
        rows = without_empty(rows, Columns(roles["negative"], None, ""), data.drop_empty_rows, where)
    # sampled after the empty ones are gone, so that the sample has its full size
    return sample(rows, limit, data.sample_seed)


def content_hash(rows: Dataset, roles: Roles) -> str:
    """Fingerprint of what the columns hold."""
    return fingerprint(
        rows, Columns(roles["text"], None, ""), *(column for role, column in roles.items() if role != "text")
    )


def encoded(
    rows: Dataset,
    roles: Roles,
    encode: Callable[..., documents.TextBatch],
    processor: PreTrainedTokenizerBase,
    *,
    max_length: int,
    seed: int = 0,
) -> Dataset:
    """Rows through an encoder of `documents`, cached by content; a column `row` numbers what comes out.

    Raises:
        InputError: nothing comes out.
    """
    # the options are bound into the encoder, and are part of what the cache goes by
    options = dict(encode.keywords) if isinstance(encode, partial) else {}
    name = encode.func.__name__ if isinstance(encode, partial) else encode.__name__

    def features(batch: dict[str, list], indices: list[int]) -> documents.TextBatch:
        return encode(
            {role: batch[column] for role, column in roles.items()},
            processor,
            max_length,
            # chance by the batch's first row: the same whatever was read before
            np.random.default_rng((seed, indices[0])),
        )

    found = cached(
        rows, features, processor, content_hash(rows, roles), name, roles, options, max_length, seed
    )
    if len(found) == 0:
        raise InputError(
            f"{len(rows)} rows give no row to train on: their texts are too short. Set --text_column or "
            "--max_length"
        )
    tokens = sum(found["length"][:])
    logger.warning(
        "%d texts → %d rows, %s tokens, %.1f a row", len(rows), len(found), f"{tokens:,}", tokens / len(found)
    )
    # numbers of rows, which noise and errors go by
    return found.add_column("row", np.arange(len(found)))
