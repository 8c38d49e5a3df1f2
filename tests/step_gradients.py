"""One optimizer step of each task × family → gradients, saved as safetensors. Run by test_invariance, also under torchrun."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from conftest import FAMILIES, WORDS, make_model, make_tokenizer
from datasets import ClassLabel, Dataset, Features, Value
from safetensors.torch import save_file
from transformers import TrainerCallback

from finetune.data.batching import BatchingArguments
from finetune.data.columns import Columns
from finetune.tasks import TASKS
from finetune.training.trainer import TrainingArguments, make_trainer

SPLITS = {"batch": (8, 1), "accumulation": (1, 8), "uneven": (3, 3), "processes": (4, 1)}
TASK_NAMES = ("classification", "pairs")


def rows() -> Dataset:
    """Eight rows of unequal length, three classes."""
    generator = torch.Generator().manual_seed(1)
    texts = [
        " ".join(WORDS[int(i)] for i in torch.randint(0, len(WORDS), (n,), generator=generator))
        for n in (2, 3, 5, 7, 4, 12, 9, 6)
    ]
    labels = [0, 1, 2, 0, 1, 0, 0, 2]
    features = Features({"text": Value("string"), "second": Value("string"), "label": ClassLabel(names=["a", "b", "c"])})
    return Dataset.from_dict({"text": texts, "second": texts[::-1], "label": labels}, features=features)


class KeepGradients(TrainerCallback):
    """What the optimizer is about to see, after accumulation and over all processes."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        model = getattr(model, "module", model)
        self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def step_gradients(task: str, family: str, split: tuple[int, int], folder: Path) -> dict[str, torch.Tensor]:
    """Gradients of the first step with (rows a micro-batch, accumulation), and its logged loss under the key `loss`."""
    row, processor = TASKS[task], make_tokenizer(family)
    network = make_model(family, row.model, num_labels=3).train()
    columns = Columns("text", "second" if row.pair else None, "label")
    features = row.encode(rows(), columns, processor, 32, ["a", "b", "c"])
    training = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=split[0], gradient_accumulation_steps=split[1], max_steps=1, bf16=False,
        optim="sgd", learning_rate=0.1, max_grad_norm=0.0, eval_strategy="no", save_strategy="no", logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    trainer = make_trainer(
        row, network, processor, training, {"train": features}, labels=["a", "b", "c"], batching=BatchingArguments()
    )
    keeper = KeepGradients()
    trainer.add_callback(keeper)
    trainer.train()
    return keeper.gradients | {"loss": torch.tensor(trainer.state.log_history[0]["loss"])}


def main(name: str, folder: Path) -> None:
    found = {}
    for task in TASK_NAMES:
        for family in FAMILIES:
            gradients = step_gradients(task, family, SPLITS[name], folder)
            found |= {f"{task}/{family}/{key}": value for key, value in gradients.items()}
    if os.environ.get("RANK", "0") == "0":
        save_file(found, folder / f"{name}.safetensors")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
