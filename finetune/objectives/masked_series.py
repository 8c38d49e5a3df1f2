"""What is learnt from a bare series: hidden patches of it (PatchTST's own way). Knows windows and how the
model is called; knows no Trainer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn
from transformers import PreTrainedConfig

from finetune.data.collate import Batch
from finetune.data.columns import Columns
from finetune.data.encode import fingerprint
from finetune.data.series import find_channels, find_time, to_series
from finetune.data.sources import TextArguments
from finetune.data.time_splits import limited, load_series
from finetune.data.windows import Windows
from finetune.errors import InputError
from finetune.models.forecasters import resized
from finetune.models.heads import core
from finetune.models.series_processor import SeriesProcessor
from finetune.objectives.collators import Fresh

CONTEXT, PATCH = 512, 12  # as in the paper's pretraining (Nie et al. 2023, section 4.2)


def apart_patches(config: PreTrainedConfig, own: dict[str, Any]) -> PreTrainedConfig:
    """A fresh model's configuration: one channel at a time, and patches that share no step, which would
    show what is hidden.

    Raises:
        InputError: patches that overlap, or several channels at once.
    """
    made = resized(
        config,
        {"context_length": CONTEXT, "patch_length": PATCH, "patch_stride": own.get("patch_length", PATCH)}
        | own,
    )
    if made.patch_stride < made.patch_length:
        raise InputError(
            f"Patches of {made.patch_length} steps every {made.patch_stride} overlap, so that a hidden one "
            f"would be seen in the next. Set --config_overrides patch_stride={made.patch_length}"
        )
    if made.num_input_channels != 1:
        raise InputError(
            "Channels are learnt one at a time, so that the model reads any number of them later. Leave "
            "num_input_channels out of --config_overrides"
        )
    return made


def load_windows(data: TextArguments, processor: SeriesProcessor) -> tuple[dict[str, Windows], str]:
    """Windows of the training and of the evaluation part, and the fingerprint of the training rows.

    Raises:
        InputError: rows that are no series, or shorter than a window.
    """
    context = int(processor.context_length or CONTEXT)
    rows = limited(load_series(data), data, 0)
    assert rows.train is not None and rows.eval is not None
    time = find_time(rows.train, None, data.name)
    channels = find_channels(rows.train, time, None, data.ignore_columns, data.name)
    made = {
        split: to_series(part, time, channels, data.name)
        for split, part in (("train", rows.train), ("eval", rows.eval))
    }
    for split, series in made.items():
        if len(series.values) < context:
            raise InputError(
                f"The {split} part of {data.name} has {len(series.values)} rows; a window wants {context}. "
                "Set --config_overrides context_length lower"
            )
    values = made["train"].values
    processor.fit(values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64), channels)
    columns = Columns(time or channels[0], None, "", tuple(channels))
    windows = {split: Windows(series.values, context, 0) for split, series in made.items()}
    return windows, fingerprint(rows.train, columns)


def hidden_collator(processor: SeriesProcessor, *, seed: int) -> Fresh:
    """Windows on the standard scale, and for each what its masks are drawn from.

    Batches: past_values [batch, context, channels]; chance and labels [batch].
    """

    def drawn(rng: Generator, feature: dict[str, Any]) -> dict[str, Any]:
        return {"past_values": feature["past_values"], "chance": int(rng.integers(2**62))}

    def batch(rows: list[dict[str, Any]]) -> Batch:
        values = torch.from_numpy(np.stack([row["past_values"] for row in rows]))
        chance = torch.tensor([row["chance"] for row in rows])
        return {"past_values": processor.standard(values), "chance": chance, "labels": torch.zeros(len(rows))}

    return Fresh(drawn, batch, seed)


def hidden_patches(chances: Sequence[int], channels: int, patches: int, rate: float) -> Tensor:
    """Which patches of each window and channel are hidden, [windows, channels, patches]: as many of each,
    drawn by the window's number.
    """
    count = min(patches - 1, max(1, round(rate * patches)))
    made = torch.zeros(len(chances), channels, patches, dtype=torch.bool)
    for place, chance in enumerate(chances):
        order = np.random.default_rng(chance).random((channels, patches)).argsort(axis=1)
        made[place].scatter_(1, torch.from_numpy(order[:, :count].copy()), True)
    return made


def hidden_costs(model: Any, batch: dict[str, Tensor], labels: Tensor, *, masking_rate: float) -> Tensor:
    """Mean squared error of the hidden steps, each window of a channel on its own scale, and that of its
    mean: [batch, 2] (Nie et al. 2023, section 3.2).

    The model draws a mask itself, for a batch as a whole; in its place stands the windows' own, which is
    the same however they are dealt out.
    """
    network, values = core(model), batch["past_values"]
    rows, _, channels = values.shape
    alone = values.transpose(1, 2).reshape(rows * channels, -1, 1)
    patches = network.model.patchifier.num_patches
    hidden = hidden_patches(batch["chance"].tolist(), channels, patches, masking_rate).to(values.device)
    hidden = hidden.view(rows * channels, 1, patches)
    seen: list[Tensor] = []

    def hide(module: nn.Module, arguments: Any, outputs: Any) -> Any:
        seen.append(arguments[0])
        return arguments[0].masked_fill(hidden[..., None], network.config.mask_value), hidden

    with network.model.masking.register_forward_hook(hide):
        said = model(past_values=alone)["prediction_output"]
    costs = [
        ((wanted - seen[0]).square().mean(dim=-1) * hidden).sum(dim=(1, 2)) / hidden.sum(dim=(1, 2))
        for wanted in (said, torch.zeros_like(said))
    ]
    return torch.stack(costs, dim=1).view(rows, channels, 2).mean(dim=1)


def own_cost(costs: Tensor, labels: Tensor) -> Tensor:
    """Each window's own error [batch]."""
    return costs[:, 0].float()


def windows_counted(labels: Tensor) -> Tensor:
    """One item a window: each has as many hidden steps."""
    return torch.ones_like(labels, dtype=torch.long)


def hidden_figures(costs: np.ndarray, gold: np.ndarray, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Figures of hidden patches.

    Args:
        costs: [windows, 2], see `hidden_costs`.

    Returns:
        hidden_mse: squared error of hidden steps, each window on its own scale; mean_mse: that of the
            window's
        mean; explained: the share that the model is nearer.
    """
    own, plain = (float(value) for value in costs.mean(axis=0, dtype=np.float64))
    return {"hidden_mse": own, "mean_mse": plain, "explained": 1 - own / plain if plain else math.nan}


def bind_masked_series(given: dict[str, Any]) -> dict[str, Any]:
    """Which share of a series is hidden."""
    return {
        "collate": partial(hidden_collator, seed=given["seed"]),
        "forward": partial(hidden_costs, masking_rate=given["masking_rate"]),
    }
