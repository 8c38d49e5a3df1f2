"""Learn to mix several bottleneck adapters of one base for a task (AdapterFusion): adapters stay as they are,
attention over them is trained.

python scripts/fuse.py --adapters runs/films runs/books --task classification --dataset_name reviews \\
    --output_dir runs/fused
python scripts/assess.py --artefact runs/fused --dataset_name reviews --eval_split test
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.adapters.fusion import FusionArguments
    from finetune.data.batching import BatchingArguments
    from finetune.data.narrowed import UnshownArguments
    from finetune.tasks.options import TaskArguments
    from finetune.training.options import TrainingArguments

# asked for at once: no default of these would fit
REQUIRED = ("adapters", "output_dir")


def main(
    fusion: FusionArguments,
    task: TaskArguments,
    data: UnshownArguments,
    batching: BatchingArguments,
    training: TrainingArguments,
) -> None:
    from finetune.training.allocator import keep_freed_memory
    from finetune.training.machine import processes

    # before the first tensor, and so before the imports below
    keep_freed_memory()
    from pathlib import Path

    from finetune.adapters.fusion import LEARNING_RATE, fuse_folders, save_fused, with_drift
    from finetune.adapters.loading import base_of
    from finetune.artefacts.folder import resolved_options
    from finetune.artefacts.provenance import save_provenance
    from finetune.artefacts.runs import open_run
    from finetune.artefacts.trained_rows import save_trained_rows
    from finetune.models.load import ModelArguments, architecture
    from finetune.tasks.table import settle
    from finetune.training import run as steps
    from finetune.training.options import settled
    from finetune.training.trainer import make_trainer

    processes("fuse")
    folders = [Path(folder) for folder in fusion.checked()]
    # the base is the adapters' own: a user's word could only contradict it
    model = ModelArguments(model_name_or_path=base_of(folders[0]))
    row = settle(task, architecture(model))
    training = settled(training, LEARNING_RATE, row.best, task.early_stopping_patience)
    # no --method here: the folder says by name what made it
    options = resolved_options(fusion, task, data, model, batching, training) | {"method": "fusion"}
    found = steps.examine_rows(row, data, training, options)
    processor, network = steps.load_for(row, model, found)
    # refused here: adapters of another base, or of other classes
    tuned = fuse_folders(network, folders, processor, found.labels, fusion.allow_mismatch)
    features = steps.encode_rows(row, task, found, processor, network, training=training)
    checkpoint = open_run(options, found.fingerprint, network)
    save_provenance(training.output_dir, found.provenance or {}, found.rows.train)
    # the model under PEFT's: its checkpoints hold everything that runs, fusion included
    trainer = make_trainer(
        with_drift(row, network, fusion.drift_weight), network, processor, training, features,
        labels=found.labels, batching=batching, patience=task.early_stopping_patience,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics = trainer.last_figures()
    # figures are computed by all, files written by one
    if trainer.is_world_process_zero():
        if found.rows.train is not None:
            save_trained_rows(training.output_dir, (found.rows.train, found.columns))
        save_fused(tuned, processor, training.output_dir, folders, labels=found.labels, metrics=metrics)


if __name__ == "__main__":
    launch(main)
