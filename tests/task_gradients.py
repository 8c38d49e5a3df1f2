"""One optimizer step of every task on a few families → gradients. Run by test_task_invariance, also under torchrun."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from conftest import WORDS, make_model, make_tokenizer
from datasets import ClassLabel, Dataset, Features, List, Value
from safetensors.torch import save_file
from step_gradients import SPLITS, KeepGradients

from finetune.data.batching import BatchingArguments
from finetune.data.columns import Columns
from finetune.models.packed import pack
from finetune.tasks import TaskArguments, packed, settle
from finetune.training.trainer import TrainingArguments, make_trainer

CASES = [
    ("multilabel", "bert"), ("multilabel", "llama"), ("regression", "bert"), ("regression", "t5"), ("tokens", "bert"),
    ("tokens", "gpt2"), ("spans", "bert"), ("spans", "llama"), ("seq2seq", "t5"), ("seq2seq", "bart"), ("seq2seq", "gpt2"),
    ("seq2seq", "llama"), ("choice", "bert"), ("choice", "gpt2"), ("sft", "llama"),
]  # fmt: skip
LABELS = ["O", "B-A", "I-A"]
COLUMNS = {
    "multilabel": Columns("text", None, "set"),
    "regression": Columns("text", "second", "score"),
    "tokens": Columns("words", None, "tags"),
    "spans": Columns("second", "text", "answers"),
    "seq2seq": Columns("text", None, "second"),
    "choice": Columns("second", "offers", "place"),
    "sft": Columns("text", None, "second"),
}
FEATURES = Features(
    {
        "text": Value("string"),
        "second": Value("string"),
        "set": List(ClassLabel(names=LABELS)),
        "score": Value("float32"),
        "words": List(Value("string")),
        "tags": List(ClassLabel(names=LABELS)),
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int64"))},
        "offers": List(Value("string")),
        "place": Value("int64"),
    }
)


def rows() -> Dataset:
    """Eight rows of unequal length that hold a target for every task; numbers of labels and choices differ too."""
    generator = torch.Generator().manual_seed(1)
    lines = [[WORDS[int(i)] for i in torch.randint(0, len(WORDS), (n,), generator=generator)] for n in (2, 3, 5, 7, 4, 12, 9, 6)]
    found = []
    for index, words in enumerate(lines):
        text, second = " ".join(words), " ".join(lines[-1 - index][:5])
        found.append(
            {
                "text": text,
                "second": second,
                "set": [i for i in range(3) if (index >> i) & 1],
                "score": index / 2,
                "words": words,
                "tags": [(index + place) % 2 for place in range(len(words))],
                "answers": {"text": [words[-1]], "answer_start": [len(text) - len(words[-1])]}
                if index
                else {"text": [], "answer_start": []},
                "offers": WORDS[index : index + 2 + index % 3],
                "place": index % 2,
            }
        )
    return Dataset.from_list(found, features=FEATURES)


def kind_of(family: str) -> str:
    return {"bert": "encoder", "t5": "encoder-decoder", "bart": "encoder-decoder"}.get(family, "decoder")


def step_gradients(task: str, family: str, split: tuple[int, int], folder: Path) -> dict[str, torch.Tensor]:
    """Gradients of the first step with (rows a micro-batch, accumulation), and its logged loss under the key `loss`."""
    further = {"max_target_length": 8} if task == "seq2seq" else {}
    row, processor = settle(TaskArguments(task=task, **further), kind_of(family)), make_tokenizer(family)
    labels = LABELS if task in ("multilabel", "tokens") else None
    config = dict(row.config) | ({} if labels is None else {"num_labels": 3})
    config |= {"classifier_dropout": 0.0} if family == "gpt2" else {}
    config |= {"initializer_range": 0.3} if family in ("bert", "llama") else {}  # gradients well above rounding
    network = make_model(family, row.model, **config).train()
    features = row.encode(rows(), COLUMNS[task], processor, 20, labels)
    training = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=split[0], gradient_accumulation_steps=split[1], max_steps=1,
        bf16=False, optim="sgd", learning_rate=0.1, max_grad_norm=0.0, eval_strategy="no", save_strategy="no", logging_steps=1,
        disable_tqdm=True,
    )  # fmt: skip
    if task == "sft":
        row = packed(row)
        pack(network)
    trainer = make_trainer(row, network, processor, training, {"train": features}, labels=labels, batching=BatchingArguments())
    keeper = KeepGradients()
    trainer.add_callback(keeper)
    trainer.train()
    return keeper.gradients | {"loss": torch.tensor(trainer.state.log_history[0]["loss"])}


def main(name: str, folder: Path) -> None:
    found = {}
    for task, family in CASES:
        gradients = step_gradients(task, family, SPLITS[name], folder)
        found |= {f"{task}/{family}/{key}": value for key, value in gradients.items()}
    if os.environ.get("RANK", "0") == "0":
        save_file(found, folder / f"{name}.safetensors")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
