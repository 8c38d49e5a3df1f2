"""Graded answers → a reward model: a head for each attribute, or a verdict at each step. Knows transformers'
Trainer; knows no policy.

Attributes by squares of errors, in deviations (Wang et al. 2023, HelpSteer; Wang et al. 2024, Interpretable
preferences via multi-objective reward modeling); steps by cross-entropy (Uesato et al. 2022; Lightman et al.
2023, Let's verify step by step).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import set_seed

from finetune.alignment.graded_options import AttributeArguments, ProcessArguments
from finetune.alignment.graded_rows import read_graded
from finetune.alignment.policy import load_scorer
from finetune.alignment.trl_options import callbacks, quiet
from finetune.artefacts.folder import resolved_options, save_artefact
from finetune.artefacts.runs import open_run
from finetune.data.preview import marked, show_texts
from finetune.data.sources import DataArguments
from finetune.errors import InputError
from finetune.loss import IGNORED
from finetune.methods import MethodArguments, attach, find_method
from finetune.metrics.bootstrap import bootstrap, correlation, mean_figure
from finetune.models.heads import core
from finetune.models.load import ModelArguments
from finetune.models.sharded import is_sharded, make_whole
from finetune.tasks.regression import moments
from finetune.training.allocator import keep_freed_memory
from finetune.training.last_step import DealtRows
from finetune.training.machine import processes
from finetune.training.options import settled

Cost = Callable[[Tensor, Tensor], Tensor]  # scores and targets [n] → costs [n]


def squares(scores: Tensor, targets: Tensor) -> Tensor:
    """(s − t)², [n]."""
    return (scores - targets) ** 2


def verdict_cost(scores: Tensor, targets: Tensor) -> Tensor:
    """−t log σ(s) − (1 − t) log σ(−s), [n]."""
    return nn.functional.binary_cross_entropy_with_logits(scores, targets, reduction="none")


def joined_marks(features: Sequence[dict[str, Any]], processor: Any) -> dict[str, Tensor]:
    """Marks of several answers → input_ids and attention_mask [rows, time], places [rows, read], targets
    [rows, read, heads], NaN where there is none; labels mark those that are, for transformers to count.
    """
    batch = dict(
        processor.pad(
            {"input_ids": [one["input_ids"] for one in features]}, padding_side="right", return_tensors="pt"
        )
    )
    most = max(len(one["places"]) for one in features)
    places = torch.zeros(len(features), most, dtype=torch.long)
    targets = torch.full((len(features), most, len(features[0]["targets"][0])), torch.nan)
    for row, one in enumerate(features):
        places[row, : len(one["places"])] = torch.tensor(one["places"])
        targets[row, : len(one["places"])] = torch.tensor(one["targets"], dtype=torch.float32)
    labels = torch.where(targets.isnan(), IGNORED, 1)
    return {**batch, "places": places, "targets": targets, "labels": labels}


def scores_at(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """What each head says at the places of a batch, [rows, read, heads], float32."""
    read = {name: batch[name] for name in ("input_ids", "attention_mask")}
    # Through the model's own forward, which is what distributed training wraps.
    states = model(**read, output_hidden_states=True).hidden_states[-1]
    places = batch["places"][..., None].expand(-1, -1, states.shape[-1])
    return core(model).score(states.gather(1, places)).float()


class GradedTrainer(DealtRows):
    """transformers', whose loss is a mean over all grades of a step, over micro-batches and processes."""

    def __init__(self, *, cost: Cost, **kwargs: Any) -> None:
        self.cost = cost
        super().__init__(**kwargs)
        # transformers' word for: divided by the items of the whole step already
        self.model_accepts_loss_kwargs = True

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> Any:
        """transformers', with no grades of the rows that another process has."""
        samples = list(islice(epoch_iterator, num_batches))
        for batch, parts in zip(samples, self.last_parts(), strict=False):
            # before they are counted
            batch["labels"][sum(part.end - part.begin for part in parts if part.weight) :] = IGNORED
        return super().get_batch_samples(iter(samples), num_batches, device)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Summed costs of the grades that are known, divided by their number."""
        scores, known = scores_at(model, inputs), inputs["labels"] != IGNORED
        total = self.cost(scores[known], inputs["targets"][known]).sum()
        if num_items_in_batch is None:
            loss = total / known.sum().clamp(min=1)
        else:
            # Gradients are averaged over processes, and the number is of all of them.
            loss = total / num_items_in_batch * self.accelerator.num_processes
        return (loss, {"scores": scores}) if return_outputs else loss


def make_graded_trainer(
    network: Any,
    processor: Any,
    training: AttributeArguments | ProcessArguments,
    train: Dataset,
    held_out: Dataset,
) -> Any:
    """A trainer on marks; the network is a decoder with a head `score`, an adapter on it or not.

    Raises:
        InputError: another kind of model.
    """  # fmt: skip
    if not hasattr(core(network), "score"):
        raise InputError(
            f"{type(core(network)).__name__} has no head 'score' that is read at each token; set "
            "--model_name_or_path to a decoder"
        )
    return quiet(
        GradedTrainer(
            cost=verdict_cost if isinstance(training, ProcessArguments) else squares, model=network,
            args=training, train_dataset=train, eval_dataset=held_out,
            data_collator=partial(joined_marks, processor=processor), callbacks=callbacks(training),
        )
    )  # fmt: skip


@torch.no_grad()
def graded_scores(network: Any, processor: Any, rows: Dataset, size: int) -> list[np.ndarray]:
    """Scores of each row, [read, heads]."""
    network.eval()
    found: list[np.ndarray] = []
    for start in range(0, len(rows), size):
        features = [rows[i] for i in range(start, min(start + size, len(rows)))]
        batch = {
            name: tensor.to(network.device) for name, tensor in joined_marks(features, processor).items()
        }
        scores = scores_at(network, batch).cpu().numpy()
        found += [one[: len(row["places"])] for one, row in zip(scores, features, strict=True)]
    return found


def attribute_figures(
    scores: Sequence[np.ndarray], rows: Dataset, scale: dict[str, tuple[float, float]]
) -> dict[str, Any]:
    """Of each attribute Pearson's correlation on held-out rows with its 95 % interval, how many rows have it,
    and the mean and deviation that its head counts in.
    """
    figures: dict[str, Any] = {}
    for place, (name, (mean, deviation)) in enumerate(scale.items()):
        told = [(float(one[0, place]), row["targets"][0][place])
                for one, row in zip(scores, rows, strict=True)]  # fmt: skip
        pairs = [{"prediction": said, "gold": gold} for said, gold in told if not np.isnan(gold)]
        counts = moments(pairs) if len(pairs) > 1 else np.zeros((1, 6))
        found = correlation(counts.sum(0, keepdims=True))
        figures[name] = {
            "pearson": float(found[0]), "interval": bootstrap(counts, correlation), "rows": len(pairs),
            "mean": mean, "deviation": deviation,
        }  # fmt: skip
    return figures


def step_figures_of(scores: Sequence[np.ndarray], rows: Dataset) -> dict[str, Any]:
    """Share of held-out steps whose verdict is right, with its 95 % interval over rows, and that of always
    saying the commoner one.
    """
    golds = [np.array(row["targets"])[:, 0] > 0.5 for row in rows]
    hits = [(one[:, 0] > 0) == gold for one, gold in zip(scores, golds, strict=True)]
    counts = np.array([[hit.sum(), len(hit)] for hit in hits], dtype=np.float64)
    good = float(np.concatenate(golds).mean())
    return {
        "accuracy": float(np.concatenate(hits).mean()), "interval": bootstrap(counts, mean_figure),
        "commoner": max(good, 1 - good), "steps": int(counts[:, 1].sum()), "rows": len(counts),
    }  # fmt: skip


def train_on_grades(
    data: DataArguments,
    model: ModelArguments,
    method: MethodArguments,
    training: AttributeArguments | ProcessArguments,
) -> None:
    """The whole of scripts/reward.py for graded answers."""
    keep_freed_memory()
    processes("reward")
    set_seed(training.seed)
    rate = find_method(method.method).learning_rate
    training = cast(AttributeArguments | ProcessArguments, settled(training, rate))
    names = ["right"] if isinstance(training, ProcessArguments) else list(training.attributes or [])
    with training.main_process_first(desc="reading graded answers"):
        processor, network = load_scorer(model, len(names))
        train, held_out, scale = read_graded(data, training, processor)
    if show_texts(_shown(train, processor), f"{len(train)} training and {len(held_out)} held-out rows", data):
        return
    network.config.id2label = dict(enumerate(names))
    network = attach(network, method.method, method.method_kwargs, "SEQ_CLS")
    told = hashlib.sha256(json.dumps(train.to_dict()).encode()).hexdigest()
    checkpoint = open_run(resolved_options(data, model, method, training), told, network)
    trainer = make_graded_trainer(network, processor, training, train, held_out)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    network = trainer.accelerator.unwrap_model(trainer.model)
    # a model in shards answers all processes together
    if trainer.is_world_process_zero() or is_sharded(network):
        scores = graded_scores(network, processor, held_out, training.per_device_eval_batch_size)
    make_whole(network)
    if trainer.is_world_process_zero():
        figures = (
            step_figures_of(scores, held_out) if isinstance(training, ProcessArguments)
            else attribute_figures(scores, held_out, dict(zip(names, scale, strict=True)))
        )  # fmt: skip
        save_artefact(network, processor, Path(str(training.output_dir)), None, figures)
        print(json.dumps(figures, indent=1), training.output_dir, sep="\n")


def _shown(rows: Dataset, processor: Any) -> list[str]:
    """The first rows, a target behind each token that is read."""
    texts = []
    for index in range(min(len(rows), 8)):
        row, text, before = rows[index], "", 0
        for place, targets in zip(row["places"], row["targets"], strict=True):
            text += processor.decode(row["input_ids"][before : place + 1])
            text += marked(" ".join(f"{target:.2g}" for target in targets))
            before = place + 1
        texts.append(text)
    return texts
