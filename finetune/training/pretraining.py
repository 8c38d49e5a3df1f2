"""The exact trainer for texts whose noise changes from epoch to epoch, and for streams. Knows loaders; knows
no objective.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from finetune.artefacts.folder import save_artefact
from finetune.artefacts.provenance import provenance_of, save_provenance
from finetune.artefacts.runs import open_run
from finetune.artefacts.trained_rows import save_trained_rows
from finetune.data.batching import BatchingArguments, EpochLoader, LengthBatches
from finetune.data.sources import TextArguments
from finetune.errors import InputError
from finetune.methods import attach, check_length
from finetune.models.load import ModelArguments
from finetune.models.processors import TEXT
from finetune.models.scratch import ScratchArguments, check_method_from_scratch, prepare
from finetune.models.sharded import make_whole
from finetune.objectives.contrastive import ContrastiveArguments, save_sentence_encoder
from finetune.objectives.features import ObjectiveRows
from finetune.objectives.options import ObjectiveArguments, TuningArguments
from finetune.objectives.streams import Stream, StreamArguments, parse_mixture
from finetune.objectives.table import Objective, check_method, check_model, check_objective, settle_objective
from finetune.training.options import TrainingArguments
from finetune.training.streamed import check_stream
from finetune.training.trainer import ExactTrainer

Visit = tuple[int, int]


class Visits(Sampler[list[Visit]]):
    """Batches of (row, epoch): with the epoch in its hand a row's noise is the same in worker processes and
    after resuming.
    """

    def __init__(self, batches: LengthBatches) -> None:
        self.batches = batches

    def set_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Visit]]:
        for batch in self.batches:
            # in the batch and no attribute of the data set: workers that stay alive hold a copy of that
            yield [(row, self.batches.epoch) for row in batch]


class Visited(TorchDataset):
    """Features that know the epoch in which they are visited."""

    def __init__(self, features: Dataset) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, visit: Visit) -> dict[str, Any]:
        # the collator draws the noise, and asks for the row and this epoch
        return self.features[visit[0]] | {"epoch": visit[1]}


class FreshTrainer(ExactTrainer):
    """ExactTrainer on visited rows or on a stream."""

    def get_train_dataloader(self) -> DataLoader:
        args = self.args
        plain = super().get_train_dataloader()
        # a stream numbers its rows on and on, so that each has noise of its own without an epoch
        if isinstance(self.train_dataset, Stream):
            return plain
        # the batches of the exact loader, dealt out by process already
        return EpochLoader(
            Visited(self.train_dataset),
            batch_sampler=Visits(plain.batch_sampler),  # type: ignore[arg-type]
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
        )


def settle_pretraining(
    objective: ObjectiveArguments,
    contrastive: ContrastiveArguments,
    stream: StreamArguments,
    data: TextArguments,
    *,
    batching: BatchingArguments,
    training: TrainingArguments,
    method: str,
    family: str,
) -> Objective:
    """The row of OBJECTIVES with the options in it, after all checks that need no model and no rows.

    Args:
        method: a row of METHODS.
        family: the model's type.

    Raises:
        InputError: options that don't go together, or a model or a method that the objective can't train.
    """
    row = settle_objective(objective, contrastive, training.seed, family)
    check_model(objective.objective, row, family)
    check_method(objective.objective, row, method)
    # with negatives of its own a row has something to be told from even alone
    alone = objective.objective == "contrastive" and contrastive.negative_column is None
    check_pretraining(stream, data, batching, training, in_batch=alone)
    return row


def prepare_tuned(
    row: Objective,
    objective: ObjectiveArguments,
    contrastive: ContrastiveArguments,
    model: ModelArguments,
    *,
    scratch: ScratchArguments,
    tuning: TuningArguments,
) -> tuple[Any, Any]:
    """Processor and network, tuned by the method, after the checks that need them.

    Raises:
        InputError: see `check_objective`; an adapter on a model that is made anew; or a row longer than the
            model has positions.
    """
    check_method_from_scratch(scratch, tuning.method)
    length = objective.max_length if row.reads == TEXT else None
    processor, network = prepare(model, scratch, row.model, length, reads=row.reads, sized=row.sized)
    check_objective(
        objective.objective,
        row,
        network,
        # the attention that was asked for, not the one in use: a choice of the user's isn't changed silently
        processor,
        supervised=contrastive.supervised,
        attention=model.attn_implementation,
    )
    network = attach(network, tuning.method, tuning.method_kwargs, row.peft)
    if length is not None:
        check_length(network, length)
    return processor, network


def claim_pretraining(
    options: dict[str, Any],
    found: ObjectiveRows,
    network: Any,
    *,
    data: TextArguments,
    stream: StreamArguments,
) -> Path | None:
    """The checkpoint to go on from, or None, once the folder is claimed and holds what is told of the rows:
    provenance.json, and hashes of the texts.

    Raises:
        InputError: see `artefacts.runs.open_run`.
    """
    checkpoint, folder = open_run(options, found.key, network), options["output_dir"]
    named = list(parse_mixture(stream.mixture)) if stream.mixture else data.dataset_name
    save_provenance(folder, provenance_of(found.read, replace(data, dataset_name=named)), found.rows)
    if found.rows is not None and PartialState().is_main_process:
        save_trained_rows(folder, (found.rows, found.columns))
    return checkpoint


def save_pretrained(
    trainer: ExactTrainer, processor: Any, objective: ObjectiveArguments, contrastive: ContrastiveArguments
) -> None:
    """What a run leaves: the artefact, and for vectors of texts what sentence-transformers reads."""
    # on every process: both ask all of them for what they hold
    figures, network = trainer.last_figures(), trainer.unwrapped()
    make_whole(network)
    if not trainer.is_world_process_zero():
        return
    folder = str(trainer.args.output_dir)
    # first, since `save_artefact` ends with metrics.json, the sign of a finished run
    if objective.objective == "contrastive":
        save_sentence_encoder(network, processor, folder, contrastive.pooling, objective.max_length)
    save_artefact(network, processor, folder, None, figures)


def check_pretraining(
    stream: StreamArguments,
    data: TextArguments,
    batching: BatchingArguments,
    training: TrainingArguments,
    *,
    in_batch: bool = False,
) -> None:
    """Options that pretraining, or a stream, which has no end and no length, has no use for.

    Args:
        in_batch: whether a row is told from the others of its batch alone.

    Raises:
        InputError: one is set, or one that a stream needs is not; or batches of one row, which has nothing to
            be told from.
    """
    # batches over all processes are compared together
    if (
        in_batch
        and training.per_device_train_batch_size * training.world_size < 2
        # with a budget of tokens the number of rows is not known before they are read
        and batching.tokens_per_batch is None
    ):
        raise InputError(
            "One row a batch has no other to be told from; set --per_device_train_batch_size 2 or higher"
        )
    if training.label_smoothing_factor:
        raise InputError("Objectives have no use for --label_smoothing_factor; leave it out")
    check_stream(stream, data, batching, training, mixed=bool(stream.mixture))
