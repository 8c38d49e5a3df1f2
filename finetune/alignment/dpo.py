"""Preference pairs → an aligned policy, on TRL's trainers. Knows TRL; knows no PPO.

TRL's own option names stay; other defaults stand where its own lose speed (checkpointing, references computed
at every step).
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trl
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset, IterableDataset
from safetensors.numpy import load_file, save_file
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from trl.experimental.cpo import CPOTrainer as TrlCPOTrainer
from trl.experimental.orpo import ORPOTrainer as TrlORPOTrainer

from finetune.alignment.pair_options import CPOTrainingArguments, KTOTrainingArguments, ORPOTrainingArguments
from finetune.alignment.pair_rows import CutAnswers, SameIds, as_ids, unpaired
from finetune.alignment.policy import drop_copy, has_adapter
from finetune.alignment.reward_model import check_pairs_fit
from finetune.alignment.shared_prompt import SharedPrompt, can_share, pair_lines
from finetune.alignment.step_tokens import StepTexts, StepTokens
from finetune.alignment.trl_options import PairOptions, callbacks, made_by_trl, quiet
from finetune.errors import InputError
from finetune.models.heads import unwrapped
from finetune.models.lora_kernel import without_input_casts
from finetune.models.names import cache_root
from finetune.privacy.options import PrivacyArguments
from finetune.privacy.trainer import private_parts
from finetune.training.interrupts import Resuming
from finetune.training.last_step import WeightedRows, warn_of_repeats
from finetune.training.machine import in_shards

logger = logging.getLogger(__name__)

PAIR_LOSSES = ("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
"aot_unpaired",
               "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm")  # fmt: skip
# pairs are sorted beside each other, or told from a running mean
LOSSES_OF_BATCHES = ("aot", "aot_unpaired", "bco_pair")
REFERENCE_OPTIONS = (
    "bf16",
    "fp16",
    "max_length",
    "truncation_mode",
    "ld_alpha",
)  # what log-probabilities depend on beside weights


@dataclass
class DPOTrainingArguments(PairOptions, trl.DPOConfig):
    """TRL's options of direct preference optimisation (Rafailov et al. 2023) and of the losses TRL
    has beside its own.
    """

    task: str = field(default="dpo")
    algorithm: str = field(
        default="dpo",
        metadata={
            "help": "dpo; kto, orpo, cpo and simpo have options of their own (--algorithm kto --help)."
        },
    )
    precompute_ref_log_probs: bool = field(
        default=True,
        metadata={
            "help": "Reference log-probabilities once, before training, cached by what they depend on."
        },
    )


class CachedDPOTrainer(CutAnswers, WeightedRows, trl.DPOTrainer):
    """TRL's DPO trainer whose reference log-probabilities are kept in a file named after everything they
    depend on.

    Both sides of a pair share their prompt's computation where the model allows it.
    """

    _shares: bool | None = None  # found out at the first batch, which TRL asks for while it is being made

    def _sharing(self, model: Any) -> Any:
        # Once a run: the probe costs a pass, and a model doesn't change its kind.
        if self._shares is None:
            self._shares = can_share(model)
        return SharedPrompt(model, pair_lines) if self._shares else model

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """TRL's, on one line a pair."""
        return super().compute_ref_log_probs(self._sharing(model), inputs)

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        # The casts that LoRA makes of its inputs are autocast's work already.
        with without_input_casts(unwrapped(model), bool(self.args.bf16 or self.args.fp16)):
            return super()._compute_loss(self._sharing(model), inputs, return_outputs)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        # TRL has just made a copy of the fresh adapter; the hash of weights must not see it.
        drop_copy(self.model)
        made_by = {option: vars(self.args)[option] for option in REFERENCE_OPTIONS}
        key = reference_key(dataset, self.ref_model or self.model, made_by)
        self._precompute_model_hash = key  # TRL's own cache goes by less
        file, columns = reference_cache() / f"{key}.safetensors", ("ref_chosen_logps", "ref_rejected_logps")
        here = torch.tensor([float(file.is_file())], device=self.accelerator.device)
        if bool(self.accelerator.gather(here).all()):  # one process alone would wait for the others for ever
            logger.warning("Reference log-probabilities of the %s pairs come from %s", name, file)
            # In the order of the rows, whose ids are part of the key.
            found = load_file(file)
            for column in columns:
                dataset = dataset.add_column(column, found[column])
            return dataset
        dataset = super()._precompute_ref_logps(dataset, name, batch_size)
        # Only one process of a machine, to a file of its own name: a reader must never find half a file.
        if self.accelerator.is_local_main_process:
            file.parent.mkdir(parents=True, exist_ok=True)
            fresh = file.with_name(f".{file.name}.{os.getpid()}")
            # Float32, in which TRL's own columns are; Arrow would read them as float64.
            save_file({column: np.asarray(dataset[column][:], dtype=np.float32) for column in columns}, fresh)
            # In one step, so that two runs at once leave one whole file.
            fresh.replace(file)
        self.accelerator.wait_for_everyone()
        return dataset


