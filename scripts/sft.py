"""Instruction tuning: prompts and completions, or chats with tools, on TRL's SFTTrainer with packed rows and
exact losses.

python scripts/sft.py --model_name_or_path smollm2 --dataset_name chats.jsonl --output_dir runs/alpaca
python scripts/sft.py --config scripts/recipes/gsm8k_lora.yaml --output_dir runs/gsm8k

Rows, as JSON lines or as a table with these columns (others, and files: docs/data_layouts.md):

    {"prompt": "Capital of Norway?", "completion": "Oslo"}
    {"instruction": "Name the capital.", "input": "Norway", "output": "Oslo"}
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.data.batching import BatchingArguments
    from finetune.data.sources import DataArguments
    from finetune.data.streaming import StreamingArguments
    from finetune.methods import MethodArguments
    from finetune.models.load import ModelArguments
    from finetune.privacy.options import PrivacyArguments
    from finetune.tasks.sft import InstructionArguments
    from finetune.training.sft import SftArguments

# asked for at once: no default of these would fit
REQUIRED = ("model_name_or_path", "dataset_name", "output_dir")


def main(
    instruct: InstructionArguments,
    data: DataArguments,
    stream: StreamingArguments,
    model: ModelArguments,
    method: MethodArguments,
    batching: BatchingArguments,
    privacy: PrivacyArguments,
    training: SftArguments,
) -> None:
    from finetune.training.allocator import keep_freed_memory
    from finetune.training.machine import processes

    # before the first tensor, and so before the imports below
    keep_freed_memory()
    from dataclasses import replace

    from finetune.artefacts.folder import resolved_options
    from finetune.data.preview import show_features
    from finetune.methods import find_method
    from finetune.models.load import architecture
    from finetune.privacy.options import check_private
    from finetune.privacy.trainer import private_parts
    from finetune.tasks.table import settle
    from finetune.training import run as steps
    from finetune.training.continuing import foundation, tune
    from finetune.training.options import settled
    from finetune.training.sft import InstructTrainer, as_task, in_lines, make_instruct_trainer
    from finetune.training.streamed import check_stream

    processes("sft")
    check_stream(stream, data, batching, training, private=privacy.wanted)
    check_private(privacy, training, model.model_name_or_path, batching, own_noise=True)
    # TRL's names for what the table's row has under others
    task, changes = as_task(instruct, training)
    # the folder keeps what the user named, the loader gets the base below an adapter
    asked_for, (model, before) = model, foundation(model)
    row = replace(settle(task, architecture(model)), **changes)
    training = settled(
        training, find_method(method.method).learning_rate, row.best, task.early_stopping_patience
    )
    options = resolved_options(instruct, data, stream, asked_for, method, batching, privacy, training)
    found = steps.examine_rows(row, data, training, options, stream)
    processor, network = steps.load_for(
        row, model, found, chats=bool(instruct.chat), quantized=find_method(method.method).quantized
    )
    # the model is asked whether it keeps packed texts apart; if not, rows are padded
    row = in_lines(row, network, method.method, training.packing)
    # after packing, which asks the bare model; an adapter wraps it here
    processor, network = tune(network, processor, method, row.peft, before)
    loaded = {"found": found, "processor": processor, "network": network}
    features = steps.encode_all(row, task, data, stream, **loaded, training=training)
    if show_features(features, processor, found.labels, data):
        return
    asked = steps.ask(found, features["eval"])
    further = steps.trainer_options(
        row, task, processor, features, asked, batching=batching, training=training
    )
    # a private run clips each row's gradient and needs a trainer of its own
    started = asked_for.model_name_or_path
    further |= private_parts(privacy, training, InstructTrainer, features, network, start=started)
    # the last refusal: an occupied folder, before the first step
    checkpoint = steps.open_folder(row, options, found, features, network)
    trainer = make_instruct_trainer(row, network, processor, training, features, **further)
    trainer.train(resume_from_checkpoint=checkpoint)
    steps.save_run(trainer, found, asked, instruct.save_predictions)


if __name__ == "__main__":
    launch(main)
