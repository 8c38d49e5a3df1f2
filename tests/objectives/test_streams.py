"""Streams: which rows come, in what shares, and the same ones on any number of processes."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from conftest import make_model, make_tokenizer
from datasets import Dataset
from test_objectives import StopAt
from transformers import AutoModelForMaskedLM

from finetune.data.batching import BatchingArguments
from finetune.data.sources import DataArguments
from finetune.errors import InputError
from finetune.objectives import streams
from finetune.objectives.contrastive import ContrastiveArguments
from finetune.objectives.options import ObjectiveArguments
from finetune.objectives.table import settle_objective
from finetune.training.options import TrainingArguments
from finetune.training.pretraining import FreshTrainer, check_pretraining
from finetune.training.trainer import make_trainer


def plain(batch, rng):
    return {"text": batch["text"]}


def texts(name, count):
    return Dataset.from_dict({"text": [f"{name}{number}" for number in range(count)]})


def stream(**changes):
    settings = {
        "sources": [texts("a", 5), texts("b", 50)],
        "weights": [3.0, 1.0],
        "seed": 0,
        "buffer": 10,
    }
    encoders = [changes.pop("encode", plain)] * len(changes.get("sources", settings["sources"]))
    return streams.Stream(**(settings | {"encoders": encoders} | changes))


def taken(source, count):
    return [row["text"] for row in islice(iter(source), count)]


def test_sources_come_by_weight_and_go_round():
    rows = taken(stream(), 2000)
    assert Counter(text[0] for text in rows)["a"] / 2000 == pytest.approx(0.75, abs=0.03)
    small = [text for text in rows if text[0] == "a"]
    assert (
        max(Counter(small).values()) - min(Counter(small).values()) <= 3
    )  # every row of a round before the next


def test_the_same_seed_gives_the_same_stream():
    assert taken(stream(), 50) == taken(stream(), 50) != taken(stream(seed=1), 50)


def test_rows_come_shuffled_from_a_source_that_cannot_be_counted():
    source = texts("a", 100).to_iterable_dataset()
    rows = taken(stream(sources=[source], weights=[1.0], buffer=20), 100)
    assert rows != sorted(rows, key=lambda text: int(text[1:]))
    assert taken(stream(sources=[source], weights=[1.0], buffer=1), 3) == ["a0", "a1", "a2"]


def test_processes_share_the_stream():
    whole = list(islice(iter(stream()), 12))
    parts = [list(islice(iter(stream().share(3, process)), 4)) for process in range(3)]
    assert [parts[n % 3][n // 3] for n in range(12)] == whole
    assert [row["row"] for row in whole] == list(range(12))


def test_mixtures_are_read():
    assert streams.parse_mixture(["a=0.7", "b/c.parquet=3"]) == {"a": 0.7, "b/c.parquet": 3.0}
    for entry in ("a", "a=x", "=1", "a=0", "a=-1"):
        with pytest.raises(InputError, match="--mixture"):
            streams.parse_mixture([entry])
    with pytest.raises(InputError, match="--mixture a=2"):
        streams.parse_mixture(["a=1", "a=2"])


def test_an_empty_source_is_said():
    with pytest.raises(InputError, match="no rows"):
        taken(stream(sources=[texts("a", 0)], weights=[1.0]), 1)


def test_a_stream_that_gives_no_row_is_said():
    with pytest.raises(InputError, match=r"5120 texts of a stream give no row"):
        taken(stream(encode=lambda batch, rng: {"text": []}), 1)


def trained(folder, resume=None, stop=None):
    processor, network = make_tokenizer("bert"), make_model("bert", AutoModelForMaskedLM).train()
    row = settle_objective(ObjectiveArguments("mlm", max_length=16), ContrastiveArguments(), 0)
    sources = [
        Dataset.from_dict({"text": ["the film was good", "dull"]}),
        Dataset.from_dict({"text": ["i hated it", "we loved the actor"]}),
    ]
    endless = streams.Stream(
        sources, [2.0, 1.0], [lambda batch, rng: row.encode(batch, processor, 16, rng)] * 2, 0, 3
    )
    training = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=6,
        bf16=False,
        learning_rate=1e-2, eval_strategy="no", save_strategy="steps", save_steps=3, disable_tqdm=True,
    )  # fmt: skip
    trainer = make_trainer(row, network, processor, training, {"train": endless}, kind=FreshTrainer)
    if stop:
        trainer.add_callback(StopAt(stop))
    trainer.train(resume_from_checkpoint=resume and str(resume))
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def test_a_resumed_stream_goes_on_where_it_was_left(tmp_path):
    whole = trained(tmp_path / "whole")
    resumed = trained(tmp_path / "again", resume=tmp_path / "whole" / "checkpoint-3")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_stream_needs_an_end(tmp_path):
    with pytest.raises(InputError, match="--max_steps"):
        checked(tmp_path)
    with pytest.raises(InputError, match="--dataloader_num_workers"):
        checked(tmp_path, max_steps=2, dataloader_num_workers=1)


def checked(folder, stream=None, data=None, batching=None, in_batch=False, **training):
    training = TrainingArguments(output_dir=str(folder), **training)
    stream = stream or streams.StreamArguments(streaming=True)
    check_pretraining(
        stream, data or DataArguments(), batching or BatchingArguments(), training, in_batch=in_batch
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": DataArguments(max_train_rows=3), "max_steps": 1}, "no use for --max_train_rows"),
        (
            {"batching": BatchingArguments(tokens_per_batch=99), "max_steps": 1},
            "no use for --tokens_per_batch",
        ),
        ({"stream": streams.StreamArguments(streaming=True, shuffle_buffer=0)}, "wanted 1 or more"),
        ({"stream": streams.StreamArguments(shuffle_buffer=5)}, "--shuffle_buffer is for a stream"),
        ({"label_smoothing_factor": 0.1}, "no use for --label_smoothing_factor"),
        ({"in_batch": True, "per_device_train_batch_size": 1}, "set --per_device_train_batch_size 2"),
    ],
)
def test_options_that_would_be_ignored_are_refused(given, message, tmp_path):
    with pytest.raises(InputError, match=message):
        checked(tmp_path, **given)


def test_draws_end_with_the_first_source_that_does():
    rows = list(streams.drawn([iter([{"n": 1}]), iter([{"n": 2}])], [1, 1], np.random.default_rng(0)))
    assert 1 <= len(rows) <= 2
