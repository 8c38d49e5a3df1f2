"""Labelled rows → what a model that learns from them says of unseen ones: tuned models, and fits of
scikit-learn.

Knows the steps of a training run; knows no budget's plan and no files that stay.
"""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from finetune.data.batching import BatchingArguments
from finetune.data.columns import class_ids
from finetune.methods import MethodArguments, find_method
from finetune.models.load import ModelArguments
from finetune.models.scratch import ScratchArguments, planned
from finetune.objectives.tokenizer import train_tokenizer
from finetune.tasks.answers import answerer
from finetune.tasks.options import TaskArguments
from finetune.tasks.table import settle
from finetune.training import run as steps
from finetune.training.baselines import fit_baseline, whole_texts
from finetune.training.continuing import tune
from finetune.training.options import TrainingArguments, settled
from finetune.training.trainer import make_trainer
from prompts.ladder.budget import StopInTime, TimeBudget
from prompts.ladder.rows import LadderRows

LSTM = "embedding_size=100,hidden_size=128,bidirectional=true,merge=sum,pooling=max,dropout=0.3"
LSTM_RATE = 2e-3
BATCH = 32  # unseen rows
# Of a training, at least. With 96, LoRA on 256 tickets of twelve classes was right for 0.19 of unseen ones,
# with 384 for 0.85: who was not trained to the end has not lost (Mosbach et al. 2021).
STEPS = 400


@dataclass(frozen=True)
class Said:
    """What a way says of each unseen row (numbers of classes), and what it took."""

    said: list[int]
    seconds: float
    row_ms: float
    own_mb: float
    base_mb: float
    kept_rows: int


def epochs_for(way: str, count: int) -> int:
    """Times that each of `count` labelled rows is read: as often as makes `STEPS` steps of them, where a few
    times don't; 60 at most, by which a handful of rows is known."""
    least = 6 if way == "lstm" else 3
    return int(np.clip(math.ceil(STEPS / math.ceil(count / batch_for(count))), least, 60))


def batch_for(count: int) -> int:
    """Rows a step: few while rows are few, or there would be hardly a step."""
    return 8 if count <= 256 else 16


def fit(way: str, rows: LadderRows, train: Dataset) -> Said:
    """Majority or bag of words.

    Raises:
        InputError: no word in any text, or one class alone.
    """
    # rows as every run's steps take them
    found = rows.examined(train)
    gold = np.array(class_ids(train, rows.columns.label, rows.labels))
    start = time.perf_counter()
    processor, network = fit_baseline(way, whole_texts(train, found), gold, len(rows.labels))
    learnt = time.perf_counter()
    said: list[int] = []
    texts = whole_texts(rows.unseen, found)
    # in batches as a service would answer
    with torch.inference_mode():
        for first in range(0, len(texts), BATCH):
            batch = processor(texts[first : first + BATCH], padding=True, return_tensors="pt")
            said += network(**batch).logits.argmax(-1).tolist()
    done = time.perf_counter()
    own = saved_mb(network)
    return Said(said, learnt - start, 1000 * (done - learnt) / len(texts), own, 0.0, len(train))


def learn(
    way: str, rows: LadderRows, train: Dataset, seed: int, settings: tuple[ModelArguments, int, TimeBudget]
) -> Said:
    """A model tuned on labelled rows by a method, or an LSTM made of them.

    Args:
        settings: the model, tokens of a text, and how long there is.

    Raises:
        BudgetSpent: time ran out before the end.
        InputError: the method can't tune this model.
    """
    model, max_length, clock = settings
    # what a run leaves is of no use here: its figures are kept
    with tempfile.TemporaryDirectory() as folder:
        scratch = _lstm_of(train, rows, folder) if way == "lstm" else ScratchArguments()
        method = MethodArguments(method="full" if way == "lstm" else way)
        task = TaskArguments(max_length=max_length, save_predictions=False)
        row, found = settle(task, planned(model, scratch)), rows.examined(train)
        training = _training(way, len(train), seed, folder)
        processor, network = steps.load_for(row, model, found, scratch=scratch)
        # the method's own start, as `train` makes it
        processor, network = tune(network, processor, method, row.peft, None, labels=rows.labels)
        features = steps.encode_rows(row, task, found, processor, network, training=training)
        asked = steps.ask(found, features["eval"])
        answer = answerer(row, task, processor, asked, training.per_device_eval_batch_size)
        trainer = make_trainer(
            row, network, processor, training, features, labels=rows.labels, batching=BatchingArguments(),
            answer=answer,
        )  # fmt: skip
        # a budget must end a training in its middle
        trainer.add_callback(StopInTime(clock))
        start = time.perf_counter()
        trainer.train()
        learnt = time.perf_counter()
        # timed apart from the training
        trainer.evaluate()
        done = time.perf_counter()
        whole = trainer.unwrapped()
        number = {name: place for place, name in enumerate(rows.labels)}
        # by name, as the task's answers are
        said = [number[answer["prediction"]] for answer in trainer.answers]
        # trained weights alone are what is kept of an adapter
        own, total = saved_mb(whole), sum(p.numel() * p.element_size() for p in whole.parameters()) / 2**20
    # a whole model stands on nothing
    base = 0.0 if method.method == "full" else total
    count = len(train) * int(training.num_train_epochs)
    return Said(said, learnt - start, 1000 * (done - learnt) / len(rows.unseen), own, base, count)


def _training(way: str, count: int, seed: int, folder: str) -> TrainingArguments:
    options: dict[str, Any] = {
        "output_dir": folder, "num_train_epochs": epochs_for(way, count), "seed": seed,
        "per_device_train_batch_size": batch_for(count), "per_device_eval_batch_size": BATCH,
        "eval_strategy": "no", "save_strategy": "no", "logging_strategy": "no", "report_to": [],
        "disable_tqdm": True,
    }  # fmt: skip
    rate = LSTM_RATE if way == "lstm" else find_method(way).learning_rate
    return settled(TrainingArguments(**options), rate)


def _lstm_of(train: Dataset, rows: LadderRows, folder: str) -> ScratchArguments:
    """An LSTM that knows the words of the labelled rows, those of a single one too while there are few."""
    texts = whole_texts(train, rows.examined(train))
    # words that stand once are all there are of few rows
    tokenizer = train_tokenizer(
        texts, "mlm", "words", 10_000, min_frequency=1 if len(train) <= 64 else 2, lowercase=True
    )
    tokenizer.save_pretrained(Path(folder) / "words")
    return ScratchArguments("lstm", LSTM, str(Path(folder) / "words"))


def saved_mb(network: Any) -> float:
    """What a model, or the adapter on it, takes on disk."""
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        # weights alone: configurations are alike in size
        return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")) / 2**20
