"""Several data sets in one run: mixed by weight, each in its own layout, figures for each of those
evaluated on.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from conftest import make_tokenizer
from test_train import train
from transformers import AutoModelForSequenceClassification

from finetune.data.sources import DataArguments, load_rows
from finetune.errors import InputError
from finetune.tasks import classification, sft


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def sets(tmp_path: Path) -> list[str]:
    """Films, songs and plays in three layouts, 20 rows each, with the same two classes."""
    rows = [("good" if n % 2 else "bad", n) for n in range(20)]
    return [
        write(
            tmp_path / "films.jsonl",
            [{"text": f"the film was {word} {n}", "label": word} for word, n in rows],
        ),
        write(
            tmp_path / "songs.jsonl",
            [{"sentence": f"a song is {word} {n}", "sentiment": word} for word, n in rows],
        ),
        write(
            tmp_path / "plays.jsonl",
            [{"review": f"we loved it {word} {n}", "class": word} for word, n in rows],
        ),
    ]


def test_rows_are_mixed_by_weight(sets):
    films, songs, plays = sets
    data = DataArguments([films, f"{songs}=0.3", f"{plays}=2"], eval_dataset_name=[films, songs])
    found = classification.examine(load_rows(data), data, pair=False)
    begun = Counter(text.split()[1] for text in found.rows.train["text"])
    assert begun == {"film": 20, "song": 6, "loved": 40} and found.labels == ["bad", "good"]
    assert Counter(found.rows.eval["__set__"]) == {films: 20, songs: 20}


def test_chats_in_different_layouts_become_one(tmp_path):
    one = write(
        tmp_path / "a.jsonl",
        [{"instruction": f"say {n}", "input": "now", "output": str(n)} for n in range(10)],
    )
    other = write(
        tmp_path / "b.jsonl",
        [
            {"conversations": [{"from": "human", "value": f"tell {n}"}, {"from": "gpt", "value": str(n)}]}
            for n in range(10)
        ],
    )
    data = DataArguments([one, other])
    found = sft.examine(load_rows(data), data)
    assert found.columns.text == "messages" and len(found.rows.train) == 18
    said = Counter(row["messages"][0]["content"].split()[0] for row in found.rows.train)
    assert said == {"say": 9, "tell": 9}


@pytest.mark.parametrize("entry", ["0", "-1", "much"])
def test_weights_that_are_none_are_named(sets, entry):
    with pytest.raises(InputError, match=rf"--dataset_name .*={entry} can't be read"):
        load_rows(DataArguments([sets[0], f"{sets[1]}={entry}"]))


def test_texts_and_pairs_of_texts_do_not_go_together(sets, tmp_path):
    pairs = write(
        tmp_path / "pairs.jsonl",
        [{"premise": f"a man {n}", "hypothesis": f"some {n}", "label": "good"} for n in range(10)],
    )
    data = DataArguments([sets[0], pairs])
    with pytest.raises(InputError, match="holds text that nothing reads"):
        classification.examine(load_rows(data), data, pair=False)


def test_each_data_set_has_its_figures(sets, saved, tmp_path):
    model = saved("bert", AutoModelForSequenceClassification)
    make_tokenizer("bert").save_pretrained(model)
    films, songs, _ = sets
    tested = ("--eval_dataset_name", films, songs, "--max_steps", "1")
    run = train(model, f"{films} {songs}=0.5", tmp_path / "run", *tested, "--method", "full")
    figures = json.loads((run / "metrics.json").read_text())
    parts = [figures[f"{name}.jsonl_accuracy"] for name in ("films", "songs")]
    assert figures["accuracy"] == pytest.approx(sum(parts) / 2)
