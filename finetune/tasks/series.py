"""One class for a series: from raw rows to figures. Knows columns, series and arrays; knows no model and no
trainer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedConfig

from finetune.data.collate import Batch, Features
from finetune.data.columns import LABELS, Columns, class_ids, named_columns, settle_columns
from finetune.data.labelled import named_classes
from finetune.data.places import columns_of, place_of, places_of
from finetune.data.questions import Laid
from finetune.data.sources import DataArguments, Rows
from finetune.errors import InputError
from finetune.metrics.baselines import majority
from finetune.metrics.series_baselines import nearest_under_warping, random_kernels
from finetune.models.forecasters import check_sizes, resized, sizes
from finetune.models.series_processor import SeriesProcessor
from finetune.tasks.classification import Inputs, examine_classes
from finetune.tasks.options import TaskArguments
from finetune.tasks.task import Examined, both_splits

logger = logging.getLogger(__name__)

USUAL = ("series", "values", "signal", "x", "time_series")
DTW_AT_MOST, KERNELS_AT_MOST = 2e9, 1e9  # steps of work that a baseline may take, about half a minute


def bind(options: TaskArguments) -> dict[str, Callable]:
    """Windows of the size that was asked for."""
    return {
        "sized": partial(sized, context=options.context_length),
        "start": partial(start, context=options.context_length),
    }


def examine(rows: Rows, data: DataArguments) -> Examined:
    """Series with a class each (see `classification.examine_classes`).

    Raises:
        InputError: a series with gaps, without values, or with other channels than the first, with its row;
        and
            whatever labels may have.
    """
    return examine_classes(rows, data, Inputs(lay_out, filled, lambda row, of: repr(row[of.text])))


def lay_out(rows: Dataset, data: DataArguments) -> Laid:
    """A column of series and a class a row; a series of one channel may be a list of numbers."""
    text, _, mark = named_columns(data)
    column, label = settle_columns((text.of(USUAL), mark.of(LABELS)), columns_of(rows), data.name)
    # depth is told from a filled cell: 1 is a single channel, 2 several
    first = next((cell for cell in rows[column] if cell is not None), None)
    inner, depth = first, 0
    while isinstance(inner, list) and inner:
        inner, depth = inner[0], depth + 1
    # a text would be a list of depth 0
    if depth not in (1, 2) or isinstance(inner, (str, dict)):
        raise InputError(
            f"The column '{column}' of {data.name} holds {rows.features[column]!s:.120} ({first!r:.60} in "
            f"{place_of(rows, 0)}); wanted a list of numbers a row, or a list of channels, as JSON "
            "lines, Parquet and .ts files have them. Set --text_column"
        )
    return Laid(named_classes(rows, label, data.class_names), Columns(column, None, label),
                {USUAL[0]: [column], "label": [label]}, lambda row: "")  # fmt: skip


def channels_of(cell: Any) -> list[list[float | None]]:
    """A cell as a list of channels."""
    return cell if cell and isinstance(cell[0], list) else [cell or []]


def filled(rows: Dataset, columns: Columns, drop: bool, where: str) -> Dataset:
    """Rows whose series are whole: a number at every step, and channels as many and as long as each other.

    Raises:
        InputError: some are not, where `drop` does not allow to leave them out.
    """
    cells = rows[columns.text][:]
    # the first row sets the number of channels
    usual = len(channels_of(cells[0])) if cells else 0
    faults = {place: said for place, cell in enumerate(cells) if (said := fault(cell, usual))}
    if not faults:
        return rows
    first = next(iter(faults))
    said = (
        f"{len(faults)} of {len(rows)} {where} rows hold no whole series; {place_of(rows, first)} "
        f"{faults[first]} ({places_of(rows, list(faults))})"
    )
    if not drop:
        # only what stands at a step is a gap
        mend = "Fill the gaps (numpy.interp)" if "at step" in faults[first] else "Mend them"
        raise InputError(f"{said}. {mend}, or set --drop_empty_rows to leave such rows out")
    logger.warning("%s; they are left out", said)
    kept = rows.select([place for place in range(len(rows)) if place not in faults])
    if len(kept) == 0:
        raise InputError(f"No {where} row has a whole series in '{columns.text}'; set --text_column")
    return kept


def fault(cell: Any, usual: int) -> str | None:
    """What is wrong with a series that should have `usual` channels; None where nothing is."""
    channels = channels_of(cell)
    if not channels[0]:
        return "has no values"
    if len(channels) != usual:
        return f"has {len(channels)} channels where the first row has {usual}"
    if len({len(channel) for channel in channels}) > 1:
        return f"has channels of {' and '.join(map(str, sorted({len(one) for one in channels})))} steps"
    for number, channel in enumerate(channels):
        for step, value in enumerate(channel):
            # the place is named: a long series hides a gap well
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                return f"has {'a gap' if value is None else repr(value)} at step {step} of channel {number}"
    return None


def encode(
    rows: Dataset, columns: Columns, processor: SeriesProcessor, max_length: int, labels: list[str] | None
) -> Dataset:
    """Series on the standard scale: past_values [time, channels], labels, row, length; what is beyond the
    model's steps is cut, and the log says of how many rows.

    Raises:
        InputError: other channels than those of the training.
    """
    cells = [channels_of(cell) for cell in rows[columns.text]]
    processor.check(names(len(cells[0])))
    # as trained; before training, the longest of these
    longest = processor.context_length or max(len(cell[0]) for cell in cells)
    cut = sum(len(cell[0]) > longest for cell in cells)
    if cut:
        logger.warning("%d of %d series are longer than %d steps and are cut", cut, len(cells), longest)
    # [channels, time] → [time, channels], as models read it
    values = [
        processor.standard(torch.tensor(cell, dtype=torch.float64).T[:longest]).tolist() for cell in cells
    ]
    made: dict[str, list] = {
        "past_values": values, "row": list(range(len(rows))), "length": [len(one) for one in values],
    }  # fmt: skip
    if labels is not None:
        made["labels"] = class_ids(rows, columns.label, labels)
    return Dataset.from_dict(made)


def collate(processor: SeriesProcessor) -> Callable[[Features], Batch]:
    """Series → past_values [batch, context, channels], 0 (the training's mean) behind their ends,
    past_observed_mask (1 where there is a value), labels and row [batch].
    """

    def batch(features: Features) -> Batch:
        # always the model's own length: its heads are made for it
        longest, channels = int(processor.context_length or 0), len(processor.channels or ())
        values = torch.zeros(len(features), longest, channels)
        # 0 is also a value: the mask says which are padding
        observed = torch.zeros_like(values)
        for place, one in enumerate(features):
            own = torch.tensor(one["past_values"])
            values[place, : len(own)], observed[place, : len(own)] = own, 1
        return {"past_values": values, "past_observed_mask": observed} | {
            name: torch.tensor([one[name] for one in features])
            for name in ("labels", "row")
            if name in features[0]
        }

    return batch


def forward(model: Any, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Logits [batch, classes]."""
    return model(**batch)["prediction_logits"]


def names(channels: int) -> list[str]:
    """Channels of a cell have places, no names."""
    return [f"channel {number}" for number in range(channels)]


def _longest(found: Examined) -> tuple[int, int]:
    """Channels, and steps of the longest training row."""
    assert found.rows.train is not None
    cells = [channels_of(cell) for cell in found.rows.train[found.columns.text]]
    return len(cells[0]), max(len(cell[0]) for cell in cells)


def sized(
    config: PreTrainedConfig, own: dict[str, Any], found: Examined, *, context: int | None
) -> PreTrainedConfig:
    """A fresh model's configuration for these series; the user's own entries come on top."""
    channels, longest = _longest(found)
    return resized(config, sizes(config, channels, context or longest, 0, 0) | own)


def start(network: Any, processor: SeriesProcessor, found: Examined, *, context: int | None) -> None:
    """The processor learns the scale of the training rows, and the model is asked whether it fits them.

    Raises:
        InputError: a model for other series, or a channel that is constant.
    """
    assert found.rows.train is not None
    channels, longest = _longest(found)
    # --context_length was left out: what the model was made with
    if not context:
        context = network.config.context_length
    check_sizes(network.config, channels, context, 0)
    if longest > context:
        logger.warning("The longest training series has %d steps, and the model reads %d", longest, context)
    cells = [np.asarray(channels_of(cell)) for cell in found.rows.train[found.columns.text]]
    # [channels, all steps]: long series weigh more in the scale
    whole = np.concatenate(cells, axis=1)
    processor.fit(whole.mean(axis=1), whole.std(axis=1), names(channels))
    processor.context_length = context


def show(rows: Dataset, columns: Columns) -> list[str]:
    """How many steps and channels each series has."""
    cells = (channels_of(cell) for cell in rows[columns.text])
    return [f"{len(cell[0])} steps, {len(cell)} channel{'s' * (len(cell) > 1)}" for cell in cells]


def baselines(found: Examined) -> list[dict[str, Any]]:
    """Always the commonest class, random kernels with ridge regression, and the nearest neighbour under time
    warping; what would take long is left out.
    """
    both = both_splits(found)
    if both is None:
        return []
    parts, train, gold = both
    learnt, asked = padded(*([channels_of(cell) for cell in part[found.columns.text]] for part in parts))
    made = [majority(gold, train)]
    steps = learnt.shape[-1]
    # 10,000 kernels pass over every step of every channel
    if (len(learnt) + len(asked)) * learnt.shape[1] * steps * 1e4 <= KERNELS_AT_MOST * 10:
        made.append(random_kernels(learnt, train, asked, gold))
    # time warping compares every step with every other, for each pair of series
    if len(learnt) * asked.size * steps <= DTW_AT_MOST:
        made.append(nearest_under_warping(learnt, train, asked, gold))
    return made


def padded(*parts: list[list[list[float]]]) -> tuple[np.ndarray, ...]:
    """Series as [rows, channels, time], 0 behind the ends of the shorter ones."""
    longest = max(len(cell[0]) for part in parts for cell in part)
    found = tuple(np.zeros((len(part), len(part[0]), longest)) for part in parts)
    for whole, part in zip(found, parts, strict=True):
        for place, cell in enumerate(part):
            whole[place, :, : len(cell[0])] = cell
    return found
