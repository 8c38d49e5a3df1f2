"""One class for a picture: from raw rows to figures. Knows columns, pictures and image processors; knows no
model and no trainer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image

from finetune.data import pictures
from finetune.data.cells import content_of
from finetune.data.collate import Batch, Features
from finetune.data.columns import Columns
from finetune.data.media import file_features, lay_out_files, without_broken
from finetune.data.sources import DataArguments, Rows
from finetune.metrics.baselines import majority, nearest_neighbours, support_vectors
from finetune.models.images import channels
from finetune.tasks.classification import Inputs, examine_classes
from finetune.tasks.task import Examined, both_splits


def examine(rows: Rows, data: DataArguments) -> Examined:
    """Pictures with a class each (see `classification.examine_classes`).

    Raises:
        InputError: a picture that can't be read, with its row, and whatever labels may have.
    """
    # asked at once: else a missing package would be reported as a broken picture in every row
    pictures.pillow()
    lay_out = partial(lay_out_files, usual=pictures.USUAL, typed=Image(decode=False))
    filled = partial(without_broken, fault=pictures.picture_fault, what="picture")
    return examine_classes(rows, data, Inputs(lay_out, filled, lambda row, of: content_of(row[of.text])))


def encode(
    rows: Dataset, columns: Columns, processor: Any, max_length: int, labels: list[str] | None
) -> Dataset:
    """Pictures as their files, opened when a batch is made: image, labels, row, length (1: all are as long).

    Says in the log what is made of pictures of other modes and sizes.
    """
    # what the model wants, to say what becomes of other sizes
    size = processor.to_dict().get("size", {})
    pictures.say_kinds(rows[columns.text], pictures.mode_of(channels(processor)), size)
    return file_features(rows, columns, "image", [1] * len(rows), labels)


def collate(processor: Any) -> Callable[[Features], Batch]:
    """Opens pictures and brings them into the model's form; in worker processes where there are any.

    Returns a function: features → pixel_values [batch, channels, height, width] (ImageGPT: input_ids [batch,
    pixels]), labels and row [batch].
    """
    mode = pictures.mode_of(channels(processor))

    def batch_of(features: Features) -> Batch:
        batch = dict(processor([pictures.opened(f["image"], mode) for f in features], return_tensors="pt"))
        for name in ("labels", "row"):
            if name in features[0]:
                batch[name] = torch.tensor([f[name] for f in features])
        return batch

    return batch_of


def show(rows: Dataset, columns: Columns) -> list[str]:
    """Small copies of the pictures, for pages."""
    return [pictures.small_copy(cell) for cell in rows[columns.text]]


def baselines(found: Examined) -> list[dict[str, Any]]:
    """The commonest class, the nearest neighbours and a support vector machine on grey pixels."""
    both = both_splits(found)
    if both is None:
        return []
    parts, train, gold = both
    # [pictures, 784] grey values
    learnt, asked = (np.asarray(pictures.pixels(part[found.columns.text])) for part in parts)
    made = (
        majority(gold, train),
        nearest_neighbours(learnt, train, asked, gold),
        support_vectors(learnt, train, asked, gold),
    )
    return [one for one in made if one is not None]
