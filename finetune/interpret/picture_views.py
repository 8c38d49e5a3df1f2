"""A model of pictures and a file → where it looks, patch by patch, and which pixels its answer hangs on.
Knows the arithmetic and the drawings; knows no texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.data import pictures
from finetune.errors import InputError
from finetune.interpret.attention import attention_maps, rollout
from finetune.interpret.gradients import answer, integrated_gradients
from finetune.interpret.subject import Subject, target_of
from finetune.models.heads import core
from finetune.models.images import channels
from finetune.reports import interpretation
from finetune.reports.blocks import Section, Table
from finetune.reports.interpretation import Picture


@dataclass(frozen=True)
class Opened:
    """A picture as the model takes it.

    Attributes:
        batch: pixel_values [1, channels, height, width].
        pixels: the same for people, [height, width, 3] in 0..1.
    """

    name: str
    batch: dict[str, Tensor]
    pixels: np.ndarray


def open_picture(subject: Subject, file: str) -> Opened:
    """A file, read as in training.

    Raises:
        InputError: no such picture, or a model that takes none, or none in patches.
    """
    if "pixel_values" not in getattr(subject.processor, "model_input_names", ()):
        raise InputError(f"{subject.name} takes no pictures as pixels; look at it with --texts")
    cell = {"path": file, "bytes": None}
    fault = pictures.picture_fault(cell)
    if fault is not None:
        raise InputError(f"{file} can't be read: {fault} (--images)")
    picture = pictures.opened(cell, pictures.mode_of(channels(subject.processor)))
    batch = dict(subject.processor([picture], return_tensors="pt"))
    values = batch["pixel_values"][0].float()
    # back to 0..1 for the eye: the model's pixels are normalised
    shown = (values - values.min()) / (values.max() - values.min()).clamp_min(1e-12)
    # grey pictures have one channel, a page wants three
    return Opened(Path(file).name, batch, shown.expand(3, *shown.shape[1:]).permute(1, 2, 0).numpy())


def picture_attention(subject: Subject, given: Opened, place: int) -> tuple[Section, list[Picture]]:
    """What the class token looks at in each layer, and the rollout, over the picture."""
    maps = attention_maps(subject.network, given.batch)["self"]
    rows, columns = patch_grid(subject, given, maps.shape[-1])
    heat = over_patches(rollout(maps), rows, columns).numpy()
    said = f"Rollout: how much of each patch reaches the class token of the last layer{_range(heat)}."
    drawings = [interpretation.over_picture(f"{place}-rollout", given.pixels, heat, said)]
    for layer, heads in enumerate(maps):
        heat = over_patches(heads.mean(0), rows, columns).numpy()
        said = f"Layer {layer}: what the class token looks at, mean of {len(heads)} heads{_range(heat)}."
        drawings.append(interpretation.over_picture(f"{place}-layer{layer}", given.pixels, heat, said))
    return Section(given.name, [one.chart for one in drawings]), drawings


def _range(heat: np.ndarray) -> str:
    # colours alone make an even map look like a finding
    return f" ({heat.min():.2g} to {heat.max():.2g} a patch)"


def patch_grid(subject: Subject, given: Opened, tokens: int) -> tuple[int, int]:
    """How many patches a picture has from top to bottom and from left to right.

    Raises:
        InputError: a model whose tokens are no grid of patches.
    """
    size = getattr(core(subject.network).config, "patch_size", None)
    # some configurations give one number, some a pair
    high, wide = size if isinstance(size, (list, tuple)) else (size, size)
    if high:
        rows, columns = (side // one for side, one in zip(given.pixels.shape[:2], (high, wide), strict=True))
        if 0 <= tokens - rows * columns <= 8:  # a class token, DeiT's second one, registers
            return rows, columns
    raise InputError(f"The {tokens} tokens of {subject.name} are no grid of patches; look at its gradients")


def over_patches(weights: Tensor, rows: int, columns: int) -> Tensor:
    """What the first token, or all where there is no token besides the patches, looks at: [rows, columns]."""
    extra = weights.shape[-1] - rows * columns
    # without a class token, pooling takes the mean over all patches
    looked = weights[0] if extra else weights.mean(0)
    # tokens besides the patches stand first
    return looked[extra:].reshape(rows, columns)


def picture_gradients(
    subject: Subject, given: Opened, target: str | None, steps: int, place: int
) -> tuple[Section, list[Picture]]:
    """Which pixels add to the logit of the answer, against a picture of the middle grey."""
    chosen, logit = answer(subject.network, given.batch, target_of(subject, target))
    # normalised pixels: 0 is the mean colour, not black
    empty = torch.zeros_like(given.batch["pixel_values"])
    found, missing = integrated_gradients(subject.network, given.batch, chosen, empty, steps)
    name = subject.labels[chosen] if subject.labels else str(chosen)
    said = f"Pixels that speak for '{name}' ({steps} steps); not accounted for: {missing:.1%}."
    # what speaks against the answer is left out of the drawing
    drawing = interpretation.over_picture(
        f"{place}-integrated", given.pixels, found.clamp_min(0).numpy(), said
    )
    row: dict[str, Any] = {"answer": name, "its logit": f"{float(logit.detach()):.3f}"}
    return Section(given.name, [drawing.chart, Table([row])]), [drawing]
