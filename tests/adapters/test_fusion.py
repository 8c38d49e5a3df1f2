"""Fusion starts as the mean of its adapters, learns which to listen to, and comes back as it was saved."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import peft
import pytest
import torch
from bounds import near
from conftest import make_model, make_tokenizer
from test_pool import TEXTS, make
from transformers import AutoModel, AutoModelForSequenceClassification

from finetune.adapters import load
from finetune.adapters.fusion import (
    Fused,
    FusionArguments,
    fuse,
    load_fusion,
    mount_all,
    save_fusion,
    with_drift,
)
from finetune.errors import InputError
from finetune.tasks.table import TASKS

SCRIPTS = Path(__file__).parents[2] / "scripts"

NAMES = ["films", "books"]  # PEFT warns of names that its prefix "bottleneck_" contains, as "b"


@pytest.fixture
def two(tmp_path):
    """A function → a model with the bottleneck adapters films and books."""
    for seed, name in enumerate(NAMES):
        make(tmp_path / name, "bert", "SEQ_CLS", "pfeiffer", seed)

    def fresh() -> peft.PeftModel:
        base = make_model("bert", AutoModelForSequenceClassification, id2label={0: "neg", 1: "pos"})
        base.bert.load_state_dict(make_model("bert", AutoModel).state_dict())
        network = peft.PeftModel.from_pretrained(base, tmp_path / "films", adapter_name="films")
        network.load_adapter(tmp_path / "books", adapter_name="books")
        return network.eval()

    return fresh


def ask(network) -> torch.Tensor:
    return network(
        **make_tokenizer("bert")(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
    ).logits


def test_one_adapter_fused_is_itself(two):
    network = two()
    before = ask(network)
    fuse(network, ["films"])
    assert near(ask(network), before)


def test_equal_scores_give_the_mean_of_the_adapters(two):
    fused = fuse(two(), NAMES)[0]
    torch.nn.init.zeros_(fused.query.weight)
    total, norm = torch.randn(2, 3, 16), fused.layer.base_layer
    hidden = norm(total)
    change = sum(fused.layer.change(name, hidden) for name in NAMES) / 2
    assert near(fused(total), norm(total + change))
    assert fused.drift() == 0


def test_only_fusion_moves_and_it_learns(two, tmp_path):
    network = two()
    wanted = ask(network).detach()  # the films adapter's own answers
    network.base_model.model.classifier.requires_grad_(False)
    layers = fuse(network, NAMES)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimiser = torch.optim.Adam(
        [p for layer in layers for p in (layer.query.weight, layer.key.weight, layer.value.weight)], lr=1e-2
    )
    losses = []
    for _ in range(30):
        loss = (ask(network) - wanted).square().mean() + 1e-4 * sum(layer.drift() for layer in layers)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    moved = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(
        name.split(".")[-2] in ("query", "key", "value") and ".layer." in name for name in moved
    )
    assert len(moved) == 3 * len(layers)
    save_fusion(network, tmp_path / "fusion")
    again = two()
    load_fusion(again, tmp_path / "fusion")
    assert near(ask(again), ask(network))
    # Folders from before there was a choice of formulas name their adapters alone.
    (tmp_path / "fusion" / "fusion.json").write_text(json.dumps({"adapters": NAMES}))
    old = two()
    load_fusion(old, tmp_path / "fusion")
    assert near(ask(old), ask(network))


def test_another_formula_comes_back_as_it_was_saved(two, tmp_path):
    network = two()
    for layer in fuse(network, NAMES, query_bias=True, residual=False):
        torch.nn.init.normal_(layer.query.bias, std=3.0)
        torch.nn.init.normal_(layer.value.weight)
    save_fusion(network, tmp_path / "fusion")
    again = two()
    load_fusion(again, tmp_path / "fusion")
    assert near(ask(again), ask(network))
    plain = two()
    fuse(plain, NAMES)
    assert not near(ask(plain), ask(network))


def fuse_by_script(tmp_path, saved, rows, *options: object):
    source = saved("bert", AutoModel)
    for seed, name in enumerate(NAMES):
        make(tmp_path / name, "bert", "SEQ_CLS", "pfeiffer", seed)
        passport = json.loads((tmp_path / name / "passport.json").read_text())
        (tmp_path / name / "passport.json").write_text(json.dumps(passport | {"base": str(source)}))
    arguments = [
        "fuse.py",
        "--adapters",
        *(tmp_path / name for name in NAMES),
        "--task",
        "classification",
        "--dataset_name",
        rows,
    ]
    arguments += [
        "--output_dir",
        tmp_path / "fused",
        "--num_train_epochs",
        2,
        "--per_device_train_batch_size",
        4,
        *options,
    ]
    before, sys.argv = sys.argv, [str(a) for a in arguments]
    try:
        runpy.run_path(str(SCRIPTS / "fuse.py"), run_name="__main__")
    finally:
        sys.argv = before
    return tmp_path / "fused"


def test_the_script_saves_what_load_reads(tmp_path, saved, review_file):
    folder = fuse_by_script(tmp_path, saved, review_file, "--learning_rate", "1e-2", "--bf16", "false")
    metrics, told = (
        json.loads((folder / "metrics.json").read_text()),
        json.loads((folder / "passport.json").read_text()),
    )
    assert told["method"] == "fusion" and told["labels"] == ["neg", "pos"]
    assert str(tmp_path) not in (folder / "README.md").read_text()
    for name in NAMES:  # the artefact holds its own copies
        shutil.rmtree(tmp_path / name)
    classifier = load(folder)
    rows = [json.loads(line) for line in (review_file / "test.jsonl").read_text().splitlines()]
    right = sum(
        answer["label"] == row["label"]
        for answer, row in zip(classifier([r["text"] for r in rows]), rows, strict=True)
    )
    assert right / len(rows) == pytest.approx(metrics["accuracy"]) and metrics["loss"] < 0.7
    assert metrics["trainable"] == 2 * 3 * 16 * 16 + 2 * 16 + 2  # two layers' matrices and the head
    other = make_model("bert", AutoModel, seed=5)
    other.save_pretrained(tmp_path / "bert-0")
    with pytest.raises(InputError, match="does not fit"):
        load(folder)


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path, saved, review_file):
    folder = fuse_by_script(tmp_path, saved, review_file, "--learning_rate", "1e-2", "--bf16", "false")
    whole = load(folder).logits(TEXTS)
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    shutil.rmtree(last)
    (folder / "metrics.json").unlink()
    again = load(
        fuse_by_script(tmp_path, saved, review_file, "--learning_rate", "1e-2", "--bf16", "false")
    ).logits(TEXTS)
    assert near(again, whole)


def test_drift_counts_once_a_step(two):
    network = two()
    fuse(network, NAMES)
    for layer in network.modules():
        if isinstance(layer, Fused):
            torch.nn.init.zeros_(layer.value.weight)
    row = with_drift(TASKS["classification"], network, 0.5)
    logits, labels = torch.zeros(4, 2, requires_grad=True), torch.tensor([0, 1, 1, 0])
    plain = TASKS["classification"].loss(logits, labels).sum() / 4
    apart = sum(row.loss(logits[part], labels[part]).sum() for part in (slice(0, 1), slice(1, 4))) / 4
    layers = sum(isinstance(layer, Fused) for layer in network.modules())
    assert apart.item() == pytest.approx(plain.item() + 0.5 * 16 * layers)
    assert row.loss(logits.detach(), labels).sum().item() / 4 == pytest.approx(
        plain.item()
    )  # evaluation has none of it


def test_what_cannot_be_fused_is_refused(two, tmp_path):
    with pytest.raises(InputError, match=r"No adapter .*'c'"):
        fuse(two(), ["films", "c"])
    with pytest.raises(InputError, match="no fusion to save"):
        save_fusion(two(), tmp_path / "none")
    with pytest.raises(InputError, match=r"holds no fusion\.json"):
        load_fusion(two(), tmp_path / "nothing")
    lora = make(tmp_path / "lora", "bert", "SEQ_CLS", "lora", 0)
    with pytest.raises(InputError, match="no sequential bottleneck"):
        fuse(lora, ["default"])
    assert not any(isinstance(module, Fused) for module in lora.modules())
    with pytest.raises(InputError, match="wanted two or more. Set --adapters"):
        FusionArguments(["one"]).checked()
    with pytest.raises(InputError, match="LORA adapter; fusion takes bottleneck adapters"):
        mount_all(make_model("bert", AutoModel), [tmp_path / "lora"], None)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("fusion.safetensors", lambda held: held[:-9], r"Cannot read .*fusion\.safetensors"),
        ("fusion.safetensors", lambda held: b"", r"Cannot read .*fusion\.safetensors"),
        ("fusion.json", lambda held: held[:9], r"Cannot read .*fusion\.json"),
        ("fusion.json", lambda held: b"\xff", r"Cannot read .*fusion\.json"),
        ("fusion.json", lambda held: b'{"adapters": [["a"]]}', r"fusion\.json names no adapters"),
        ("fusion.json", lambda held: held.replace(b"true", b'"yes"'), r"fusion\.json is damaged"),
        (
            "fusion.json",
            lambda held: held.replace(b'["classifier"]', b'"classifier"'),
            r"fusion\.json is dam",
        ),
        ("fusion.json", lambda held: held.replace(b'["classifier"]', b'["score"]'), "has a head 'score'"),
    ],
    ids=["cut", "empty", "cut words", "no text", "no names", "no switch", "no list", "another head"],
)
def test_damaged_files_of_a_fusion_are_named(two, tmp_path, file, content, message):
    network = two()
    fuse(network, NAMES)
    save_fusion(network, tmp_path)
    (tmp_path / file).write_bytes(content((tmp_path / file).read_bytes()))
    with pytest.raises(InputError, match=message):
        load_fusion(two(), tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(InputError, match=file):
        load_fusion(two(), tmp_path)
