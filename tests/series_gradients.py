"""One optimizer step of the tasks on series for each family → gradients. Used by test_series_invariance,
and run by it under torchrun.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, Features, List, Value
from gradients import Gradients, one_step, trained, write
from transformers import AutoConfig

from finetune.data.batching import BatchingArguments
from finetune.data.sources import DataArguments, Rows
from finetune.models.series_processor import SeriesProcessor
from finetune.tasks.options import TaskArguments
from finetune.tasks.table import settle
from finetune.training.trainer import make_trainer

SMALL = {"d_model": 16, "ffn_dim": 16, "num_hidden_layers": 1}
LAGGED = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "dropout": 0.0, "attention_dropout": 0.0,
    "activation_dropout": 0.0, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0,
}  # fmt: skip
FAMILIES: dict[str, dict[str, object]] = {
    "patchtst": SMALL | {"norm_type": "layernorm"},
    "patchtsmixer": {"d_model": 8, "num_layers": 1, "norm_mlp": "LayerNorm", "dropout": 0.0,
    "head_dropout": 0.0},
    "dlinear": {},
    "informer": LAGGED | {"attention_type": "full", "distil": False},
    "time_series_transformer": LAGGED,
    "timesfm": {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "head_dim": 8, "patch_length": 8,
    },
}  # fmt: skip
# families whose training hangs on what shares a batch, and whose answers don't
BOUND: dict[str, dict[str, object]] = {
    "autoformer": LAGGED | {"encoder_attention_heads": 1, "decoder_attention_heads": 1, "moving_average": 5},
    "informer/prob": LAGGED,
}
CASES = [*(("forecast", family) for family in FAMILIES), ("series", "patchtst")]
OPTIONS = {
    "forecast": {"context_length": 16, "prediction_length": 4},
    "series": {},
}


def hourly(count: int = 60, seed: int = 0) -> Dataset:
    """Two channels of waves and noise, in units of their own."""
    rng, time = np.random.default_rng(seed), np.arange(count)
    frame = pd.DataFrame({"date": pd.date_range("2020-02-28", periods=count, freq="h")})
    wave = np.sin(time * 2 * np.pi / 12)
    frame["load"], frame["heat"] = 50 + 9 * wave + rng.normal(size=count), wave + 0.1 * rng.normal(size=count)
    return Dataset.from_pandas(frame, preserve_index=False)


def labelled(count: int = 8) -> Dataset:
    """Series of two channels and unequal length, rising or falling."""
    rng = np.random.default_rng(0)
    cells = [
        [(np.linspace(0, 1 - 2 * (n % 2), 8 + n) + rng.normal(0, 0.1, 8 + n)).tolist() for _ in range(2)]
        for n in range(count)
    ]
    labels = ["rises" if n % 2 == 0 else "falls" for n in range(count)]
    typed = Features({"series": List(List(Value("float32"))), "label": Value("string")})
    return Dataset.from_dict({"series": cells, "label": labels}, features=typed)


def prepared(task: str, family: str):
    """The row, its processor, a tiny model, the names of its classes or None, and features: of a forecast
    eight windows to train on.
    """
    row = settle(TaskArguments(task=task, **OPTIONS[task]), "encoder")
    rows = hourly(27) if task == "forecast" else labelled()
    found = row.examine(
        Rows(rows, hourly(60) if task == "forecast" else labelled(6), "x"), DataArguments("x")
    )
    torch.manual_seed(0)
    entries = dict((FAMILIES | BOUND)[family])
    config = row.sized(AutoConfig.for_model(family.partition("/")[0]), entries, found)
    config.num_labels = len(found.labels or "xy")
    network, processor = row.model.from_config(config), SeriesProcessor()
    row.start(network, processor, found)
    features = {
        split: row.encode(part, found.columns, processor, 0, found.labels)
        for split, part in found.rows.splits()
    }
    return row, processor, network, found, features


def step_gradients(task: str, family: str, split: str, folder: Path) -> Gradients:
    """Gradients of the first step, the rows dealt out as `split` says (`gradients.SPLITS`)."""
    row, processor, network, found, features = prepared(task, family)
    assert len(features["train"]) == 8
    options = {"labels": found.labels, "batching": BatchingArguments()}
    train = {"train": features["train"]}
    return trained(make_trainer(row, network.train(), processor, one_step(split, folder), train, **options))


def main(folder: Path) -> None:
    """What two processes leave."""
    write(
        {f"{task}/{family}": step_gradients(task, family, "processes", folder) for task, family in CASES},
        folder,
    )
