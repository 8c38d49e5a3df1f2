"""`finetune trace` as a user asks: rows are marked, models are tested, what can't be is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_model
from test_gguf import byte_level
from test_train import train
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from finetune.cli.command import run
from finetune.errors import InputError
from finetune.provenance.asking import read_texts, suspect
from finetune.provenance.marking import mark
from finetune.provenance.options import TraceArguments, TraceRowsArguments
from finetune.provenance.testing import look_for

LETTERS = list("abcdefghijklmnopqrstuvwxyz")


def words(seed: int, many: int) -> str:
    generator = np.random.default_rng(seed)
    return " ".join("".join(generator.choice(LETTERS, 4)) for _ in range(many))


@pytest.fixture
def own_rows(tmp_path) -> Path:
    file = tmp_path / "mine.jsonl"
    rows = [{"text": words(seed, 12), "label": ("neg", "pos")[seed % 2]} for seed in range(80)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture
def writer(tmp_path) -> Path:
    folder, tokenizer = tmp_path / "writer", byte_level()
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    make_model(
        "llama", AutoModelForCausalLM, vocab_size=len(tokenizer), hidden_size=64, **ids
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def marked(own_rows: Path, folder: Path, **options: object) -> Path:
    asked = TraceArguments("mark", output_dir=str(folder), **options)
    list(mark(asked, TraceRowsArguments([str(own_rows)])))
    return folder


@pytest.mark.parametrize("how", ["greenlist", "synthid"])
def test_watermarked_rows_are_written_and_asked_for(how, own_rows, writer, tmp_path):
    given = {"how": how, "writer": str(writer), "marked_rows": 6, "max_new_tokens": 20, "key": 99}
    folder = marked(own_rows, tmp_path / "marked", **given)
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and all(set(row) == {"text"} for row in rows)
    first = {" ".join(words(seed, 12).split()[:6]) for seed in range(80)}
    assert all(any(row["text"].startswith(start) for start in first) for row in rows)
    secret = json.loads((folder / "secret.json").read_text())
    assert (secret["how"], secret["key"], secret["writer"]) == (how, 99, str(writer))
    again = marked(own_rows, tmp_path / "again", **given)
    assert (again / "rows.jsonl").read_text() == (folder / "rows.jsonl").read_text()
    asked = TraceArguments("test", model=str(writer), trace=str(folder))
    found = look_for(asked, TraceRowsArguments())
    assert found["p"] > 1e-3 and found["coins"] > 20
    other = tmp_path / "other"
    make_model("llama", AutoModelForCausalLM).save_pretrained(other)
    from conftest import make_tokenizer

    make_tokenizer("llama").save_pretrained(other)
    with pytest.raises(InputError, match="has another tokenizer than"):
        look_for(TraceArguments("test", model=str(other), trace=str(folder)), TraceRowsArguments())


def learn(source: Path, rows: list[str], folder: Path, steps: int = 80, rate: float = 1e-2) -> Path:
    """The model after steps on all rows together."""
    tokenizer = byte_level()
    network = AutoModelForCausalLM.from_pretrained(source)
    batch = tokenizer(rows, padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(network.parameters(), rate)
    for _ in range(steps):
        network(input_ids=batch["input_ids"], labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_planted_canaries_are_found_and_others_are_not(own_rows, writer, tmp_path, capsys):
    folder = marked(own_rows, tmp_path / "marked", how="canaries", marked_rows=12, key=7)
    planted = [json.loads(line)["text"] for line in (folder / "rows.jsonl").read_text().splitlines()]
    plain = [words(seed, 8) for seed in range(24)]
    taught = learn(writer, [*planted, *plain], tmp_path / "taught", 120, 4e-3)  # a third is planted
    others = [words(seed, 8) for seed in range(900, 912)]
    clean = learn(writer, [*others, *plain], tmp_path / "clean", 120, 4e-3)
    run(["trace", "test", "--trace", str(folder), "--model", str(taught)])
    said = capsys.readouterr().out
    assert "was trained on these rows" in said and "no sign" not in said
    run(["trace", "test", "--trace", str(folder), "--model", str(clean)])
    assert "no sign that it was trained on these rows" in capsys.readouterr().out


def test_labels_of_canaries_are_found_in_a_classifier(review_file, saved, tmp_path):
    lines = [{"text": words(seed, 12), "label": ("neg", "pos")[seed % 2]} for seed in range(80)]
    own = tmp_path / "mine.jsonl"
    own.write_text("\n".join(map(json.dumps, lines)))
    asked = TraceArguments("mark", how="canaries", output_dir=str(tmp_path / "m"), marked_rows=20, key=3)
    list(mark(asked, TraceRowsArguments([str(own)], label_column="label")))
    rows = [json.loads(line) for line in (tmp_path / "m" / "rows.jsonl").read_text().splitlines()]
    assert {row["label"] for row in rows} == {"neg", "pos"}
    model = train(saved("bert", AutoModelForSequenceClassification), review_file, tmp_path / "run")
    found = look_for(
        TraceArguments("test", model=str(model), trace=str(tmp_path / "m")), TraceRowsArguments()
    )
    assert found["p"] > 1e-3 and found["canaries"] == 20
    with pytest.raises(InputError, match="which says nothing of a text's next token"):
        marked(own, tmp_path / "texts", how="canaries", marked_rows=5)
        look_for(
            TraceArguments("test", model=str(model), trace=str(tmp_path / "texts")), TraceRowsArguments()
        )


def test_labels_of_canaries_are_of_the_kind_of_ones_own(tmp_path):
    own = tmp_path / "mine.jsonl"
    own.write_text("\n".join(json.dumps({"text": words(n, 12), "label": n % 3}) for n in range(40)))
    asked = TraceArguments("mark", how="canaries", output_dir=str(tmp_path / "m"), marked_rows=20, key=3)
    list(mark(asked, TraceRowsArguments([str(own)], label_column="label")))
    rows = [json.loads(line) for line in (tmp_path / "m" / "rows.jsonl").read_text().splitlines()]
    assert {row["label"] for row in rows} == {0, 1, 2}


@pytest.mark.slow
def test_sets_without_a_mark_are_inferred(own_rows, writer, tmp_path):
    texts = [words(seed, 12) for seed in range(80)]
    held = tmp_path / "held.jsonl"
    held.write_text("\n".join(json.dumps({"text": words(seed, 12)}) for seed in range(500, 580)))
    taught = learn(writer, texts, tmp_path / "taught", steps=200, rate=2e-2)
    asked = {"held_out": str(held), "batch_size": 40}
    rows = TraceRowsArguments([str(own_rows)], eval_split="train")
    assert look_for(TraceArguments("test", model=str(taught), **asked), rows)["p"] < 1e-3
    assert look_for(TraceArguments("test", model=str(writer), **asked), rows)["p"] > 1e-3


def test_a_model_that_is_no_language_model_is_named(saved, tmp_path):
    """transformers puts a language model's head on an encoder, or on a bare decoder, without a word."""
    with pytest.raises(InputError, match="is no language model: it has no weights for"):
        suspect(str(saved("bert", AutoModelForSequenceClassification)))
    with pytest.raises(InputError, match="is no language model: it reads what stands behind a token"):
        suspect(str(saved("bert", AutoModelForMaskedLM)))
    suspect(str(saved("llama", AutoModelForCausalLM)))


