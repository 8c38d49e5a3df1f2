"""What comes next in a series of several channels: from rows with times to figures. Knows columns, windows
and arrays; knows no model and no trainer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedConfig

from finetune.data.columns import Columns
from finetune.data.series import Series, find_channels, find_time, to_series
from finetune.data.sources import DataArguments, FewShotArguments, Rows
from finetune.data.time_splits import limited, load_series
from finetune.data.windows import CALENDAR, Windows, stacked
from finetune.errors import InputError
from finetune.metrics.bootstrap import interval, mean_figure
from finetune.metrics.forecasts import forecast_figures, seasonal_naive
from finetune.models.forecasters import bound_to_batches, check_sizes, resized, sizes
from finetune.models.series_processor import SeriesProcessor
from finetune.tasks.options import TaskArguments
from finetune.tasks.task import Answer, Asked, Examined

logger = logging.getLogger(__name__)

Collated = dict[str, Tensor]
CONTEXT = 336  # as in the papers of DLinear and PatchTST


def bind(options: TaskArguments) -> dict[str, Any]:
    """Windows of the size that was asked for."""
    # bound into every step alike: a window of another size anywhere would shift all targets
    context, horizon = options.context_length or CONTEXT, options.prediction_length
    return {
        "load": partial(
            load_series, split_rows=options.split_rows, time_column=options.time_column, context=context
        ),
        "examine": partial(examine, context=context, options=options),
        "encode": partial(encode, context=context, horizon=horizon),
        "sized": partial(sized, context=context, horizon=horizon),
        "start": partial(start, context=context, horizon=horizon),
        "metrics": partial(figures_of_sums, horizon=horizon),
        "read": partial(read, horizon=horizon),
        "unseen": partial(behind_training, context=context),
        "baselines": partial(baselines, context=context, options=options),
        "lead": context,
        "block": horizon,
    }


def examine(rows: Rows, data: DataArguments, *, context: int, options: TaskArguments) -> Examined:
    """Rows of one series, each part checked: even times, finite numbers, as long as a window.

    Raises:
        InputError: whatever makes it no series, or too short a one; each names its row and flag.
    """
    assert rows.train is not None and rows.eval is not None
    # it would be cut to the window without a word
    if options.season is not None and options.season > context:
        raise InputError(
            f"--season {options.season} is longer than the {context} steps that are read; set "
            "--context_length higher, or --season lower"
        )
    _refuse_unread(data)
    # shots are of a class, and a forecast has none
    if isinstance(data, FewShotArguments) and data.shots_per_class is not None:
        raise InputError("--shots_per_class wants a task with one class a row; set --max_train_rows")
    time = find_time(rows.train, options.time_column, data.name)
    channels = find_channels(rows.train, time, options.series_columns, data.ignore_columns, data.name)
    # a text column there must be: without times a channel stands for it, which `_series` knows by
    columns = Columns(time or channels[0], None, channels[0], tuple(channels))
    # a stretch, not a sample: windows want neighbouring rows
    alone, shortened = rows.train is rows.eval, limited(rows, data, context)
    parts = [*([] if alone else [(shortened.train, "training")]), (shortened.eval, "evaluation")]
    for part, where in parts:
        assert part is not None
        missing = [name for name in columns.inputs if name not in part.column_names]
        if missing:
            raise InputError(f"No column '{missing[0]}' in the {where} rows of {data.name}. Set --eval_split")
        # each part is checked by itself: files of splits may differ
        find_channels(part, time, channels, None, data.name)
        to_series(part, time, channels, data.name)
        _check_length(len(part), where, context, options.prediction_length)
    kept = shortened.changed(
        lambda part: part.select_columns(
            [n for n in part.column_names if n in columns.inputs or n.startswith("__")]
        )
    )
    # one object for both where nothing is trained
    return Examined(Rows(kept.eval if alone else kept.train, kept.eval, rows.name), columns, None)


def _refuse_unread(data: DataArguments) -> None:
    """Options for rows that are no steps in time would be believed to work.

    Raises:
        InputError: one is set.
    """
    # a group kept aside would tear the series, and labels and texts it has none
    unread = ("hold_out", "text_column", "text_pair_column", "label_column", "class_names", "near_labels")
    for name in (*unread, "minus_one", "drop_empty_rows", "layout", "learn_turns"):
        # unset, False and empty alike
        if vars(data).get(name):
            raise InputError(
                f"A forecast has no use for --{name}; leave it out. --series_columns and --time_column name "
                "columns, and --split_rows says what is kept for evaluation"
            )


def _check_length(rows: int, where: str, context: int, horizon: int) -> None:
    if rows < context + horizon:
        raise InputError(
            f"The {where} part has {rows} "
            f"rows{' with what stands before it' if where == 'evaluation' else ''}; a window wants "
            f"{context} to read and {horizon} to forecast. Set --context_length and --prediction_length "
            "lower, or --split_rows"
        )


def _series(rows: Dataset, columns: Columns) -> Series:
    # a channel in the time's place says that there are no times
    time = None if columns.text in columns.further else columns.text
    return to_series(rows, time, columns.further, "the rows")


def encode(
    rows: Dataset,
    columns: Columns,
    processor: SeriesProcessor,
    max_length: int,
    labels: list[str] | None,
    *,
    context: int,
    horizon: int,
) -> Windows:
    """The series' windows, which are views; they are brought onto the standard scale when a batch is made.

    Raises:
        InputError: other channels than those of the training.
    """
    processor.check(columns.further)
    series = _series(rows, columns)
    return Windows(series.values, context, horizon, start=series.start, step=series.step)


def collate(processor: SeriesProcessor) -> Callable[[Sequence[dict[str, Any]]], Collated]:
    """Windows → a batch on the standard scale (see `windows.stacked`)."""

    def batch(windows: Sequence[dict[str, Any]]) -> Collated:
        made = stacked(windows)
        # scaled a batch at a time: windows are views, and scaling them would copy the series for each
        return made | {name: processor.standard(made[name]) for name in ("past_values", "labels")}

    return batch


def sized(
    config: PreTrainedConfig, own: dict[str, Any], found: Examined, *, context: int, horizon: int
) -> PreTrainedConfig:
    """A fresh model's configuration for these windows; the user's own entries come on top."""
    # calendar features only where times are known
    told = 0 if found.columns.text in found.columns.further else CALENDAR
    channels = len(found.columns.further)
    return resized(config, sizes(config, channels, context, horizon, told) | own)


def start(network: Any, processor: SeriesProcessor, found: Examined, *, context: int, horizon: int) -> None:
    """The processor learns the scale of the training rows, and the model is asked whether it fits them.

    Raises:
        InputError: a model for other windows, or a channel that is constant.
    """
    assert found.rows.train is not None
    columns = found.columns
    check_sizes(network.config, len(columns.further), context, horizon)
    if network.config.to_dict().get("num_time_features") and columns.text in columns.further:
        raise InputError("The model reads times, and the rows have none. Set --time_column")
    values = _series(found.rows.train, columns).values
    # float64: a float32 sum over a long series loses its last digits
    means = values.mean(axis=0, dtype=np.float64)
    deviations = values.std(axis=0, dtype=np.float64)
    processor.fit(means, deviations, columns.further)
    # saved with the processor, so that whoever forecasts later knows what to read
    processor.context_length = context
    # batch statistics, for one, see the micro-batch alone
    bound = bound_to_batches(network)
    if bound is not None:
        logger.warning("Accumulating over smaller batches is not the same as one large one here: %s", bound)


def squared_errors(logits: Tensor, labels: Tensor) -> Tensor:
    """Squared error of each window, summed over steps and channels: [batch, horizon, channels] → [batch]."""
    return (logits.float() - labels.float()).square().flatten(1).sum(dim=1)


def values_of(labels: Tensor) -> Tensor:
    """Numbers that each window's loss is summed over, [batch]."""
    # steps × channels, the same for each window
    return torch.full((len(labels),), labels[0].numel(), dtype=torch.long, device=labels.device)