def reference_cache() -> Path:
    """Folder of the cached reference log-probabilities."""
    return cache_root() / "reference_log_probs"


def reference_key(dataset: Dataset, reference: Any, made_by: dict[str, Any]) -> str:
    """Hash of the token ids, of the reference's weights and of the options that its log-probabilities
    depend on.
    """
    # The class too: a scorer and a writer may share every weight's name.
    digest = hashlib.sha256(json.dumps([made_by, str(type(reference))]).encode())
    # A name of the data set wouldn't do: another template or tokenizer makes other ids of the same rows.
    for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
        digest.update(json.dumps(dataset[column][:]).encode())
    # the policy's own adapter is off in the reference, whatever it was made with
    own = (
        {name for name, p in reference.named_parameters() if p.requires_grad}
        if has_adapter(reference)
        else set()
    )
    # Sorted, since wrapping a model changes the order of its names.
    for name, tensor in sorted(reference.state_dict().items()):
        if name not in own:
            digest.update(name.encode() + str(tuple(tensor.shape)).encode())
            # Of shards every process has a part, and all need one key.
            tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            # Float32: numpy knows no bf16. The widening loses nothing, so that the hash stays as strict.
            digest.update(tensor.detach().float().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


PairTraining = DPOTrainingArguments | KTOTrainingArguments | ORPOTrainingArguments | CPOTrainingArguments


def for_stream(training: Any) -> Any:
    """Options of a run whose pairs are read as they are needed: references can't be computed before it.

    Raises:
        InputError: a loss whose trainer wants all pairs at once.
    """
    if isinstance(training, (ORPOTrainingArguments, CPOTrainingArguments)):
        raise InputError(
            f"--algorithm {training.algorithm} wants all pairs before the start; leave --streaming out, or "
            "set "
            "--algorithm dpo or kto"
        )
    has_reference = "precompute_ref_log_probs" in vars(training)  # a reward model's options have none
    return replace(training, precompute_ref_log_probs=False) if has_reference else training


def make_dpo_trainer(
    network: Any,
    processor: Any,
    training: PairTraining,
    train: Dataset | IterableDataset,
    held_out: Dataset,
) -> Any:
    """The trainer of `plan_dpo`, at once."""
    return plan_dpo(network, processor, training, train, held_out)()


def plan_dpo(
    network: Any,
    processor: Any,
    training: PairTraining,
    train: Dataset | IterableDataset,
    held_out: Dataset,
    *,
    privacy: PrivacyArguments | None = None,
    start: str = "",
) -> Callable[[], Any]:
    """What makes TRL's trainer that the options are of, once all that can be refused was; rows are pairs, for
    KTO also single answers.

    Private training, of a model that `start` names, sees one pair at a time.

    With an adapter the reference is the model below it: `finetune.alignment.policy.load_base` has merged an
    adapter of supervised fine-tuning into it. A model that is trained whole is asked before training, or
    copied.

    Raises:
        InputError: a loss that TRL hasn't, a pair that is too long, or what can't be private.
    """
    if isinstance(training, DPOTrainingArguments):
        unknown = sorted(set(training.loss_type) - set(PAIR_LOSSES))
        if unknown or training.algorithm != "dpo":
            wanted = f"some of {', '.join(PAIR_LOSSES)}; kto, orpo, cpo and simpo stand alone"
            raise InputError(
                f"--algorithm {training.algorithm} --loss_type {' '.join(training.loss_type)}; wanted "
                f"{wanted}"
            )
    parts = {"model": network, "train_dataset": train, "eval_dataset": held_out,
    "processing_class": processor,
             "callbacks": callbacks(training)}  # fmt: skip
    # Single answers, as KTO takes them, have no two sides.
    if "chosen" in held_out.column_names:
        check_pairs_fit(network, processor, training.max_length, train, held_out)
    if privacy is not None and privacy.wanted:
        rows = {"train": train, "eval": held_out}
        parts |= private_parts(
            privacy, training, CachedDPOTrainer, rows, network, start=start, unit="a pair of answers"
        )

    def make() -> Any:
        with made_by_trl():
            trainer = _trainer_of(training, parts)
        drop_copy(network)
        return quiet(trainer)

    return make


def check_pairs_are_private(privacy: PrivacyArguments, training: PairTraining) -> None:
    """The loss of a pair depends on no other pair. Said before anything is loaded.

    Raises:
        InputError: it does, or the algorithm has a trainer of its own.
    """
    if not privacy.wanted:
        return
    known = isinstance(training, DPOTrainingArguments)
    # The private trainer is made of DPO's; the others have classes of their own.
    if not known or training.algorithm != "dpo":
        raise InputError(
            f"--epsilon {privacy.epsilon}: private training knows --algorithm dpo; got {training.algorithm}"
        )
    mixed = sorted(set(training.loss_type) & set(LOSSES_OF_BATCHES))
    if mixed:
        raise InputError(
            f"--epsilon {privacy.epsilon}: --loss_type {mixed[0]} compares the pairs of a batch; set another"
        )


def _trainer_of(training: PairTraining, parts: dict[str, Any]) -> Any:
    network, processor = parts["model"], parts["processing_class"]
    # Both tokenise by themselves where rows aren't ids yet, prompt and answer apart.
    if isinstance(training, (ORPOTrainingArguments, CPOTrainingArguments)):
        data = {
            name: as_ids(parts[name], processor, training.max_length)
            for name in ("train_dataset", "eval_dataset")
        }
        kind = ORPOTrainer if isinstance(training, ORPOTrainingArguments) else CPOTrainer
        return kind(args=training, **(parts | data))
    # TRL would read a reference from the disk again, where a merged model doesn't stand; of a model that
    # will be sharded it wants one even if it is asked once, before training
    asked_once = isinstance(training, DPOTrainingArguments) and training.precompute_ref_log_probs
    alone = has_adapter(network) or (asked_once and not in_shards())
    # Before training: a reference that shares the weights would move with the policy.
    reference = None if alone else copy.deepcopy(network)
    if isinstance(training, KTOTrainingArguments):
        # Single answers stay as they are; pairs are taken apart.
        names = [name for name in ("train_dataset", "eval_dataset")
                 if isinstance(parts[name], Dataset) and "chosen" in parts[name].column_names]  # fmt: skip
        return KTOTrainer(
            args=training, ref_model=reference, **(parts | {name: unpaired(parts[name]) for name in names})
        )
    # `private_parts` brings a class that clips gradients pair by pair.
    kind = parts.pop("kind", CachedDPOTrainer)
    return kind(args=training, ref_model=reference, **parts)


class KTOTrainer(CutAnswers, Resuming, trl.KTOTrainer):
    """TRL's, without ends on answers that were cut."""

    def get_train_dataloader(self) -> DataLoader:
        """transformers' own: the KL is a mean over processes of their rows' means, and wants equally many."""
        loader = super().get_train_dataloader()
        if isinstance(loader.batch_sampler, BatchSamplerShard):
            warn_of_repeats(loader.batch_sampler)
        return loader

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, *more: Any) -> Any:
        # the KL is estimated over all processes' rows, which then take each other's answers for it too
        together = copy.copy(args)
        vars(together)["per_device_train_batch_size"] *= args.world_size
        return super()._prepare_dataset(dataset, processing_class, together, *more)


class ORPOTrainer(SameIds, StepTexts, TrlORPOTrainer):
    """TRL's, on DPO's ids."""


class CPOTrainer(SameIds, StepTokens, TrlCPOTrainer):
    """TRL's, on DPO's ids."""
