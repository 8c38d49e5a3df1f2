"""Private trainers of tiny models without an accountant, one step of each, and the same sum by a loop over
rows. Used by the tests of privacy, and a part of two_processes.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import objective_gradients
import task_gradients
import torch
from gradients import Gradients, one_step, trained, write

from finetune.data.batching import BatchingArguments
from finetune.methods import attach
from finetune.models.attention.packed import pack
from finetune.privacy.mechanism import Mechanism
from finetune.privacy.trainer import private
from finetune.tasks.sft import packed
from finetune.training.pretraining import FreshTrainer
from finetune.training.trainer import ExactTrainer, make_trainer

CLIP = 0.05  # below the norms of most rows, above some


def mechanism(units: int, expected: int, noise: float = 0.0, key: int = 0, clip: float = CLIP) -> Mechanism:
    """A mechanism whose noise is given, not counted."""
    return Mechanism(8.0, 1e-5, clip, "prv", units, expected, 1, noise, key, False, "a row")


def made(subject: str, family: str, method: str, split: str, folder: Path, **changes: object):
    """A private trainer of a task or an objective; its step takes every row unless `changes` say otherwise.

    Args:
        split: how rows are dealt out, of `gradients.SPLITS`.
        changes: entries of `mechanism`.
    """
    options: dict[str, object] = {"batching": BatchingArguments()}
    if subject in objective_gradients.FAMILIES:
        layout = {"layout": "rows"} if subject in ("clm", "mlm", "span_corruption") else {}
        row, processor, network, features = objective_gradients.prepared(subject, **layout)
        kind = FreshTrainer
    else:
        config: dict[str, object] = {"initializer_range": 0.3} if family in ("bert", "llama") else {}
        # chance of its own, that a loop doesn't repeat
        config |= {"classifier_dropout": 0.0} if family == "gpt2" else {}
        row, processor, network, options["labels"], features = task_gradients.prepared(
            subject.removesuffix(", packed"), family, **config
        )
        kind, row = ExactTrainer, replace(row, collate=partial(in_double, row.collate))
        if subject.endswith(", packed"):
            row = packed(row)
            pack(network)
    torch.manual_seed(0)
    network = attach(network, method, {}, row.peft).double()
    spread(network)
    training = one_step(split, folder)
    units = len(set(features["row"][:]))
    told = mechanism(units, **({"expected": units} | changes))
    return make_trainer(
        row, network, processor, training, {"train": features}, kind=private(kind), mechanism=told, **options
    )


def in_double(collate: Callable, processor: object) -> Callable:
    """What a row's `collate` makes, with pictures and sounds as wide as the weights here."""
    plain = collate(processor)

    def wide(features: list) -> dict:
        return {
            name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
            for name, value in plain(features).items()
        }

    return wide


def spread(network: torch.nn.Module) -> None:
    """Trained weights that start at nothing, a little elsewhere: no gradient is nothing then."""
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=chance, dtype=parameter.dtype) * 0.05)


def by_loop(trainer, steps: int = 1, clip: float = CLIP) -> dict[str, torch.Tensor]:
    """The clipped gradients of all units, summed in a loop of this file's own."""
    network = trainer.model.eval()
    network.train()
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    sums = {name: torch.zeros_like(p) for name, p in named}
    owners = trainer.train_dataset["row"][:]
    for owner in sorted(set(owners)):
        features = [trainer.train_dataset[place] for place, one in enumerate(owners) if one == owner]
        if isinstance(trainer, FreshTrainer):
            features = [feature | {"epoch": 0} for feature in features]
        network.zero_grad()
        losses, items, _ = trainer.measured(network, trainer.data_collator(features))
        (losses.sum() / items.sum()).backward()
        found = {name: p.grad for name, p in named if p.grad is not None}
        length = sum(float(g.square().sum()) for g in found.values()) ** 0.5
        for name, gradient in found.items():
            sums[name] += gradient * min(1.0, clip / length)
    return sums


TWO = [("classification", "bert", "lora"), ("sft, packed", "llama", "lora"), ("mlm", "", "full")]


def on_processes(case: tuple[str, str, str], split: str, folder: Path) -> Gradients:
    """A noisy step on a sample of the rows, which doesn't divide by two."""
    return trained(made(*case, split, folder, expected=5, noise=0.7, key=3))


def main(folder: Path) -> None:
    write({"/".join(case): on_processes(case, "processes", folder) for case in TWO}, folder)
