"""One optimizer step of each objective → gradients, in this process or in each of two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from conftest import WORDS, make_model, make_tokenizer
from datasets import Dataset
from gradients import Gradients, one_step, trained, write
from tokenizers import AddedToken

from finetune.data.batching import BatchingArguments
from finetune.models.attention import packed
from finetune.objectives import inputs
from finetune.objectives.contrastive import ContrastiveArguments
from finetune.objectives.options import ObjectiveArguments
from finetune.objectives.table import settle_objective
from finetune.training.pretraining import FreshTrainer
from finetune.training.trainer import make_trainer

FAMILIES = {
    "mlm": "bert",
    "clm": "gpt2",
    "nsp": "bert",
    "contrastive": "bert",
    "span_corruption": "t5",
    "infilling": "bart",
}


def rows() -> Dataset:
    """Eight texts of several sentences of unequal length."""
    rng = np.random.default_rng(1)
    lengths = [(3, 4), (2, 3), (6, 2), (7, 4), (4, 4), (9, 3), (2, 2), (5, 6)]
    return Dataset.from_dict(
        {"text": [" . ".join(" ".join(rng.choice(WORDS, n)) for n in pair) + " ." for pair in lengths]}
    )


def processor_for(objective: str):
    processor = make_tokenizer(FAMILIES[objective])
    if objective == "span_corruption":
        processor.add_special_tokens(
            {"additional_special_tokens": [AddedToken(f"<extra_id_{i}>") for i in range(10)]}
        )
    return processor


def prepared(objective: str, **options: object):
    """Row, processor, tiny model and features of the eight texts."""
    row, processor = (
        settle_objective(ObjectiveArguments(objective, max_length=48, **options), ContrastiveArguments(), 0),
        processor_for(objective),
    )
    network = make_model(FAMILIES[objective], row.model, vocab_size=64).train()
    if objective == "clm":
        packed.pack(network)
    return (
        row,
        processor,
        network,
        inputs.encoded(rows(), {"text": "text"}, row.encode, processor, max_length=48),
    )


def step_gradients(objective: str, split: str, folder: Path) -> Gradients:
    """Gradients of the first step, the rows dealt out as `split` says (`gradients.SPLITS`)."""
    row, processor, network, features = prepared(
        objective, **({"layout": "rows"} if objective == "clm" else {})
    )
    options = {"batching": BatchingArguments(), "kind": FreshTrainer}
    return trained(
        make_trainer(row, network, processor, one_step(split, folder), {"train": features}, **options)
    )


def main(folder: Path) -> None:
    write({objective: step_gradients(objective, "processes", folder) for objective in FAMILIES}, folder)
