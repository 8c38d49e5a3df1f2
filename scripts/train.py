"""Fine-tune a model on a task by a method: TASKS × METHODS.

python scripts/train.py --task classification --method lora --model_name_or_path minilm \\
    --dataset_name reviews --output_dir runs/x
accelerate launch --config_file scripts/accelerate/two_cpus.yaml scripts/train.py \\
    --config scripts/recipes/reviews_lora.yaml

A row of each task, as a JSON line or with these columns in a table (others: docs/data_layouts.md):

    classification  {"text": "a fine film", "label": "pos"}
    pairs           {"premise": "A man sings.", "hypothesis": "Somebody sings.", "label": 0}
    multilabel      {"text": "hills and snow", "labels": ["hills", "snow"]}
    regression      {"text": "a fine film", "score": 4.5}
    tokens          {"tokens": ["In", "New", "York"], "ner_tags": ["O", "B-LOC", "I-LOC"]}
    spans           {"question": "Where?", "context": "It is in Oslo.", "answer": "Oslo"}
    seq2seq         {"instruction": "Translate.", "input": "Rome", "output": "Rom"}
    choice          {"question": "Capital?", "choices": ["Oslo", "Bergen"], "answer": 0}
    image           {"image": "cats/7.png", "label": "cat"}
    audio           {"audio": "words/one.wav", "label": "one"}
    series          {"series": [0.5, 1.5, 1.0], "label": "beat"}
    forecast        {"date": "2016-07-01 00:00:00", "load": 5.8}

Paths are from the table's folder; pictures and sounds may also lie in a folder a class, without a table.
Rows of a forecast follow each other in time, a number column each channel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune.cli.parser import launch

# for the annotations of `main` alone: `--help` reads them as text, without these modules and torch
if TYPE_CHECKING:
    from finetune.data.batching import BatchingArguments
    from finetune.data.sources import FewShotArguments
    from finetune.data.streaming import StreamingArguments
    from finetune.methods import MethodArguments
    from finetune.metrics.further import MetricArguments
    from finetune.models.load import ModelArguments
    from finetune.models.scratch import ScratchArguments
    from finetune.privacy.options import PrivacyArguments
    from finetune.tasks.options import TaskArguments
    from finetune.training.distil import DistilArguments
    from finetune.training.options import TrainingArguments


def main(
    task: TaskArguments,
    data: FewShotArguments,
    stream: StreamingArguments,
    model: ModelArguments,
    scratch: ScratchArguments,
    method: MethodArguments,
    batching: BatchingArguments,
    metric: MetricArguments,
    privacy: PrivacyArguments,
    distil: DistilArguments,
    training: TrainingArguments,
) -> None:
    # the allocator's setting counts from the first tensor on, so that it stands before all other imports
    from finetune.training.allocator import keep_freed_memory
    from finetune.training.machine import processes

    keep_freed_memory()
    from finetune.methods import find_method
    from finetune.models.scratch import FROM_NOTHING, check_method_from_scratch
    from finetune.tasks.table import find_task
    from finetune.training import baselines
    from finetune.training.options import settled
    from finetune.training.seeds import finished, repeats, save_spread
    from finetune.training.streamed import check_stream

    # refusals that need no rows and no model come first
    processes("train")
    check_stream(stream, data, batching, training, private=privacy.wanted)
    check_method_from_scratch(scratch, method.method)
    # new weights bear a larger step than weights that know something
    rate = FROM_NOTHING if scratch.from_config else find_method(method.method).learning_rate
    best = find_task(task.task).best
    # a bag of words is fitted by scikit-learn in one go: no steps, no checkpoints, no network
    fitted = model.model_name_or_path in baselines.BASELINES and scratch.from_config is None
    one = baselines.run_baseline if fitted else run
    # several with --seeds, each in a folder of its own
    runs = []
    for chosen, each in repeats(data, training):
        groups = (
            task,
            chosen,
            stream,
            model,
            scratch,
            method,
            batching,
            metric,
            privacy,
            distil,
            settled(each, rate, best, task.early_stopping_patience),
        )
        # of a series that was stopped only what is missing is run again
        runs.append((data.seeds > 1 and finished(*groups)) or one(*groups))
    # every process trained; one writes
    if len(runs) > 1 and not data.check and training.process_index == 0:
        print(save_spread(runs, training.output_dir, best))


def run(
    task: TaskArguments,
    data: FewShotArguments,
    stream: StreamingArguments,
    model: ModelArguments,
    scratch: ScratchArguments,
    method: MethodArguments,
    batching: BatchingArguments,
    metric: MetricArguments,
    privacy: PrivacyArguments,
    distil: DistilArguments,
    training: TrainingArguments,
) -> dict[str, Any]:
    """One run, from rows to its folder; its figures."""
    from dataclasses import replace

    from finetune.adapters.teacher import load_teacher
    from finetune.artefacts.folder import resolved_options
    from finetune.data.preview import show_features
    from finetune.methods import find_method
    from finetune.metrics.further import with_metrics
    from finetune.models.scratch import planned
    from finetune.privacy.options import blind, check_private
    from finetune.privacy.trainer import private_parts
    from finetune.tasks.table import settle
    from finetune.training import run as steps
    from finetune.training.continuing import foundation, tune
    from finetune.training.distil import taught_by
    from finetune.training.trainer import ExactTrainer, make_trainer

    # as the user gave them: the folder shall say what was asked for, before rows and models settle it
    options = resolved_options(
        task, data, stream, model, scratch, method, batching, metric, privacy, distil, training
    )
    started = model.model_name_or_path
    # before the rows are read: what can't be private is refused at once
    check_private(privacy, training, started, batching, weights=task.class_weights)
    model, before = (model, None) if scratch.from_config else foundation(model)
    row = settle(task, planned(model, scratch))
    # further figures are computed wherever the task's own are
    start = blind(row.start, privacy, row.reads)
    row = replace(row, figures=with_metrics(row.figures, metric.metrics), start=start)
    found = steps.examine_rows(row, data, training, options, stream)
    processor, network = steps.load_for(
        row, model, found, scratch=scratch, quantized=find_method(method.method).quantized
    )
    # a folder with an adapter goes on with that adapter; any other model gets a new one
    processor, network = tune(
        network, processor, method, row.peft, before, labels=found.labels, reads=row.reads
    )
    loaded = {"found": found, "processor": processor, "network": network}
    features = steps.encode_all(row, task, data, stream, **loaded, training=training)
    # --check ends here, with nothing written
    if show_features(features, processor, found.labels, data):
        return {}
    asked = steps.ask(found, features["eval"])
    further = steps.trainer_options(
        row, task, processor, features, asked, batching=batching, training=training
    )
    # may change the trainer's class, so that it comes before what only adds arguments
    further |= private_parts(privacy, training, ExactTrainer, features, network, start=started)
    further |= taught_by(load_teacher(distil, task.task, row, found, processor), distil, further)
    # after all that can be refused, so that a refused run leaves no folder
    checkpoint = steps.open_folder(row, options, found, features, network)
    trainer = make_trainer(row, network, processor, training, features, **further)
    trainer.train(resume_from_checkpoint=checkpoint)
    return steps.save_run(trainer, found, asked, task.save_predictions)


if __name__ == "__main__":
    launch(main)
