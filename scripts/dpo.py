"""Align a model on preference pairs by DPO or a relative; after supervised fine-tuning the reference is the
tuned model.

python scripts/dpo.py --model_name_or_path runs/sft --dataset_name pairs --beta 0.1 --output_dir runs/dpo
python scripts/dpo.py --model_name_or_path smollm2 --dataset_name pairs --loss_type kto --output_dir runs/kto
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.alignment.dpo import DPOTrainingArguments
    from finetune.alignment.preferences import PairArguments
    from finetune.data.sources import DataArguments
    from finetune.methods import MethodArguments
    from finetune.models.load import ModelArguments


def main(
    data: DataArguments,
    pairs: PairArguments,
    model: ModelArguments,
    method: MethodArguments,
    training: DPOTrainingArguments,
) -> None:
    from finetune.training.allocator import keep_freed_memory
    from finetune.training.machine import world_size

    keep_freed_memory()
    from pathlib import Path

    from transformers import set_seed

    from finetune.alignment.dpo import make_dpo_trainer
    from finetune.alignment.policy import load_base
    from finetune.alignment.preferences import pairs_fingerprint, read_pairs, show_pairs
    from finetune.artefacts.folder import resolved_options, save_artefact
    from finetune.artefacts.runs import open_run
    from finetune.methods import attach, find_method
    from finetune.training.options import settled

    world_size()
    set_seed(training.seed)  # the adapter's first weights
    training = settled(training, find_method(method.method).learning_rate / 10)
    with training.main_process_first(desc="reading pairs"):
        processor, network = load_base(model)
        train, held_out = read_pairs(data, pairs, processor, training.max_length)
    if show_pairs(train, held_out, processor, data):
        return
    network = attach(network, method.method, method.method_kwargs, "CAUSAL_LM")
    options = resolved_options(data, pairs, model, method, training)
    checkpoint = open_run(options, pairs_fingerprint(train), network)
    trainer = make_dpo_trainer(network, processor, training, train, held_out)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    figures = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}
    if trainer.is_world_process_zero():
        network = trainer.accelerator.unwrap_model(trainer.model)
        save_artefact(network, processor, Path(training.output_dir), None, figures)
        print(
            "\n".join(f"{name}: {value:.4f}" for name, value in figures.items() if isinstance(value, float))
        )
        print(training.output_dir)


if __name__ == "__main__":
    launch(main)
