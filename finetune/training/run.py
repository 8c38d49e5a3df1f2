"""The steps of a run on a row of TASKS, each with the checks that guard it: rows, model, features, figures,
folder.

Knows tasks, models and folders; knows no method's or script's name.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import set_seed

from finetune.artefacts.folder import save_artefact
from finetune.artefacts.provenance import provenance_of, save_provenance
from finetune.artefacts.runs import check_vacant, open_run
from finetune.artefacts.trained_rows import save_trained_rows, unseen_by_start
from finetune.data.batching import BatchingArguments, check_budget
from finetune.data.languages import language_hint
from finetune.data.places import SET, short_names
from finetune.data.sources import DataArguments, Rows
from finetune.data.streaming import StreamingArguments
from finetune.errors import InputError
from finetune.metrics.bootstrap import bootstrap, mean_figure
from finetune.models.load import ModelArguments
from finetune.models.processors import TEXT
from finetune.models.scratch import ScratchArguments, prepare
from finetune.models.sharded import make_whole
from finetune.objectives.streams import Stream
from finetune.packaged import PACKAGED
from finetune.tasks.answers import answerer, save_answers
from finetune.tasks.limits import check_features, check_max_length
from finetune.tasks.options import TaskArguments
from finetune.tasks.task import Asked, Examined, Task, intervals
from finetune.tasks.weighting import shape_loss
from finetune.training.description import describe_rows
from finetune.training.options import TrainingArguments
from finetune.training.streamed import examine_stream, stream_of
from finetune.training.trainer import ExactTrainer, Sets, by_length

logger = logging.getLogger(__name__)
SAMPLED = 500  # rows whose language is looked at: columns may hold pictures or long documents


def examine_rows(
    row: Task,
    data: DataArguments,
    training: TrainingArguments,
    options: Mapping[str, Any],
    stream: StreamingArguments | None = None,
) -> Examined:
    """Rows that were checked and sampled, and a seed that is set. Where the training rows are a `stream`, the
    evaluation rows alone.

    Args:
        options: of the whole run, as resolved; its folder must be free for them, which is said before a model
            is loaded.

    Raises:
        InputError: rows that the task can't learn from, or a folder that holds something else.
    """
    # before rows are sampled and a head is drawn, which both take from the same streams
    set_seed(training.seed)
    # the others then read what the main process has put into the cache
    with training.main_process_first(desc="reading rows"):
        if stream is not None and stream.streaming:
            found, rows = examine_stream(row, data, stream), Rows(None, None, data.name)
        else:
            rows = row.load(data)
            found = row.examine(rows, data)
        if found.rows.eval is not None:
            start = options.get("model_name_or_path")
            kept = unseen_by_start(start, found.rows.eval, found.columns, row.unseen)
            found = found._replace(rows=replace(found.rows, eval=kept))
        # of the rows as they were read: a task samples and mixes them
        found = found._replace(provenance=provenance_of(rows, data))
    # the fingerprint is part of what makes two runs the same, so that it comes after the rows
    check_vacant(dict(options), found.fingerprint)
    # of other bases nobody here knows what they read
    if options.get("model_name_or_path") in PACKAGED and found.rows.train is not None:
        texts = found.rows.train[:SAMPLED][found.columns.text]
        hint = language_hint([text for text in texts if isinstance(text, str)])
        if hint and training.process_index == 0:
            logger.warning("%s reads English, and %s", options["model_name_or_path"], hint)
    return found


def load_for(
    row: Task,
    model: ModelArguments,
    found: Examined,
    *,
    scratch: ScratchArguments | None = None,
    chats: bool = False,
    quantized: bool = False,
) -> tuple[Any, Any]:
    """Processor and model with the task's head, made for the classes of the rows and told of their targets.

    Args:
        scratch: how a model is made anew; None loads it.
        chats: whether texts go into a chat template; rows that are chats always do.
        quantized: whether the base is held in 4 bits.

    Raises:
        InputError: no such model.
    """
    # both columns are "messages" where the rows are chats
    chats = chats or found.columns.text == found.columns.label == "messages"
    processor, network = prepare(
        model, scratch or ScratchArguments(), row.model, reads=row.reads, labels=found.labels, chats=chats,
        quantized=quantized, sized=None if row.sized is None else partial(row.sized, found=found),
        **row.config,
    )  # fmt: skip
    # a start from the rows (a mean, word counts) needs training rows; evaluating alone has none
    if row.start is not None and found.rows.train is not None:
        row.start(network, processor, found)
    return processor, network


def encode_rows(
    row: Task,
    options: TaskArguments,
    found: Examined,
    processor: Any,
    network: Any,
    *,
    training: TrainingArguments,
) -> dict[str, Dataset]:
    """Features of each split, which the model has room for.

    Raises:
        InputError: no room for a text, or none for what shall be written.
    """
    # pictures, sounds and series have no length in tokens
    if row.reads == TEXT:
        check_max_length(processor, options.max_length, row.pair)
    # tokenised once, by the main process, and read from the cache by the others
    with training.main_process_first(desc="tokenising"):
        features = {
            split: row.encode(part, found.columns, processor, options.max_length, found.labels)
            for split, part in found.rows.splits()
        }
    if row.reads == TEXT:
        check_features(row, options, network, processor, features)
    elif row.reads in ("image", "audio"):
        _ask_once(row, network, processor, features["eval"])
    return features


@torch.no_grad()
def _ask_once(row: Task, network: Any, processor: Any, features: Dataset) -> None:
    """A model reads what its processor makes of a row.

    Raises:
        InputError: it doesn't, as with patches that are larger than the picture.
    """
    batch = row.collate(processor)([features[0]])
    inputs = {k: v.to(network.device) for k, v in batch.items() if k not in ("labels", "row")}
    training, state = network.training, torch.get_rng_state()
    try:
        row.forward(network.eval(), inputs, batch["labels"])
    except (RuntimeError, ValueError) as error:
        shapes = ", ".join(f"{name} {' x '.join(map(str, one.shape))}" for name, one in inputs.items())
        raise InputError(
            f"The model can't read what is made of a row ({shapes}): {str(error).splitlines()[0]:.200} Set "
            "sizes that fit each other (--config_overrides), or --model_name_or_path to another model"
        ) from error
    finally:
        network.train(training)
        torch.set_rng_state(state)


def encode_all(
    row: Task,
    options: TaskArguments,
    data: DataArguments,
    stream: StreamingArguments,
    *,
    found: Examined,
    processor: Any,
    network: Any,
    training: TrainingArguments,
) -> dict[str, Any]:
    """`encode_rows`, with a stream for training where the rows are read as they are needed."""
    features: dict[str, Any] = dict(encode_rows(row, options, found, processor, network, training=training))
    if stream.streaming:
        features["train"] = stream_of(
            row, options, data, stream, found=found, processor=processor, network=network
        )
    return features


def ask(found: Examined, features: Dataset) -> Asked:
    """The evaluation rows that have features, in the order in which a model sees these."""
    assert found.rows.eval is not None
    # answers are matched with rows by place, so that those without features have to go here too
    held = found.rows.eval.select(sorted(set(features["row"][:])))  # of some nothing is left to learn
    return Asked(held, found.columns, by_length(features), found.labels)


def trainer_options(
    row: Task,
    options: TaskArguments,
    processor: Any,
    features: Mapping[str, Dataset],
    asked: Asked,
    *,
    batching: BatchingArguments,
    training: TrainingArguments,
) -> dict[str, Any]:
    """What a task has to say to `make_trainer`: labels, batches, the shape of its loss, answers, and when to
    stop.

    Raises:
        InputError: a row that fits in no batch, weights for classes that aren't there, options that
            generation doesn't have.
    """
    # not even a stream's first rows say how often each class is
    endless = isinstance(features["train"], Stream)
    if endless and options.class_weights:
        raise InputError("--class_weights counts all training rows, and a stream has no end; leave it out")
    if not endless:
        # a budget that no single row fits would give an empty batch, or one above it
        check_budget(features["train"]["length"][:], batching.tokens_per_batch)
    return {
        "batching": batching,
        "labels": asked.labels,
        "shape_loss": shape_loss(
            row, options, training.label_smoothing_factor, features["train"], asked.labels
        ),
        "answer": answerer(row, options, processor, asked, training.per_device_eval_batch_size),
        "patience": options.early_stopping_patience,
        "sets": sets_of(asked),
    }


def sets_of(asked: Asked) -> Sets | None:
    """Which data set each evaluation row is of, by the last part of its name; None where there is one."""
    if SET not in asked.rows.column_names:
        return None
    names = short_names(asked.rows[SET][:])
    numbers: list[int] = asked.features["row"][:]
    # features are sorted by length and rows are not; `row` numbers are raw ones, with gaps
    place = {number: index for index, number in enumerate(sorted(set(numbers)))}
    return Sets([names[place[number]] for number in numbers], names)


def sets_apart(features: Dataset) -> tuple[Dataset, Sets | None]:
    """Evaluation features without their column SET, and which data set each is of; None without one."""
    if SET not in features.column_names:
        return features, None
    ordered = by_length(features)
    names = short_names(ordered[SET][:])
    if "bytes" not in features.column_names:
        return features.remove_columns(SET), Sets(names, [])
    counted: Counter[str] = Counter()
    for name, size in zip(names, ordered["bytes"][:], strict=True):
        counted[name] += size
    return features.remove_columns(SET), Sets(names, [], dict(counted))


def open_folder(
    row: Task, options: Mapping[str, Any], found: Examined, features: Mapping[str, Dataset], network: Any
) -> str | None:
    """Claim the run's folder and write what it is trained on; the checkpoint to go on from, or None.

    Raises:
        InputError: the folder holds another run.
    """
    checkpoint = open_run(dict(options), found.fingerprint, network)
    if found.provenance is not None:
        save_provenance(options["output_dir"], found.provenance, found.rows.train)
    # one writer; the others read nothing of these files
    if PartialState().is_main_process:
        describe_rows(found, features, options["output_dir"], row.baselines)
    return str(checkpoint) if checkpoint else None


def all_intervals(
    trainer: ExactTrainer, asked: Asked, figures: Mapping[str, Any], samples: int = 2000
) -> dict[str, list[float]]:
    """95 % intervals of the task's figures and of the loss, rows resampled (windows of one row stay
    together).
    """
    found = intervals(trainer.row, trainer.answers, figures, samples)
    places = asked.features["row"][:]
    if len(trainer.losses) == len(places):  # a run that was killed at its very end has none any more
        # windows of one row are one draw: resampled singly, they would make intervals too narrow
        own, order = np.unique(np.asarray(places), return_inverse=True)
        sums = np.zeros((len(own), 2))
        # `sums[order] += losses` would count a row with several windows once
        np.add.at(sums, order, trainer.losses)
        found["loss"] = list(bootstrap(sums, mean_figure, samples, block=trainer.row.block))
    return found


def save_run(
    trainer: ExactTrainer, found: Examined, asked: Asked, save_predictions: bool = False
) -> dict[str, Any]:
    """The figures of what was trained, with intervals.

    The main process writes them, the answers, hashes of the training rows, and the artefact.
    """
    metrics = trainer.last_figures()
    metrics["intervals"] = all_intervals(trainer, asked, metrics)
    # every process must take part, before the main one alone goes on to write
    make_whole(trainer.unwrapped())
    if trainer.is_world_process_zero():
        folder = str(trainer.args.output_dir)
        if save_predictions:
            save_answers(trainer.answers, asked, folder, trainer.row.show)
        if found.rows.train is not None:
            save_trained_rows(folder, (found.rows.train, found.columns))
        # last: metrics.json marks the run as finished, so that a kill before it is seen
        save_artefact(
            trainer.unwrapped(), trainer.processing_class, folder, asked.labels, metrics, went_on=True
        )
    return metrics
