"""Fine-tune a model on a task by a method: TASKS × METHODS.

python scripts/train.py --task classification --method lora --model_name_or_path minilm --dataset_name reviews --output_dir runs/x
accelerate launch --config_file scripts/accelerate/two_cpus.yaml scripts/train.py --config scripts/recipes/reviews_lora.yaml
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.data.batching import BatchingArguments
    from finetune.data.sources import FewShotArguments
    from finetune.methods import MethodArguments
    from finetune.models.load import ModelArguments
    from finetune.tasks.options import TaskArguments
    from finetune.training.trainer import TrainingArguments


def main(
    task: TaskArguments,
    data: FewShotArguments,
    model: ModelArguments,
    method: MethodArguments,
    batching: BatchingArguments,
    training: TrainingArguments,
) -> None:
    from finetune.training.allocator import keep_freed_memory
    from finetune.training.machine import world_size

    keep_freed_memory()
    from finetune.artefacts.folder import resolved_options
    from finetune.methods import find_method
    from finetune.tasks.table import find_task
    from finetune.training.seeds import finished, repeats, save_spread
    from finetune.training.trainer import settled

    world_size()
    rate, best = find_method(method.method).learning_rate, find_task(task.task).best
    runs = []
    for chosen, settings in repeats(data, training):
        settings = settled(settings, rate, best, task.early_stopping_patience)
        done = (
            finished(resolved_options(task, chosen, model, method, batching, settings))
            if data.seeds > 1
            else None
        )
        runs.append(done or run(task, chosen, model, method, batching, settings))
    if len(runs) > 1 and training.process_index == 0:
        print(save_spread(runs, training.output_dir, best))


def run(
    task: TaskArguments,
    data: FewShotArguments,
    model: ModelArguments,
    method: MethodArguments,
    batching: BatchingArguments,
    training: TrainingArguments,
) -> dict[str, Any]:
    """One run, from rows to its folder; its figures."""
    from transformers import set_seed

    from finetune.artefacts.checkpoints import open_run
    from finetune.artefacts.folder import resolved_options, save_artefact
    from finetune.data.batching import check_budget
    from finetune.data.encode import fingerprint
    from finetune.data.sources import load_rows
    from finetune.methods import attach
    from finetune.models.load import architecture, check_room, load_model
    from finetune.tasks.answers import answerer, save_answers
    from finetune.tasks.limits import check_features
    from finetune.tasks.table import settle
    from finetune.tasks.task import Asked, intervals
    from finetune.tasks.weighting import shape_loss
    from finetune.training.trainer import by_length, make_trainer

    row = settle(task, architecture(model))
    set_seed(training.seed)
    with training.main_process_first(desc="reading rows"):
        rows, columns, labels = row.examine(load_rows(data), data)
    processor, network = load_model(model, row.model, labels, **row.config)
    if row.start is not None:
        row.start(network, rows.train[columns.label][:])
    check_room(processor, task.max_length, row.pair)
    network = attach(network, method.method, method.method_kwargs, row.peft)
    with training.main_process_first(desc="tokenising"):
        features = {
            split: row.encode(part, columns, processor, task.max_length, labels)
            for split, part in rows.splits()
        }
    check_budget(features["train"]["length"][:], batching.tokens_per_batch)
    check_features(row, task, network, processor, features)
    asked = Asked(
        rows.eval.select(sorted(set(features["eval"]["row"][:]))),
        columns,
        by_length(features["eval"]),
        labels,
    )
    shape = shape_loss(row, task, training.label_smoothing_factor, features["train"], labels)
    answer = answerer(row, task, processor, asked, training.per_device_eval_batch_size)
    options = resolved_options(task, data, model, method, batching, training)
    checkpoint = open_run(options, fingerprint(rows.train, columns))
    trainer = make_trainer(
        row, network, processor, training, features,
        labels=labels, batching=batching, shape_loss=shape, answer=answer, patience=task.early_stopping_patience,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    metrics = trainer.last_figures()
    metrics["intervals"] = intervals(row, trainer.answers, metrics)
    if trainer.is_world_process_zero():
        if task.save_predictions:
            save_answers(trainer.answers, asked, training.output_dir)
        save_artefact(trainer.unwrapped(), processor, training.output_dir, labels, metrics)
    return metrics


if __name__ == "__main__":
    launch(main)
