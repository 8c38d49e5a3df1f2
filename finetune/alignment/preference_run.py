"""Preferences → an aligned model in a folder, whatever the loss. Knows rows, trainers and folders;
knows no loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from datasets import Dataset
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
from finetune.privacy.options import PrivacyArguments, check_private
from finetune.training.allocator import keep_freed_memory
from finetune.training.machine import processes
from finetune.training.options import settled


def train_on_pairs(
    data: DataArguments,
    pairs: PairArguments,
    model: ModelArguments,
    method: MethodArguments,
    training: Any,
    *,
    verb: str,
    load: Callable[[ModelArguments], tuple[Any, Any]],
    make: Callable[..., Any],
    task: str,
    rate: float = 1.0,
    further: Sequence[Any] = (),
) -> tuple[Any, Dataset] | None:
    """From options to a trainer that has trained, and its held-out pairs; None where the run ends at the
    rows.

    Args:
        load: model options → processor and network.
        make: network, processor, training options, training and held-out pairs → TRL's trainer.
        task: PEFT's name of it.
        rate: times the method's learning rate, where none is given.
        further: groups of options that `make` was told of already.
    """
    keep_freed_memory()
    processes(verb)
    set_seed(training.seed)  # the first weights of adapter and head
    training = cast(PairTraining, settled(training, find_method(method.method).learning_rate * rate))
    read = read_unpaired if isinstance(training, KTOTrainingArguments) else read_pairs
    with training.main_process_first(desc="reading pairs"):
        processor, network = load(model)
        train, held_out = read(data, pairs, processor, training.max_length)
    if show_pairs(train, held_out, processor, data):
        return None
    network = attach(network, method.method, method.method_kwargs, task)
    options = resolved_options(data, pairs, model, method, training, *further)
    checkpoint = open_run(options, pairs_fingerprint(train), network)
    trainer = make(network, processor, training, train, held_out)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    return trainer, held_out


def align_on_pairs(
    data: DataArguments,
    pairs: PairArguments,
    model: ModelArguments,
    method: MethodArguments,
    training: PairTraining,
    *,
    privacy: PrivacyArguments | None = None,
) -> None:
    """The whole of scripts/dpo.py, whose losses differ in `training` alone."""
    make: Callable[..., Any] = make_dpo_trainer
    if privacy is not None:
        check_private(privacy, training, model.model_name_or_path)
        make = partial(make_dpo_trainer, privacy=privacy, start=model.model_name_or_path)
    trained = train_on_pairs(
        data, pairs, model, method, training,
        verb="dpo", load=load_start, make=make, task="CAUSAL_LM", rate=0.1,
        further=[] if privacy is None else [privacy],
    )  # fmt: skip
    if trained is None:
        return
    trainer, _ = trained
    figures = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}
    if trainer.is_world_process_zero():
        network, folder = trainer.accelerator.unwrap_model(trainer.model), Path(training.output_dir)
        save_artefact(network, trainer.processing_class, folder, None, figures)
        print(
            "\n".join(f"{name}: {value:.4f}" for name, value in figures.items() if isinstance(value, float))
        )
        print(folder)