def error_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Squared and absolute error of each window and channel, summed over steps: [batch, channels, 2].
    Forecasts themselves are not kept: they would be the horizon times as large as the series.
    """
    # float64: squares are summed over all windows of the evaluation
    off = logits.double() - labels.double()
    return torch.stack([off.square().sum(dim=1), off.abs().sum(dim=1)], dim=-1)


def no_labels(labels: Tensor) -> Tensor:
    """Nothing is kept of what came, for the same reason: [batch, 0]."""
    # a column of nothing keeps the number of rows
    return labels.new_zeros(len(labels), 0)


def figures_of_sums(kept: np.ndarray, labels: np.ndarray, names: Any, *, horizon: int) -> dict[str, float]:
    """`mse` and `mae` on the standard scale, over all windows, steps and channels."""
    return forecast_figures(kept, horizon)


def read(kept: np.ndarray, asked: Asked, *, horizon: int) -> list[Answer]:
    """Each window's errors, over all channels and by channel."""
    names, found = asked.columns.further, []
    # sums over steps → means; [channels, 2] each
    for window in kept[asked.in_order()] / horizon:
        own = {
            name: {"mse": mse, "mae": mae} for name, (mse, mae) in zip(names, window.tolist(), strict=True)
        }
        # channels count alike, as on the standard scale
        mse, mae = window.mean(axis=0).tolist()
        found.append({"mse": mse, "mae": mae, "channels": own})
    return found


