"""Instruction tuning: prompts and completions, or chats with tools, on TRL's SFTTrainer with packed rows and exact losses.

python scripts/sft.py --model_name_or_path smollm2 --dataset_name ../shared/data/alpaca_en_demo --output_dir runs/alpaca
python scripts/sft.py --config scripts/recipes/gsm8k_lora.yaml --output_dir runs/gsm8k
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.data.batching import BatchingArguments
    from finetune.data.sources import DataArguments
    from finetune.methods import MethodArguments
    from finetune.models.load import ModelArguments
    from finetune.tasks.sft import InstructionArguments
    from finetune.training.sft import SftArguments


def main(
    instruct: InstructionArguments,
    data: DataArguments,
    model: ModelArguments,
    method: MethodArguments,
    batching: BatchingArguments,
    training: SftArguments,
) -> None:
    from finetune.training.allocator import keep_freed_memory
    from finetune.training.machine import world_size

    keep_freed_memory()
    from dataclasses import replace

    from transformers import set_seed

    from finetune.artefacts.checkpoints import open_run
    from finetune.artefacts.folder import resolved_options, save_artefact
    from finetune.data.encode import fingerprint
    from finetune.data.sources import load_rows
    from finetune.methods import attach, check_packed, find_method
    from finetune.models.attention.packed import pack
    from finetune.models.load import architecture, load_model
    from finetune.tasks.answers import answerer, save_answers
    from finetune.tasks.limits import check_features
    from finetune.tasks.options import TaskArguments
    from finetune.tasks.sft import as_asked, packed
    from finetune.tasks.table import settle
    from finetune.tasks.task import Asked, intervals
    from finetune.training.sft import make_instruct_trainer
    from finetune.training.trainer import by_length, settled

    world_size()
    task = TaskArguments(task=instruct.task, max_target_length=instruct.max_new_tokens)
    changes = as_asked(
        instruct.chat, training.assistant_only_loss, training.completion_only_loss, instruct.write_answers
    )
    row = replace(settle(task, architecture(model)), **changes)
    training = settled(training, find_method(method.method).learning_rate, row.best)
    set_seed(training.seed)
    with training.main_process_first(desc="reading rows"):
        rows, columns, _ = row.examine(load_rows(data), data)
    processor, network = load_model(model, row.model)
    if training.packing:
        check_packed(method.method, " or --packing false")
        row = packed(row) if pack(network) else row
    network = attach(network, method.method, method.method_kwargs, row.peft)
    with training.main_process_first(desc="tokenising"):
        features = {
            split: row.encode(part, columns, processor, training.max_length, None)
            for split, part in rows.splits()
        }
    check_features(row, task, network, processor, features)
    asked = Asked(
        rows.eval.select(sorted(features["eval"]["row"])), columns, by_length(features["eval"]), None
    )
    answer = answerer(row, task, processor, asked, training.per_device_eval_batch_size)
    options = resolved_options(instruct, data, model, method, batching, training)
    checkpoint = open_run(options, fingerprint(rows.train, columns))
    trainer = make_instruct_trainer(
        row, network, processor, training, features, batching=batching, answer=answer
    )
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    metrics = trainer.last_figures()
    metrics["intervals"] = intervals(row, trainer.answers, metrics)
    if trainer.is_world_process_zero():
        if instruct.save_predictions:
            save_answers(trainer.answers, asked, training.output_dir)
        save_artefact(trainer.unwrapped(), processor, training.output_dir, None, metrics)


if __name__ == "__main__":
    launch(main)
