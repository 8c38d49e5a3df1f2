"""The recipe of a run on other rows: shadow models and controls. Knows what a run says of itself; knows no
attack.
"""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
from transformers import set_seed

from finetune.adapters.classifier import load_network
from finetune.alignment.policy import load_start
from finetune.audit.options import AuditArguments
from finetune.audit.reading import told
from finetune.audit.scores import Costs, costs
from finetune.audit.subject import Attacked
from finetune.data.batching import BatchingArguments
from finetune.data.sources import Rows
from finetune.errors import InputError
from finetune.methods import MethodArguments, attach, find_method
from finetune.models.load import ModelArguments
from finetune.models.scratch import ScratchArguments
from finetune.privacy.options import PrivacyArguments
from finetune.privacy.trainer import private_parts
from finetune.training.continuing import foundation, tune
from finetune.training.options import TrainingArguments
from finetune.training.run import load_for
from finetune.training.trainer import ExactTrainer, make_trainer

# what a run is trained with that its shadows are too; where and how it reports is their own affair
TRAINED_WITH = (
    "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs",
    "max_steps", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "max_grad_norm", "bf16",
    "adam_beta1", "adam_beta2", "adam_epsilon",
)  # fmt: skip


def trained_network(subject: Attacked) -> tuple[Any, Any]:
    """Processor and model as the run's training left them."""
    if subject.aligned:
        return load_start(ModelArguments(model_name_or_path=str(subject.artefact.folder)))
    return load_network(subject.artefact, row=subject.row)


def fresh(subject: Attacked, seed: int) -> tuple[Any, Any]:
    """Processor and model as the run's training began, with chance of its own; an adapter that it went on
    from is there already.
    """
    options = subject.artefact.options
    set_seed(seed)
    model, method = told(options, ModelArguments), told(options, MethodArguments)
    if subject.aligned:
        processor, network = load_start(model)
        return processor, attach(network, method.method, method.method_kwargs, subject.row.peft)
    model, before = foundation(model)
    found = subject.found._replace(rows=Rows(subject.rows, subject.rows, ""))
    quantized = find_method(method.method).quantized
    processor, network = load_for(
        subject.row, model, found, scratch=told(options, ScratchArguments), chats=bool(options.get("chat")),
        quantized=quantized,
    )  # fmt: skip
    task, labels, reads = subject.row.peft, subject.found.labels, subject.row.reads
    return tune(network, processor, method, task, before, labels=labels, reads=reads)


def retrained(
    subject: Attacked, places: np.ndarray, seed: int, *, private: bool = True, **changes: Any
) -> tuple[Any, Any]:
    """Processor and model after the run's recipe on some of the subject's rows.

    Args:
        places: which rows, of `subject.rows`.
        private: with the run's differential privacy, where it had any.
        changes: options of training that shall be others.
    """
    options = subject.artefact.options
    processor, network = fresh(subject, seed)
    # made by this processor, which may have been made anew
    features = subject.features(processor, subject.rows.select(places))
    with tempfile.TemporaryDirectory() as folder:
        # old runs lack options that came later
        kept = {name: options[name] for name in TRAINED_WITH if name in options}
        training = TrainingArguments(
            **(kept | {"seed": seed} | changes), output_dir=folder, save_strategy="no", eval_strategy="no",
            logging_steps=10**9, disable_tqdm=True, report_to="none",
        )  # fmt: skip
        # a private run's shadows are private too; a control that must be found is not
        privacy = told(options, PrivacyArguments) if private else PrivacyArguments()
        parts = private_parts(privacy, training, ExactTrainer, {"train": features}, network)
        trainer = make_trainer(
            subject.row, network, processor, training, {"train": features}, labels=subject.found.labels,
            batching=told(options, BatchingArguments), **parts,
        )  # fmt: skip
        trainer.train()
    return processor, trainer.unwrapped()


def shadow_costs(subject: Attacked, audit: AuditArguments) -> tuple[np.ndarray, np.ndarray]:
    """Losses of all rows under each shadow [shadows, rows], and whether it was trained on them.

    Half of the shadows know each row, drawn for each row by itself (Carlini et al. 2022, section 4).

    Raises:
        InputError: the run's recipe can't be repeated on other rows.
    """
    why = None
    if not subject.repeatable:
        why = "is none of train or sft"
    # its rows would be known to every shadow
    elif (before := foundation(told(subject.artefact.options, ModelArguments))[1]) is not None:
        why = f"went on from the adapter in {before}"
    if why is not None:
        raise InputError(
            f"--shadows {audit.shadows}: the run in {subject.artefact.folder} {why}, so that its recipe "
            "can't be repeated on other rows. Set --shadows 0"
        )
    rows, count = len(subject.rows), audit.shadows
    rng = np.random.default_rng(audit.audit_seed + 1)
    # the ranks of random numbers: just half of each column is true
    inside = np.argsort(rng.random((count, rows)), axis=0) < count // 2
    found = []
    for number in range(count):
        # seeds far from the run's own
        processor, network = retrained(subject, np.flatnonzero(inside[number]), 1000 + number)
        found.append(all_costs(subject, processor, network, audit).losses)
    return np.stack(found), inside


def all_costs(subject: Attacked, processor: Any, network: Any, audit: AuditArguments) -> Costs:
    """What every attacked row costs a model."""
    return costs(subject.row, network, processor, subject.features(processor), audit.batch_size)


def untrained_costs(subject: Attacked, audit: AuditArguments) -> Costs:
    """The control that nothing may be found in: the run's model before its first step."""
    return all_costs(subject, *fresh(subject, audit.audit_seed + 77), audit)


def overfitted_costs(subject: Attacked, audit: AuditArguments) -> tuple[Costs, np.ndarray]:
    """The control that must be found: some members learnt by heart, and which rows these are."""
    # members come first, and were drawn by chance already
    chosen = np.arange(min(audit.overfit_rows, subject.members))
    options = subject.artefact.options
    # a run with a tiny rate would learn nothing by heart either
    rate = max(options["learning_rate"], find_method(str(options.get("method", "full"))).learning_rate)
    changes = {
        "num_train_epochs": audit.overfit_epochs, "max_steps": -1, "gradient_accumulation_steps": 1,
        "per_device_train_batch_size": min(8, len(chosen)), "learning_rate": rate, "weight_decay": 0.0,
    }  # fmt: skip
    seed = audit.audit_seed + 5
    return all_costs(subject, *retrained(subject, chosen, seed, private=False, **changes), audit), chosen
