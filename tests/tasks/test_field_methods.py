"""Tuning methods on models of pictures and sounds: what moved and what did not, what is refused by name, and
that a saved adapter says what it said in training.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from bounds import assert_near
from field_models import FIELD_CONFIGS, make_field_model, picture, sound
from test_train import script
from transformers import AutoModelForAudioClassification, AutoModelForImageClassification

from finetune.adapters import load
from finetune.cli.parser import parse
from finetune.errors import InputError
from finetune.methods import NO_TOKENS, attach, head_names
from finetune.tasks.table import TASKS

AUTO = {"image": AutoModelForImageClassification, "audio": AutoModelForAudioClassification}
TUNED = ("lora", "dora", "bottleneck", "bitfit", "linear_probe")


def two_steps(family: str, method: str) -> tuple[set[str], set[str], torch.nn.Module]:
    """Names of the parameters and buffers that moved in two steps, and of those that may move."""
    reads = FIELD_CONFIGS[family][0]
    network, processor = make_field_model(family, AUTO[reads], num_labels=3)
    tuned = attach(network, method, None, NO_TOKENS).train()
    cells = [{"image": picture, "audio": sound}[reads](n) for n in range(6)]
    collate, forward = TASKS[reads].collate(processor), TASKS[reads].forward
    gold = torch.tensor([0, 1, 2, 0, 1, 2])
    before = {name: value.clone() for name, value in tuned.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], 0.5)
    for _ in range(2):
        logits = forward(tuned, collate([{reads: cell} for cell in cells]), gold)
        torch.nn.functional.cross_entropy(logits, gold).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, value in tuned.state_dict().items() if not torch.equal(value, before[name])}
    return moved, {name for name, p in tuned.named_parameters() if p.requires_grad}, tuned


@pytest.mark.parametrize("family", ["vit", "ast"])
@pytest.mark.parametrize("method", TUNED)
def test_exactly_what_the_method_names_has_moved(family, method):
    moved, may, tuned = two_steps(family, method)
    assert moved == may
    heads = head_names(tuned.get_base_model())
    assert all(any(f"{head}.modules_to_save" in name for name in moved) for head in heads)
    if method == "linear_probe":
        assert all(any(head in name for head in heads) for name in moved)


def test_bitfit_leaves_out_norms_with_channels_before_places():
    moved, may, _ = two_steps("convnext", "bitfit")
    assert moved == may and not any("embeddings.layernorm" in name for name in may)


def test_a_frozen_base_keeps_its_running_means():
    moved, may, _ = two_steps("resnet", "linear_probe")
    assert moved == may and len(may) == 2


@pytest.mark.parametrize("method", ["prefix", "prompt", "ptuning", "ia3"])
@pytest.mark.parametrize("family", ["vit", "ast"])
def test_what_wants_tokens_is_refused_by_name(family, method):
    network, _ = make_field_model(family, AUTO[FIELD_CONFIGS[family][0]], num_labels=3)
    with pytest.raises(
        InputError, match=f"The method '{method}' can't tune .*: (it reads no tokens|no targets)"
    ):
        attach(network, method, None, NO_TOKENS)


def test_a_convolution_without_linear_layers_is_refused_by_name():
    network, _ = make_field_model("resnet", AUTO["image"], num_labels=3)
    with pytest.raises(InputError, match="'lora' can't tune ResNetForImageClassification"):
        attach(network, "lora", None, NO_TOKENS)


@pytest.mark.parametrize(("family", "method"), [("vit", "lora"), ("ast", "linear_probe")])
def test_an_adapter_is_saved_loaded_and_asked(family, method, tmp_path):
    reads = FIELD_CONFIGS[family][0]
    network, processor = make_field_model(family, AUTO[reads], num_labels=2)
    for part in (network, processor):
        part.save_pretrained(tmp_path / "base")
    make, ending = {"image": (picture, "pgm"), "audio": (sound, "wav")}[reads]
    for n in range(12):
        folder = tmp_path / "rows" / ("train" if n < 8 else "test") / "ab"[n % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{n}.{ending}").write_bytes(make(n)["bytes"])
    main, out = script("train").main, tmp_path / "run"
    given = f"--task {reads} --method {method} --model_name_or_path {tmp_path / 'base'} --bf16 false "
    given += (
        f"--dataset_name {tmp_path / 'rows'} --output_dir {out} --num_train_epochs 2 --learning_rate 1e-2"
    )
    main(*parse(main, given.split()))
    asked = load(out)
    written = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    files = sorted((tmp_path / "rows" / "test").rglob(f"*.{ending}"))
    found = asked([file.read_bytes() for file in files])
    key = {(one["prediction"], round(one["score"], 4)) for one in written}
    assert {(one["prediction"], round(one["score"], 4)) for one in found} == key
    alone = asked(files[0])
    assert alone["prediction"] == found[0]["prediction"]
    assert alone["score"] == pytest.approx(found[0]["score"], rel=1e-4)
    chances = torch.tensor([max(one.values()) for one in asked.chances(files)])
    assert_near(chances, torch.tensor([one["score"] for one in found]), 1e-4)
    passport = json.loads((out / "passport.json").read_text())
    assert passport["heads"] == head_names(network) and passport["weights"] and passport["task"] == reads
    other, _ = make_field_model(family, AUTO[reads], num_labels=2)
    with torch.no_grad():
        other.base_model.get_parameter(next(iter(passport["weights"]))).add_(1.0)
    other.save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match="other base weights"):
        load(out)


def test_an_input_that_is_none_is_named(tmp_path):
    from finetune.adapters.file_inputs import picture_cell, sound_cell

    with pytest.raises(InputError, match="no such thing; wanted the bytes or the path of a picture"):
        picture_cell(3)
    with pytest.raises(InputError, match="no file .*gone.png"):
        picture_cell(tmp_path / "gone.png")
    with pytest.raises(InputError, match="0 samples"):
        sound_cell((np.zeros(0, np.float32), 8000))
    assert sound_cell((np.zeros(10, np.float32), 8000))["bytes"][:4] == b"RIFF"
