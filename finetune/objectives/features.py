"""Rows, or a stream of them → features of an objective. Knows columns and sources; knows no model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, IterableDataset, Value, concatenate_datasets
from numpy.random import Generator
from transformers import PreTrainedTokenizerBase

from finetune.data.columns import Columns
from finetune.data.files import as_dataset
from finetune.data.laying import laid_out
from finetune.data.mixing import weighted
from finetune.data.places import SET, columns_of
from finetune.data.sources import Rows, TextArguments, load_rows
from finetune.data.streaming import ROWS_FIRST, open_stream
from finetune.errors import InputError
from finetune.objectives import contrastive, documents, inputs
from finetune.objectives.options import ObjectiveArguments
from finetune.objectives.streams import Stream, StreamArguments, parse_mixture
from finetune.objectives.table import Objective

logger = logging.getLogger(__name__)


class ObjectiveRows(NamedTuple):
    """What an objective learns from.

    Attributes:
        features: {"train": ..., "eval": ...}; several evaluation sets are told apart by a column SET.
        key: the fingerprint of the training rows.
        read: rows as they were read; without training rows of a stream, a mixture, pictures and series.
        rows: the texts that are trained on, after any sample; None where `read` has no training rows.
        columns: of `rows`.
    """

    features: dict[str, Any]
    key: str
    read: Rows
    rows: Dataset | None = None
    columns: Columns = Columns("text", None, "text")


def find_inputs(
    name: str, apart: contrastive.ContrastiveArguments, there: list[str], data: TextArguments, train: bool
) -> inputs.Roles:
    """Which columns the objective reads: one text, or for `contrastive` also its partner, a hard negative and
    a score.
    """
    if name != "contrastive":
        return inputs.find_roles(there, data, {})
    if apart.negative_column is not None and not apart.supervised:
        raise InputError("--negative_column is for pairs; set --supervised true")
    pair = inputs.find_pair(there, data)
    if apart.score_column is not None and pair is None:
        raise InputError(
            "--score_column says how alike two texts are, and the rows have one. Set --text_pair_column"
        )
    if train and apart.supervised and pair is None:
        raise InputError(
            f"--supervised wants two texts a row; {data.name} has {', '.join(there)}. Set --text_pair_column"
        )
    if train:
        # unsupervised, a second column of the training rows is not read
        return inputs.find_roles(
            there, data, {"pair": pair, "negative": apart.negative_column} if apart.supervised else {}
        )
    # for evaluation both texts are asked whatever the training sees: that is where the score is
    return inputs.find_roles(there, data, {"pair": pair, "score": apart.score_column if pair else None})


def load_features(
    row: Objective,
    options: ObjectiveArguments,
    apart: contrastive.ContrastiveArguments,
    data: TextArguments,
    *,
    stream: StreamArguments,
    processor: PreTrainedTokenizerBase,
) -> ObjectiveRows:
    """Rows, or a stream, and their features.

    Raises:
        InputError: columns that are missing, rows without text, sources that can't be read.
    """
    if row.load is not None:
        if stream.streaming or stream.mixture is not None:
            flag = "streaming" if stream.streaming else "mixture"
            raise InputError(f"--{flag} is for texts; leave it out to learn from rows of {row.reads}")
        return ObjectiveRows(*row.load(data, processor), Rows(None, None, data.name))
    name, length, seed = options.objective, options.max_length, data.sample_seed
    endless = stream.streaming or stream.mixture is not None
    # a stream's training rows are not loaded here; and no fallback, which would evaluate on them
    rows = load_rows(data, train=not stream.streaming, fallback=None)
    # contrastive rows have several texts, which `find_inputs` accounts for
    read = rows
    if name != "contrastive":
        rows, _ = laid_out(rows, data, inputs.lay_out_texts)
    elif max(len(rows.train_parts) if not endless else 0, len(rows.eval_parts)) > 1:
        raise InputError(
            "contrastive reads one data set to train on and one to evaluate on; name one each by "
            "--dataset_name and --eval_dataset_name, or set --mixture"
        )
    assert rows.eval is not None
    there = find_inputs(name, apart, columns_of(rows.eval), data, train=False)
    evaluation = inputs.settled_rows(rows.eval, there, data, "evaluation", data.max_eval_rows)
    if "score" in there:
        # before encoding: a column of classes would look like numbers afterwards
        check_scores(evaluation, there["score"])
    held_out = encoded_sets(evaluation, there, row.encode, processor, max_length=length, seed=seed)
    if endless:
        # a mixture's own weights, or those of several data sets
        weights = parse_mixture(stream.mixture) if stream.mixture else weighted(data.dataset_name)
        sources = [_source(source, name, apart, data, stream) for source in weights]
        encode = partial(_encode_batch, row.encode, processor, length)
        # of what is read as it is needed the names alone are known
        known = [
            inputs.content_hash(rows, {role: role for role in rows.column_names})
            for rows in sources
            if isinstance(rows, Dataset)
        ]
        encoders = [encode] * len(sources)
        endless_rows = Stream(sources, list(weights.values()), encoders, seed, stream.shuffle_buffer)
        features = {"train": endless_rows, "eval": held_out}
        return ObjectiveRows(features, repr((weights, known)), Rows(None, None, data.name))
    assert rows.train is not None
    train = (
        rows.train
        if apart.positive_label is None
        else inputs.with_label(rows.train, apart.positive_label, data)
    )
    there = find_inputs(name, apart, columns_of(train), data, train=True)
    if name == "contrastive":
        # the label chose the rows, so that it counts as read
        told = there | {"label": data.label_column or "label"} if apart.positive_label else there
        inputs.account_roles(train, told, data, "training")
    train = inputs.settled_rows(train, there, data, "training", data.max_train_rows)
    features = {
        "train": inputs.encoded(train, there, row.encode, processor, max_length=length, seed=seed),
        "eval": held_out,
    }
    columns = Columns(there["text"], there.get("pair"), there["text"])
    return ObjectiveRows(features, inputs.content_hash(train, there), read, train, columns)


def encoded_sets(rows: Dataset, roles: inputs.Roles, encode: Callable, processor: Any, **how: Any) -> Dataset:
    """`inputs.encoded`; where the rows are of several data sets each apart, so that no piece holds texts of
    two, with a column SET that says which."""
    if SET not in rows.column_names:
        return inputs.encoded(rows, roles, encode, processor, **how)
    names, parts = rows[SET][:], []
    for name in dict.fromkeys(names):
        own = rows.select([place for place, of in enumerate(names) if of == name])
        part = inputs.encoded(own, roles, encode, processor, **how)
        parts.append(part.remove_columns("row").add_column(SET, [name] * len(part)))
    whole = concatenate_datasets(parts)
    return whole.add_column("row", np.arange(len(whole)))


def check_scores(rows: Dataset, column: str) -> None:
    """Scores are numbers, or missing.

    Raises:
        InputError: texts, classes, or no score at all.
    """
    feature = rows.features[column]
    # integers and floats; a ClassLabel is stored as a number, but is none
    numbers = isinstance(feature, Value) and feature.dtype.startswith(("float", "double", "int", "uint"))
    if not numbers or all(score is None for score in rows[column]):
        raise InputError(f"The column '{column}' holds {feature}; wanted numbers. Set --score_column")


def _encode_batch(
    encode: Callable,
    processor: PreTrainedTokenizerBase,
    length: int,
    batch: documents.TextBatch,
    rng: Generator,
) -> documents.TextBatch:
    return encode(batch, processor, length, rng)


def _source(
    source: str,
    name: str,
    # the given name alone has its own files; the other sources are looked for by their names
    apart: contrastive.ContrastiveArguments,
    data: TextArguments,
    stream: StreamArguments,
) -> Dataset | IterableDataset:
    """Training rows of one source of a stream, with their columns named after their roles."""
    chosen = replace(data, dataset_name=[source], data_files=data.data_files if source == data.name else None)
    files = chosen.data_files
    # a mixture of rows that can be counted is read whole
    rows = (
        open_stream(source, data.dataset_config, files, data.train_split)
        if stream.streaming
        else load_rows(chosen).train
    )
    assert rows is not None
    if apart.positive_label is not None:
        if not isinstance(rows, Dataset):
            raise InputError(
                "--positive_label wants rows that are read before the start; leave --streaming out"
            )
        rows = inputs.with_label(rows, apart.positive_label, chosen)
    # what columns there are is known by their rows: a stream need not declare them
    first = list(islice(rows, ROWS_FIRST))
    if not first:
        raise InputError(f"'{source}' has no rows to train on; set --train_split or --mixture")
    names = dict.fromkeys(key for row in first for key in row)
    there = find_inputs(name, apart, list(names), chosen, train=True)
    told = there | ({"label": data.label_column or "label"} if apart.positive_label else {})
    # of rows that can be counted all are looked at, and of a stream its beginning
    looked = (
        rows
        if isinstance(rows, Dataset)
        else as_dataset({key: [row.get(key) for row in first] for key in names}, source)
    )
    inputs.account_roles(looked, told, chosen, "training")
    # all sources alike by their roles, or rows of two could not share a batch
    rows = rows.select_columns(list(there.values())).rename_columns(
        {column: role for role, column in there.items() if column != role}
    )
    # a score may be missing; a text may not
    wanted = [role for role in there if role != "score"]
    return rows.filter(partial(_has_texts, wanted=wanted, source=source))


def _has_texts(row: dict[str, Any], *, wanted: list[str], source: str) -> bool:
    """Whether a row of a stream has a text in each of the columns; what is there must be one."""
    strange = next(
        (row[role] for role in wanted if row[role] is not None and not isinstance(row[role], str)), None
    )
    if strange is not None:
        raise InputError(f"A row of '{source}' holds {strange!r:.80}; wanted texts. Set --text_column")
    return all((row[role] or "").strip() for role in wanted)
