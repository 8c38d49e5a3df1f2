"""One optimizer step of every task on a few families → gradients, in this process or in each of two."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import WORDS, make_model, make_tokenizer
from datasets import ClassLabel, Dataset, Features, List, Value
from field_models import FIELD_CONFIGS, make_field_model, picture, sound
from gradients import Gradients, one_step, trained, write

from finetune.data.batching import BatchingArguments
from finetune.data.cells import FILE_CELL
from finetune.data.columns import Columns
from finetune.models.attention.packed import pack
from finetune.tasks.options import TaskArguments
from finetune.tasks.sft import packed
from finetune.tasks.table import settle
from finetune.training.trainer import make_trainer

CASES = [
    ("classification", "bert"), ("classification", "llama"), ("classification", "gpt2"), ("classification",
    "t5"),
    ("pairs", "bert"), ("pairs", "llama"), ("pairs", "gpt2"), ("pairs", "t5"),
    ("multilabel", "bert"), ("multilabel", "llama"), ("regression", "bert"), ("regression", "t5"), ("tokens",
    "bert"),
    ("tokens", "gpt2"), ("spans", "bert"), ("spans", "llama"), ("seq2seq", "t5"), ("seq2seq", "bart"),
    ("seq2seq", "gpt2"),
    ("seq2seq", "llama"), ("choice", "bert"), ("choice", "gpt2"), ("sft", "llama"),
    ("classification", "lstm"), ("classification", "textcnn"), ("tokens", "lstm"), ("choice", "lstm"),
    ("seq2seq", "gru_lm"), ("seq2seq", "lstm_seq2seq"),
    ("image", "vit"), ("image", "deit"), ("image", "imagegpt"), ("image", "convnext"), ("audio", "ast"),
    ("audio", "wav2vec2"), ("audio", "whisper"), ("classification", "esm"), ("tokens", "esm"),
]  # fmt: skip
LABELS = ["O", "B-A", "I-A"]
WITH_LABELS = ("classification", "pairs", "multilabel", "tokens", "image", "audio")
COLUMNS = {
    "classification": Columns("text", None, "label"),
    "pairs": Columns("text", "second", "label"),
    "multilabel": Columns("text", None, "set"),
    "regression": Columns("text", "second", "score"),
    "tokens": Columns("words", None, "tags"),
    "spans": Columns("second", "text", "answers"),
    "seq2seq": Columns("text", None, "second"),
    "choice": Columns("second", "offers", "place"),
    "sft": Columns("text", None, "second"),
    "image": Columns("picture", None, "label"),
    "audio": Columns("sound", None, "label"),
}
FEATURES = Features(
    {
        "text": Value("string"),
        "second": Value("string"),
        "label": ClassLabel(names=LABELS),
        "set": List(ClassLabel(names=LABELS)),
        "score": Value("float32"),
        "words": List(Value("string")),
        "tags": List(ClassLabel(names=LABELS)),
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int64"))},
        "offers": List(Value("string")),
        "place": Value("int64"),
        "picture": FILE_CELL,
        "sound": FILE_CELL,
    }
)


def rows() -> Dataset:
    """Eight rows of unequal length that hold a target for every task; numbers of labels and choices
    differ too.
    """
    generator = torch.Generator().manual_seed(1)
    lines = [
        [WORDS[int(i)] for i in torch.randint(0, len(WORDS), (n,), generator=generator)]
        for n in (2, 3, 5, 7, 4, 12, 9, 6)
    ]
    found = []
    for index, words in enumerate(lines):
        text, second = " ".join(words), " ".join(lines[-1 - index][:5])
        found.append(
            {
                "text": text,
                "second": second,
                "label": (0, 1, 2, 0, 1, 0, 0, 2)[index],
                "set": [i for i in range(3) if (index >> i) & 1],
                "score": index / 2,
                "words": words,
                "tags": [(index + place) % 2 for place in range(len(words))],
                "answers": {"text": [words[-1]], "answer_start": [len(text) - len(words[-1])]}
                if index
                else {"text": [], "answer_start": []},
                "offers": WORDS[index : index + 2 + index % 3],
                "place": index % 2,
                "picture": picture(index, (8, 8 + index % 3)),
                "sound": sound(index, 0.05 + 0.02 * (index % 4)),
            }
        )
    return Dataset.from_list(found, features=FEATURES)


def kind_of(family: str) -> str:
    return {
        "bert": "encoder",
        "esm": "encoder",
        "t5": "encoder-decoder",
        "bart": "encoder-decoder",
        "lstm_seq2seq": "encoder-decoder",
    }.get(family, "decoder")


def prepared(task: str, family: str, max_target_length: int = 8, **config: object):
    """The row, its processor, a tiny model, the names of its classes or None, and the features of the
    eight rows.
    """
    further = {"max_target_length": max_target_length} if task == "seq2seq" else {}
    row = settle(TaskArguments(task=task, **further), kind_of(family))
    labels = LABELS if task in WITH_LABELS else None
    entries = dict(row.config) | ({} if labels is None else {"num_labels": 3}) | config
    if family in FIELD_CONFIGS:
        network, processor = make_field_model(family, row.model, **entries)
    else:
        network, processor = make_model(family, row.model, **entries), make_tokenizer(family)
    return row, processor, network, labels, row.encode(rows(), COLUMNS[task], processor, 20, labels)


def step_gradients(task: str, family: str, split: str, folder: Path) -> Gradients:
    """Gradients of the first step, the rows dealt out as `split` says (`gradients.SPLITS`)."""
    config: dict[str, object] = {"classifier_dropout": 0.0} if family == "gpt2" else {}
    config |= (
        {"initializer_range": 0.3} if family in ("bert", "llama", "esm") else {}
    )  # gradients well above rounding
    row, processor, network, labels, features = prepared(task, family, **config)
    if task == "sft":
        row = packed(row)
        pack(network)
    training = one_step(split, folder)
    options = {"labels": labels, "batching": BatchingArguments()}
    return trained(make_trainer(row, network.train(), processor, training, {"train": features}, **options))


def main(folder: Path) -> None:
    write(
        {f"{task}/{family}": step_gradients(task, family, "processes", folder) for task, family in CASES},
        folder,
    )
