"""What is learnt from bare pictures: masked patches (SimMIM) and the next pixel (ImageGPT). Knows pictures
and how their models are called; knows no Trainer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image
from numpy.random import Generator
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_IMAGE_MODELING_MAPPING

from finetune.data import pictures
from finetune.data.collate import Batch
from finetune.data.columns import Columns
from finetune.data.encode import fingerprint
from finetune.data.laying import laid_out
from finetune.data.media import as_files, file_column, file_features, without_broken
from finetune.data.places import SET
from finetune.data.questions import Laid
from finetune.data.sources import TextArguments, load_rows, sample
from finetune.errors import InputError
from finetune.loss import IGNORED
from finetune.models.heads import core
from finetune.models.images import channels
from finetune.objectives.collators import Fresh


class AutoModelForNextPixel(_BaseAutoModelClass):
    """Models that say the next pixel of a picture; transformers has the table, and no class for it."""

    _model_mapping: Any = MODEL_FOR_CAUSAL_IMAGE_MODELING_MAPPING


def no_texts(*arguments: Any) -> Any:
    """Pictures are read when a batch is made, not encoded before."""
    raise InputError(
        "A stream or a mixture is for texts; pictures are read as they are. Leave --streaming out"
    )


def load_pictures(data: TextArguments, processor: Any) -> tuple[dict[str, Dataset], str]:
    """Features {"train": ..., "eval": ...} that hold their files, and the fingerprint of the training rows.

    Raises:
        InputError: no column of pictures, or pictures that can't be read, with their rows.
    """
    rows, columns = laid_out(load_rows(data, fallback=None), data, _lay_out)
    assert rows.train is not None and rows.eval is not None
    fault = pictures.picture_fault
    train, held = (
        without_broken(part, columns, data.drop_empty_rows, where, fault=fault, what="picture")
        for part, where in ((rows.train, "training"), (rows.eval, "evaluation"))
    )
    chosen = {
        "train": sample(train, data.max_train_rows, data.sample_seed),
        "eval": sample(held, data.max_eval_rows, data.sample_seed),
    }
    mode, size = pictures.mode_of(channels(processor)), processor.to_dict().get("size", {})
    for part in chosen.values():
        pictures.say_kinds(part[columns.text], mode, size)
    features = {
        split: file_features(part, columns, "image", [1] * len(part), None) for split, part in chosen.items()
    }
    # several evaluation sets are told apart by this column, up to `sets_apart`
    if SET in chosen["eval"].column_names:
        features["eval"] = features["eval"].add_column(SET, chosen["eval"][SET][:])
    return features, fingerprint(chosen["train"], Columns(columns.text, None, ""))


def _lay_out(rows: Dataset, data: TextArguments) -> Laid:
    typed = Image(decode=False)
    column = file_column(rows, data, pictures.USUAL, typed)
    made = as_files(rows, column, typed, data)
    return Laid(made, Columns(column, None, ""), {"image": [column]}, lambda row: "")


def one_stride(config: PreTrainedConfig, overridden: dict[str, Any]) -> PreTrainedConfig:
    """A fresh model rebuilds pictures by as much as it cut them into patches."""
    entries = config.to_dict()
    if "encoder_stride" in entries and "encoder_stride" not in overridden:
        deeper = 2 ** (len(entries["depths"]) - 1) if "depths" in entries else 1  # Swin's stages halve
        config.update({"encoder_stride": config.patch_size * deeper})
    return config


def masked_collator(processor: Any, *, seed: int) -> Fresh:
    """Pictures, and for each what its mask is drawn from.

    Batches: pixel_values [batch, channels, height, width]; chance and labels [batch].
    """
    mode = pictures.mode_of(channels(processor))

    def drawn(rng: Generator, feature: dict[str, Any]) -> dict[str, Any]:
        return {"image": feature["image"], "chance": int(rng.integers(2**62))}

    def batch(rows: list[dict[str, Any]]) -> Batch:
        opened = [pictures.opened(row["image"], mode) for row in rows]
        values = processor(opened, return_tensors="pt")["pixel_values"]
        chance = torch.tensor([row["chance"] for row in rows])
        return {"pixel_values": values, "chance": chance, "labels": torch.zeros(len(rows))}

    return Fresh(drawn, batch, seed)


def masks(chances: Sequence[int], patches: int, rate: float) -> Tensor:
    """Which patches of each picture are hidden, [pictures, patches]: as many of each, drawn by its number."""
    hidden = min(patches, max(1, round(rate * patches)))
    made = torch.zeros(len(chances), patches, dtype=torch.bool)
    for place, chance in enumerate(chances):
        made[place, np.random.default_rng(chance).permutation(patches)[:hidden]] = True
    return made


def masked_costs(model: Any, batch: dict[str, Tensor], labels: Tensor, *, masking_rate: float) -> Tensor:
    """Mean distance of the hidden pixels from what is said of them, and from the mean of the seen ones:
    [batch, 2] (Xie et al. 2022, section 3.4).
    """
    pixels, config = batch["pixel_values"], core(model).config
    patch = config.patch_size
    high, wide = pixels.shape[2] // patch, pixels.shape[3] // patch
    hidden = masks(batch["chance"].tolist(), high * wide, masking_rate).to(pixels.device)
    said = model(pixel_values=pixels, bool_masked_pos=hidden)["reconstruction"]
    where = hidden.view(-1, 1, high, wide).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    where = where.expand_as(pixels).float()
    count, seen = where.sum((1, 2, 3)), (1 - where).sum((2, 3), keepdim=True).clamp(min=1)
    mean = (pixels * (1 - where)).sum((2, 3), keepdim=True) / seen
    costs = [
        ((pixels - other).abs() * where).sum((1, 2, 3)) / count for other in (said, mean.expand_as(pixels))
    ]
    return torch.stack(costs, dim=1)


def first_cost(costs: Tensor, labels: Tensor) -> Tensor:
    """Each picture's own distance [batch]."""
    return costs[:, 0].float()


