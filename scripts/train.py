"""Fine-tune a model on a task by a method: TASKS × METHODS.

  python scripts/train.py --task classification --method lora --model_name_or_path minilm --dataset_name reviews --output_dir runs/x
  accelerate launch --config_file scripts/accelerate/two_cpus.yaml scripts/train.py --config scripts/recipes/reviews_lora.yaml
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.options import launch

if TYPE_CHECKING:
    from finetune.data.batching import BatchingArguments
    from finetune.data.sources import DataArguments
    from finetune.methods import MethodArguments
    from finetune.models.load import ModelArguments
    from finetune.tasks import TaskArguments
    from finetune.training.trainer import TrainingArguments


def main(
    task: TaskArguments,
    data: DataArguments,
    model: ModelArguments,
    method: MethodArguments,
    batching: BatchingArguments,
    training: TrainingArguments,
) -> None:
    from finetune.training.plan import keep_freed_memory, world_size

    keep_freed_memory()
    from finetune.adapters.artefact import resolved_options, save_artefact
    from finetune.data.doctor import examine_classes
    from finetune.data.encode import fingerprint
    from finetune.data.sources import load_rows
    from finetune.methods import attach, find_method
    from finetune.models.load import load_model
    from finetune.tasks import find_task
    from finetune.training.checkpoints import open_run
    from finetune.training.trainer import make_trainer, settled

    world_size()
    row, way = find_task(task.task), find_method(method.method)
    training = settled(training, way.learning_rate)
    with training.main_process_first(desc="reading rows"):
        rows, columns, labels = examine_classes(load_rows(data), data, row.pair)
    processor, network = load_model(model, row.model, labels)
    network = attach(network, method.method, method.method_kwargs, row.peft)
    with training.main_process_first(desc="tokenising"):
        features = {split: row.encode(part, columns, processor, task.max_length, labels) for split, part in rows.splits()}
    options = resolved_options(task, data, model, method, batching, training)
    checkpoint = open_run(options, fingerprint(rows.train, columns))
    trainer = make_trainer(row, network, processor, training, features, labels=labels, batching=batching)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    metrics = trainer.last_figures()
    if trainer.is_world_process_zero():
        save_artefact(trainer.unwrapped(), processor, training.output_dir, labels, metrics)


if __name__ == "__main__":
    launch(main)
