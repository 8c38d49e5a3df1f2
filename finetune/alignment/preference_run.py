"""Preferences → an aligned model in a folder, whatever the loss. Knows rows, trainers and folders;
knows no loss.
"""

from __future__ import annotations

from pathlib import Path

from transformers import set_seed

from finetune.alignment.dpo import PairTraining, make_dpo_trainer
from finetune.alignment.pair_options import KTOTrainingArguments
from finetune.alignment.policy import load_start
from finetune.alignment.preferences import (
    PairArguments,
    pairs_fingerprint,
    read_pairs,
    read_unpaired,
    show_pairs,
)
from finetune.artefacts.folder import resolved_options, save_artefact
from finetune.artefacts.runs import open_run
from finetune.data.sources import DataArguments
from finetune.methods import MethodArguments, attach, find_method
from finetune.models.load import ModelArguments
from finetune.training.allocator import keep_freed_memory
from finetune.training.machine import processes
from finetune.training.options import settled


def align_on_pairs(
    data: DataArguments,
    pairs: PairArguments,
    model: ModelArguments,
    method: MethodArguments,
    training: PairTraining,
) -> None:
    """The whole of scripts/dpo.py, whose losses differ in `training` alone."""
    keep_freed_memory()
    processes("dpo")
    set_seed(training.seed)  # the adapter's first weights
    training = settled(training, find_method(method.method).learning_rate / 10)
    read = read_unpaired if isinstance(training, KTOTrainingArguments) else read_pairs
    with training.main_process_first(desc="reading pairs"):
        processor, network = load_start(model)
        train, held_out = read(data, pairs, processor, training.max_length)
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
        save_artefact(network, processor, Path(str(training.output_dir)), None, figures)
        print(
            "\n".join(f"{name}: {value:.4f}" for name, value in figures.items() if isinstance(value, float))
        )
        print(training.output_dir)