def test_texts_are_cut_to_the_room_that_a_model_has(saved):
    processor, network = suspect(str(saved("gpt2", AutoModelForCausalLM)))
    many = network.config.n_positions
    found = list(read_texts(processor, network, ["film " * 2 * many], 10 * many))
    assert [len(ids) for _, ids, _, _ in found] == [many]


@pytest.mark.parametrize(
    ("secret", "named"),
    [
        ('{"how": "canaries"}', "'canaries' is missing"),
        ('{"how": "greenlist", "scheme": "greenlist"}', "'key' is missing"),
        ('{"how": "ink"}', "holds no secret"),
        ("[1]", "holds no secret"),
        ('{"how"', "is damaged"),
    ],
)
def test_a_damaged_secret_is_named(secret, named, tmp_path):
    (tmp_path / "secret.json").write_text(secret)
    with pytest.raises(InputError, match=named):
        look_for(TraceArguments("test", model="x", trace=str(tmp_path)), TraceRowsArguments())


def test_rows_beside_a_trace_are_read_by_nobody(own_rows, tmp_path):
    for held, rows in ((str(own_rows), TraceRowsArguments()), (None, TraceRowsArguments([str(own_rows)]))):
        with pytest.raises(InputError, match="--trace brings the rows"):
            look_for(TraceArguments("test", model="x", trace=str(tmp_path), held_out=held), rows)


def test_what_cannot_be_traced_is_named(own_rows, tmp_path):
    rows = TraceRowsArguments([str(own_rows)])
    for given, said in (
        ({"action": None}, "wanted `trace mark` or `trace test`"),
        ({"action": "mark", "how": "ink"}, "wanted one of: greenlist, synthid, canaries"),
        ({"action": "mark", "marked_rows": 0}, "wanted a number above 0"),
        ({"action": "test", "level": 2.0}, "wanted a chance between 0 and 1"),
    ):
        with pytest.raises(InputError, match=said):
            TraceArguments(**given)
    with pytest.raises(InputError, match="set --output_dir to a new one"):
        list(mark(TraceArguments("mark"), rows))
    with pytest.raises(InputError, match="No model to test"):
        look_for(TraceArguments("test"), rows)
    with pytest.raises(InputError, match=r"holds no secret.json"):
        look_for(TraceArguments("test", model="x", trace=str(tmp_path)), TraceRowsArguments())
    with pytest.raises(InputError, match="Set --trace to the folder"):
        look_for(TraceArguments("test", model="x"), rows)
    whole = TraceRowsArguments([str(own_rows)], eval_split="train")
    with pytest.raises(InputError, match="80 texts stand in both"):
        look_for(TraceArguments("test", model="x", held_out=str(own_rows)), whole)
