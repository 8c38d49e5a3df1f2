"""One optimizer step of each objective → gradients, saved as safetensors. Run by test_objectives, also under torchrun."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from conftest import WORDS, make_model, make_tokenizer
from datasets import Dataset
from safetensors.torch import save_file
from step_gradients import KeepGradients
from tokenizers import AddedToken

from finetune.data import texts
from finetune.data.batching import BatchingArguments
from finetune.models import packed
from finetune.models.contrastive import ContrastiveArguments
from finetune.objectives import ObjectiveArguments, settle
from finetune.training.pretraining import FreshTrainer
from finetune.training.trainer import TrainingArguments, make_trainer

FAMILIES = {"mlm": "bert", "clm": "gpt2", "nsp": "bert", "contrastive": "bert", "span_corruption": "t5", "infilling": "bart"}
SPLITS = {"batch": (8, 1), "accumulation": (1, 8), "uneven": (3, 3), "processes": (4, 1)}


def rows() -> Dataset:
    """Eight texts of several sentences of unequal length."""
    rng = np.random.default_rng(1)
    lengths = [(3, 4), (2, 3), (6, 2), (7, 4), (4, 4), (9, 3), (2, 2), (5, 6)]
    return Dataset.from_dict({"text": [" . ".join(" ".join(rng.choice(WORDS, n)) for n in pair) + " ." for pair in lengths]})


def processor_for(objective: str):
    processor = make_tokenizer(FAMILIES[objective])
    if objective == "span_corruption":
        processor.add_special_tokens({"additional_special_tokens": [AddedToken(f"<extra_id_{i}>") for i in range(10)]})
    return processor


def prepared(objective: str, **options: object):
    """Row, processor, tiny model and features of the eight texts."""
    row, processor = (
        settle(ObjectiveArguments(objective, max_length=48, **options), ContrastiveArguments(), 0),
        processor_for(objective),
    )
    network = make_model(FAMILIES[objective], row.model, vocab_size=64).train()
    if objective == "clm":
        packed.pack(network)
    return row, processor, network, texts.encoded(rows(), {"text": "text"}, row.encode, processor, 48)


def step_gradients(objective: str, split: tuple[int, int], folder: Path) -> dict[str, torch.Tensor]:
    """Gradients of the first step with (rows a micro-batch, accumulation), and its logged loss under the key `loss`."""
    row, processor, network, features = prepared(objective, **({"layout": "rows"} if objective == "clm" else {}))
    training = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=split[0], gradient_accumulation_steps=split[1], max_steps=1,
        bf16=False, optim="sgd", learning_rate=0.1, max_grad_norm=0.0, eval_strategy="no", save_strategy="no", logging_steps=1,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = make_trainer(
        row, network, processor, training, {"train": features}, batching=BatchingArguments(), kind=FreshTrainer
    )
    keeper = KeepGradients()
    trainer.add_callback(keeper)
    trainer.train()
    return keeper.gradients | {"loss": torch.tensor(trainer.state.log_history[0]["loss"])}


def main(name: str, folder: Path) -> None:
    found = {}
    for objective in FAMILIES:
        found |= {f"{objective}/{key}": value for key, value in step_gradients(objective, SPLITS[name], folder).items()}
    if os.environ.get("RANK", "0") == "0":
        save_file(found, folder / f"{name}.safetensors")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
