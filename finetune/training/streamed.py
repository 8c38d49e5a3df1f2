"""Training rows of a task that are read as they are needed → an endless stream of features. Knows tasks and
sources; knows no trainer.

So many rows at once go through the same functions as rows that are all there: layout, account, check,
encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from datasets import Dataset, Features
from numpy.random import Generator

from finetune.data.batching import BatchingArguments
from finetune.data.files import Reading, as_dataset
from finetune.data.licences import with_licences
from finetune.data.mixing import weighted
from finetune.data.sources import FewShotArguments, Rows, TextArguments, load_rows
from finetune.data.streaming import ROWS_FIRST, StreamingArguments, open_stream
from finetune.errors import InputError
from finetune.objectives.streams import Stream
from finetune.tasks.limits import check_lines
from finetune.tasks.options import TaskArguments
from finetune.tasks.task import Examined, Task

Batch = dict[str, list[Any]]


def check_stream(
    stream: StreamingArguments,
    data: TextArguments,
    batching: BatchingArguments | None,
    training: Any,
    *,
    mixed: bool = False,
    private: bool = False,
) -> bool:
    """Whether training rows come as a stream, and options that it has no use for, as it has no end and no
    length.

    Args:
        training: of any trainer.
        mixed: whether sources are drawn from by weight, which makes a stream of them too.
        private: whether rows are drawn by chance from all of them, as differential privacy wants it.

    Raises:
        InputError: one is set, or one that a stream needs is not.
    """
    if not (stream.streaming or mixed):
        # an option that differs from its default was set, and would be read by nobody
        if stream.shuffle_buffer != StreamingArguments.shuffle_buffer:
            raise InputError("--shuffle_buffer is for a stream (--streaming true); leave it out")
        return False
    if private:
        raise InputError(
            "Differential privacy draws each batch by chance from all rows, and a stream is never all there; "
            "leave --streaming out"
        )
    if stream.shuffle_buffer < 1:
        raise InputError(f"Got --shuffle_buffer {stream.shuffle_buffer}; wanted 1 or more")
    # texts for pretraining have no shots and no classes to draw by
    few = data if isinstance(data, FewShotArguments) else FewShotArguments()
    for name, value in (
        ("max_train_rows", data.max_train_rows),
        ("tokens_per_batch", batching and batching.tokens_per_batch),
        ("shots_per_class", few.shots_per_class),
        ("train_sample_seed", few.train_sample_seed),
        # one run is no series
        ("seeds", few.seeds if few.seeds > 1 else None),
    ):
        if value is not None:
            raise InputError(
                f"A stream or a mixture has no use for --{name}; leave it out, or say how long by --max_steps"
            )
    if training.max_steps <= 0:
        raise InputError("A stream or a mixture has no end; wanted --max_steps above 0")
    if training.dataloader_num_workers:
        raise InputError(
            "--dataloader_num_workers with a stream or a mixture would read it once a worker; leave it out"
        )
    return True


def examine_stream(row: Task, data: TextArguments, stream: StreamingArguments) -> Examined:
    """The evaluation rows, checked, with the classes that they have, or that --class_names names; no training
    rows.

    Raises:
        InputError: rows of pictures or sounds, no evaluation split, rows that the task can't be asked by.
    """
    # pictures and sounds are opened by their own loaders, which know no streams
    if row.reads != "text":
        raise InputError("--streaming reads rows of texts, and this task's are none; leave it out")
    # without a fallback: rows that are trained on must not be taken for the evaluation's
    rows = load_rows(data, train=False, fallback=None)
    # the evaluation rows stand in for both, so that the check of columns and classes runs as ever
    found = row.examine(replace(rows, train=rows.eval), data)
    # classes that the evaluation rows happen to lack may be named by the user
    names = data.class_names if found.labels is not None and data.class_names else found.labels
    return found._replace(rows=Rows(None, found.rows.eval, data.name), labels=names)


def stream_of(
    row: Task,
    options: TaskArguments,
    data: TextArguments,
    stream: StreamingArguments,
    *,
    found: Examined,
    processor: Any,
    network: Any,
) -> Stream:
    """Features of the training rows of all data sets, drawn by weight.

    Raises:
        InputError: rows that can't be streamed; while it is read, rows that the task can't learn from.
    """

    def encode(part: Rows, own: TextArguments) -> Batch:
        # each chunk is looked at: rows further on may be of another form than the first
        one = row.examine(part, own)
        assert one.rows.eval is not None
        _check_labels(one, found.labels)
        features = row.encode(one.rows.eval, one.columns, processor, options.max_length, found.labels)
        # of a chunk whose rows are all left out there is nothing to measure
        if len(features):
            check_lines(row, network, processor, features)
        return features.to_dict()

    return make_stream(data, stream, encode)


def _check_labels(one: Examined, labels: list[str] | None) -> None:
    """Rows of a stream have no class but those that were known before it began."""
    strange = sorted(set(one.labels or ()) - set(labels or ()))
    if strange:
        raise InputError(
            f"The stream has the label {strange[0]!r}, and the classes are those of the evaluation rows: "
            f"{', '.join(labels or ())}. Set --eval_split to rows that have all, or leave --streaming out"
        )


def make_stream(
    data: TextArguments, stream: StreamingArguments, encode: Callable[[Rows, Any], Batch]
) -> Stream:
    """A stream of what `encode` makes of so many raw rows at once, of all data sets by weight.

    The first rows of each are encoded now, which says what its columns are for and what is wrong with them.

    Args:
        encode: (rows of one data set as both splits, its options) → features by name.
    """
    weights = weighted(data.dataset_name)
    sources, encoders = [], []
    for name in weights:
        own = replace(
            data, dataset_name=[name], eval_dataset_name=None, max_train_rows=None, max_eval_rows=None
        )
        reading = Reading(data.documents or "", data.encoding)
        source = open_stream(name, data.dataset_config, data.data_files, data.train_split, reading)
        encoder = partial(_encoded, encode, own, source.features)
        # a look that takes nothing away: the stream begins again at its first row
        first = list(source.take(ROWS_FIRST))
        if not first:
            raise InputError(f"'{name}' has no rows to train on; set --train_split")
        # lines of JSON may lack keys that others have
        keys = dict.fromkeys(key for one in first for key in one)
        # encoded for its errors alone: they come before the first step and not in the middle of a run
        encode(_as_rows({key: [one.get(key) for one in first] for key in keys}, own, source.features), own)
        sources.append(source)
        encoders.append(encoder)
    shares, seed = list(weights.values()), data.sample_seed
    # `apart`: two copies of one row in a chunk would be counted as duplicates and dropped
    return Stream(sources, shares, encoders, seed, stream.shuffle_buffer, apart=True)


def _encoded(
    encode: Callable[[Rows, Any], Batch],
    own: TextArguments,
    features: Features | None,
    batch: Batch,
    rng: Generator,
) -> Batch:
    # what is said of rows (duplicates, empty ones) would come back with every chunk
    return encode(replace(_as_rows(batch, own, features), silent=True), own)


def _as_rows(batch: Batch, own: TextArguments, features: Features | None) -> Rows:
    """Raw rows of a stream, as both splits: nothing is compared with anything."""
    # types that the source declares (classes by name) where no column came or went; else they are guessed
    if features is not None and set(features) == set(batch):
        part = Dataset.from_dict(batch, features=features)
    else:
        part = as_dataset(batch, own.name)
    part = with_licences(part, own)
    return Rows(part, part, own.name, where="training")