def pictures_counted(labels: Tensor) -> Tensor:
    """One item a picture: each has as many hidden pixels."""
    return torch.ones_like(labels, dtype=torch.long)


def pixel_figures(costs: np.ndarray, gold: np.ndarray, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Figures of masked patches.

    Args:
        costs: [pictures, 2], see `masked_costs`.

    Returns:
        distance: of hidden pixels from what is said of them (the processor's scale, usually [-1, 1]);
        mean_distance: from the mean of what is seen; explained: the share that the model is nearer.
    """
    own, plain = (float(value) for value in costs.mean(axis=0, dtype=np.float64))
    return {"distance": own, "mean_distance": plain, "explained": 1 - own / plain if plain else math.nan}


def pixel_collator(processor: Any, *, seed: int) -> Fresh:
    """The next pixel at each place, from a start token on; no noise.

    Batches: input_ids and labels [batch, pixels].
    """
    mode, colours = pictures.mode_of(channels(processor)), processor.to_dict().get("clusters")
    if colours is None:
        raise InputError(
            "The image processor has no palette ('clusters'), so that pixels are no tokens; wanted "
            "ImageGPT's. Set --model_name_or_path"
        )
    start = len(colours)

    def batch(rows: list[dict[str, Any]]) -> Batch:
        opened = [pictures.opened(row["image"], mode) for row in rows]
        pixels = torch.as_tensor(np.asarray(processor(opened)["input_ids"]))
        first = torch.full((len(rows), 1), start)
        return {"input_ids": torch.cat([first, pixels[:, :-1]], dim=1), "labels": pixels}

    return Fresh(lambda rng, feature: {"image": feature["image"]}, batch, seed)


def pixel_logits(model: Any, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Logits of every pixel, row by row: [batch * pixels, colours]."""
    return model(**batch, use_cache=False)["logits"][labels.ne(IGNORED)]


def bind_masked_patches(given: dict[str, Any]) -> dict[str, Any]:
    """Which share of a picture is hidden."""
    return {
        "collate": partial(masked_collator, seed=given["seed"]),
        "forward": partial(masked_costs, masking_rate=given["masking_rate"]),
    }


def bind_next_pixel(given: dict[str, Any]) -> dict[str, Any]:
    """Nothing is drawn."""
    return {"collate": partial(pixel_collator, seed=given["seed"])}