def details(answers: Sequence[Answer], labels: Any, samples: int = 2000) -> dict[str, Any]:
    """Each channel's errors on the standard scale."""
    if not answers:
        return {}
    names = list(answers[0]["channels"])
    return {
        "per_channel": {
            name: {
                figure: float(np.mean([answer["channels"][name][figure] for answer in answers]))
                for figure in ("mse", "mae")
            }
            for name in names
        }
    }


def show(rows: Dataset, columns: Columns) -> list[str]:
    """The time that each forecast begins at, or the number of its row."""
    if columns.text in columns.further:
        return [f"row {place}" for place in range(len(rows))]
    return [str(value) for value in rows[columns.text]]


def behind_training(trained: np.ndarray, context: int) -> np.ndarray:
    """Places of the rows that may be scored and of the `context` rows that their forecasts are made from: all
    that come after the last row that was trained on.

    Args:
        trained: whether each row was trained on, [rows].
    """
    # rows between trained ones are left out too: the model has seen what came after them
    last = int(np.flatnonzero(trained)[-1]) if trained.any() else -1
    return np.arange(max(0, last + 1 - context), len(trained)) if last + 1 < len(trained) else np.arange(0)


def baselines(found: Examined, *, context: int, options: TaskArguments) -> list[dict[str, Any]]:
    """The season before, repeated."""
    assert found.rows.train is not None and found.rows.eval is not None
    train, held = (_series(part, found.columns) for part in (found.rows.train, found.rows.eval))
    # the training's scale, so that figures compare with the model's
    mean = train.values.mean(axis=0, dtype=np.float64)
    values = (held.values - mean) / train.values.std(axis=0, dtype=np.float64)
    horizon = options.prediction_length
    origins = np.arange(context, len(values) - horizon + 1)
    # no longer than what stands before the first forecast
    season = min(options.season or (1 if held.step is None else held.step.season), context)
    naive = seasonal_naive(values, origins, horizon, season)
    named = f"seasonal naive ({season})" if season > 1 else "the last value, repeated"
    return [_scored(named, naive, horizon)]


def _scored(name: str, sums: np.ndarray, horizon: int) -> dict[str, Any]:
    # [windows, 2]: a window's own mean errors, which the interval resamples
    each = sums.sum(axis=1) / (sums.shape[1] * horizon)
    return {
        "name": name, **forecast_figures(sums, horizon),
        "interval": interval(each[:, 0], block=horizon), "mae_interval": interval(each[:, 1], block=horizon),
    }  # fmt: skip


def _of(figure: str) -> Callable[[Sequence[Answer]], np.ndarray]:
    return lambda answers: np.array([[answer[figure], 1.0] for answer in answers])


INTERVALS = {figure: (_of(figure), mean_figure) for figure in ("mse", "mae")}
