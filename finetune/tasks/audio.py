"""One class for a sound: from raw rows to figures. Knows columns, waves and feature extractors; knows no
trainer.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Audio, Dataset
from torch import Tensor

from finetune.data import sounds
from finetune.data.cells import content_of
from finetune.data.collate import Batch, Features
from finetune.data.columns import Columns
from finetune.data.media import file_features, lay_out_files, without_broken
from finetune.data.sources import DataArguments, Rows
from finetune.metrics.baselines import linear_classes, majority
from finetune.models.audio import USUAL_RATE, longest_heard
from finetune.models.heads import core
from finetune.tasks.classification import Inputs, examine_classes
from finetune.tasks.task import Examined, both_splits

logger = logging.getLogger(__name__)

USUAL = ("audio", "sound", "wav", "wave", "speech", "file_name", "file", "path")
SHORTEST = 400  # samples, of a window at any rate: below it, filters and convolutions have nothing to work on


def examine(rows: Rows, data: DataArguments) -> Examined:
    """Sounds with a class each (see `classification.examine_classes`).

    Raises:
        InputError: a sound that can't be read or holds none, with its row, and whatever labels may have.
    """
    lay_out = partial(lay_out_files, usual=USUAL, typed=Audio(decode=False))
    filled = partial(without_broken, fault=sounds.sound_fault, what="sound")
    return examine_classes(rows, data, Inputs(lay_out, filled, lambda row, of: content_of(row[of.text])))


def encode(
    rows: Dataset, columns: Columns, processor: Any, max_length: int, labels: list[str] | None
) -> Dataset:
    """Sounds as their files, opened when a batch is made: audio, labels, row, length (of 10 ms each).

    Says in the log what is made of sounds of other rates and channels, and which are cut.
    """
    return file_features(rows, columns, "audio", say_kinds(rows[columns.text], processor), labels)


def say_kinds(cells: Any, processor: Any) -> list[int]:
    """Which sounds are resampled, made one of several channels, or cut; the length of each in hundredths of a
    second.
    """
    rates, channels, seconds = sounds.sound_kinds(cells)
    others = Counter({rate: count for rate, count in rates.items() if rate != processor.sampling_rate})
    if others:
        told = ", ".join(f"{count} of {rate} Hz" for rate, count in others.most_common(5))
        logger.warning("Sounds are resampled to %d Hz: %s", processor.sampling_rate, told)
    several = sum(count for many, count in channels.items() if many > 1)
    if several:
        logger.warning("%d sounds have several channels, which are averaged", several)
    most = longest_heard(processor)
    long = [one for one in seconds if most is not None and one > most]
    if long:
        logger.warning(
            "%d of %d sounds are longer than the %.2f seconds that the model hears, and are cut (the longest "
            "has %.2f)", len(long), len(seconds), most, max(long),
        )  # fmt: skip
    # whole numbers, by which batches are grouped; none is 0
    return [max(1, round(100 * one)) for one in seconds]


def collate(processor: Any) -> Callable[[Features], Batch]:
    """Opens sounds, resamples them and makes what the model hears of them (log-mel for those that want it);
    in worker processes where there are any.

    Returns a function: features → input_values [batch, frames, bands], or [batch, samples] with
    attention_mask, or input_features [batch, bands, frames]; labels and row [batch].
    """
    # samples a second
    rate = processor.sampling_rate

    def batch_of(features: Features) -> Batch:
        waves = [sounds.heard(f["audio"], rate)[0] for f in features]
        # silence behind sounds of less than a window
        waves = [np.pad(wave, (0, max(0, SHORTEST - len(wave)))) for wave in waves]
        fixed = longest_heard(processor) is not None
        # extractors of fixed length pad by themselves
        filled = {} if fixed else {"padding": True}
        batch = dict(processor(waves, sampling_rate=rate, return_tensors="pt", **filled))
        # lengths before padding, for models that hear padding as sound (see `forward`)
        if not fixed:
            batch["samples"] = torch.tensor([len(wave) for wave in waves])
        for name in ("labels", "row"):
            if name in features[0]:
                batch[name] = torch.tensor([f[name] for f in features])
        return batch

    return batch_of


def forward(model: Any, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Logits [batch, classes].

    A model that normalises over a whole sound hears padding as sound: its rows are asked apart, those of one
    length together, so that no row's answer changes with its batch.
    """
    # no input of the model
    samples = batch.pop("samples", None)
    apart = samples is not None and core(model).config.to_dict().get("feat_extract_norm") == "group"
    if not apart:
        return model(**batch)["logits"]
    assert samples is not None
    places, parts = [], []
    # one pass for all rows of a length
    for length in samples.unique().tolist():
        chosen = (samples == length).nonzero()[:, 0]
        inputs = {name: value[chosen] for name, value in batch.items()}
        parts.append(model(**inputs | {"input_values": inputs["input_values"][:, :length]})["logits"])
        places.append(chosen)
    # parts come by length: back to the batch's order
    return torch.cat(parts)[torch.cat(places).argsort()]


def show(rows: Dataset, columns: Columns) -> list[str]:
    """What names each sound: its file, or its seconds."""
    return [
        str(cell["path"]) if cell["path"] else f"{len(wave) / rate:.2f} seconds"
        for cell in rows[columns.text]
        for wave, rate, _ in [sounds.heard(cell)]
    ]


def baselines(found: Examined) -> list[dict[str, Any]]:
    """The commonest class, and a linear model on log-mel bands."""
    both = both_splits(found)
    if both is None:
        return []
    parts, train, gold = both
    learnt, asked = (sounds.mel_vectors(part[found.columns.text], USUAL_RATE) for part in parts)
    made = (majority(gold, train), linear_classes("log-mel + linear", (learnt, train), (asked, gold)))
    return [one for one in made if one is not None]
