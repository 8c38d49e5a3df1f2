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

from finetune.alignment.dpo import PairTraining, check_pairs_are_private, for_stream, plan_dpo
from finetune.alignment.pair_input import (
    is_endless,
    learnt_answers,
    pairs_fingerprint,
    places_by_set,
    read_preferences,
    show_pairs,
)
from finetune.alignment.pair_options import KTOTrainingArguments
from finetune.alignment.policy import load_start
from finetune.alignment.preferences import PairArguments
from finetune.artefacts.folder import resolved_options, save_artefact
from finetune.artefacts.provenance import provenance_of, save_provenance
from finetune.artefacts.runs import open_run
from finetune.artefacts.trained_rows import save_trained_rows, unseen_by_start
from finetune.data.columns import Columns
from finetune.data.sources import DataArguments, Rows, load_rows
from finetune.data.streaming import StreamingArguments
from finetune.methods import MethodArguments, attach, find_method
from finetune.models.load import ModelArguments
from finetune.models.sharded import make_whole
from finetune.privacy.options import PrivacyArguments, check_private
from finetune.training.allocator import keep_freed_memory
from finetune.training.machine import processes
from finetune.training.optimizers import check_optimizer
from finetune.training.options import settled
from finetune.training.streamed import check_stream


def train_on_pairs(
    data: DataArguments,
    pairs: PairArguments,
    model: ModelArguments,
    method: MethodArguments,
    training: Any,
    *,
    verb: str,
    load: Callable[[ModelArguments], tuple[Any, Any]],
    plan: Callable[..., Callable[[], Any]],
    task: str,
    rate: float = 1.0,
    further: Sequence[Any] = (),
    stream: StreamingArguments,
    private: bool = False,
) -> tuple[Any, Dataset] | None:
    """From options to a trainer that has trained, and its held-out pairs; None where the run ends at the
    rows.

    Args:
        load: model options → processor and network.
        plan: network, processor, training options, training and held-out pairs → what makes TRL's trainer.
        task: PEFT's name of it.
        rate: times the method's learning rate, where none is given.
        further: groups of options that `plan` was told of already.
        private: whether `plan` trains with differential privacy.
    """
    keep_freed_memory()
    processes(verb)
    if check_stream(stream, data, None, training, private=private):
        training = for_stream(training)
    set_seed(training.seed)  # the first weights of adapter and head
    training = cast(PairTraining, settled(training, find_method(method.method).learning_rate * rate))
    single = isinstance(training, KTOTrainingArguments)
    # One process fills the caches that the others read.
    with training.main_process_first(desc="reading pairs"):
        processor, network = load(model)
        read = Rows(None, None, data.name) if stream.streaming else load_rows(data)
        train, held_out = read_preferences(
            data, pairs, processor, training.max_length, stream=stream, single=single, rows=read
        )
        # whatever the start learnt of them: their prompts, or prompts with answers
        held_out = unseen_by_start(model.model_name_or_path, held_out, None)
    # Before the adapter is made: `--check` ends here and should be quick.
    if show_pairs(train, held_out, processor, data):
        return None
    network = attach(network, method.method, method.method_kwargs, task)
    check_optimizer(training, network)
    options = resolved_options(data, pairs, stream, model, method, training, *further)
    # refuses before the folder is claimed: a refused run leaves none
    make = plan(network, processor, training, train, held_out)
    checkpoint = open_run(options, pairs_fingerprint(train, data), network)
    used = None if is_endless(train) else cast(Dataset, train)
    save_provenance(options["output_dir"], provenance_of(read, data), used)
    # an audit asks for them; a scorer writes no answer that it could ask for
    if used is not None and task == "CAUSAL_LM" and training.process_index == 0:
        asked = (used, Columns("prompt", None, "prompt"))
        # a chat with its answer, and what was asked alone: others ask it without that answer
        save_trained_rows(options["output_dir"], learnt_answers(used), asked)
    trainer = make()
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    return trainer, held_out


def align_on_pairs(
    data: DataArguments,
    pairs: PairArguments,
    model: ModelArguments,
    method: MethodArguments,
    training: PairTraining,
    *,
    stream: StreamingArguments,
    privacy: PrivacyArguments | None = None,
) -> None:
    """The whole of scripts/dpo.py, whose losses differ in `training` alone."""
    plan: Callable[..., Callable[[], Any]] = plan_dpo
    if privacy is not None:
        check_private(privacy, training, model.model_name_or_path)
        check_pairs_are_private(privacy, training)
        plan = partial(plan_dpo, privacy=privacy, start=model.model_name_or_path)
    trained = train_on_pairs(
        data, pairs, model, method, training,
        verb="dpo", load=load_start, plan=plan, task="CAUSAL_LM", rate=0.1,
        further=[] if privacy is None else [privacy], stream=stream,
        private=privacy is not None and privacy.wanted,
    )  # fmt: skip
    if trained is None:
        return
    trainer, held_out = trained
    figures = {name.removeprefix("eval_"): value for name, value in last_evaluation(trainer).items()}
    figures |= figures_by_set(trainer, held_out)
    # every process takes part, before the main one alone goes on to write
    make_whole(trainer.accelerator.unwrap_model(trainer.model))
    if trainer.is_world_process_zero():
        network, folder = trainer.accelerator.unwrap_model(trainer.model), Path(training.output_dir)
        save_artefact(network, trainer.processing_class, folder, None, figures)
        print(folder)


def last_evaluation(trainer: Any) -> dict[str, Any]:
    """TRL's figures of the model as it is: the last step's, where it was evaluated."""
    logged = trainer.state.log_history
    # the best checkpoint may be another step's
    known = [] if trainer.args.load_best_model_at_end else [line for line in logged if "eval_loss" in line]
    if known and known[-1]["step"] == trainer.state.global_step:
        return {name: value for name, value in known[-1].items() if name != "step"}
    return dict(trainer.evaluate())


def figures_by_set(trainer: Any, held_out: Dataset) -> dict[str, Any]:
    """The evaluation's figures of each data set alone, where there are several: `NAME_loss`."""
    prepared, figures = trainer.eval_dataset, {}
    # TRL computes them for rows that it is handed, and would add them twice
    bare = prepared.remove_columns([name for name in prepared.column_names if name.startswith("ref_")])
    for name, places in places_by_set(held_out, len(prepared)).items():
        own = trainer.evaluate(bare.select(places), metric_key_prefix=f"eval_{name}")
        for key, value in own.items():
            figures[f"{name}_{key.removeprefix(f'eval_{name}_').removeprefix('eval_')}"] = value
    return figures
