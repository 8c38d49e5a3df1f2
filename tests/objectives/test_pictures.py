"""What is learnt from bare pictures: hidden patches and the next pixel; neither depends on a batch."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from bounds import assert_near

pytest.importorskip("PIL", reason="pictures want the extra 'images'")

from field_models import make_field_model, picture
from test_train import script
from transformers import AutoModelForMaskedImageModeling

from finetune.cli.parser import parse
from finetune.errors import InputError
from finetune.objectives import pictures
from finetune.objectives.contrastive import ContrastiveArguments
from finetune.objectives.options import ObjectiveArguments
from finetune.objectives.table import settle_objective

TINY = (
    "image_size=8,patch_size=4,num_channels=1,hidden_size=16,num_hidden_layers=1,num_attention_heads=2,"
    "intermediate_size=32"
)
PIXELS = "n_positions=16,vocab_size=5,n_embd=16,n_layer=1,n_head=2"


def row_of(name: str, family: str, **options: object):
    return settle_objective(ObjectiveArguments(objective=name, **options), ContrastiveArguments(), 3, family)


def test_masks_hide_a_share_of_each_picture_by_its_number():
    made = pictures.masks([5, 6, 5], 16, 0.6)
    assert made.sum(1).tolist() == [10, 10, 10]
    assert torch.equal(made[0], made[2]) and not torch.equal(made[0], made[1])
    assert pictures.masks([1], 4, 0.01).sum() == 1 and pictures.masks([1], 4, 0.99).sum() == 4


def test_the_loss_is_that_of_hidden_pixels_alone():
    """By hand: transformers' own loss of one picture is the same mean over its hidden pixels and channels."""
    network, processor = make_field_model("vit", AutoModelForMaskedImageModeling, encoder_stride=4)
    row = row_of("masked_patches", "vit")
    features = [{"image": picture(n), "row": n} for n in range(3)]
    batch = row.collate(processor)(features)
    labels = batch.pop("labels")
    batch.pop("row")
    with torch.no_grad():
        costs = row.forward(network, batch, labels)
        hidden = pictures.masks(batch["chance"].tolist(), 4, 0.6)
        for place in range(3):
            said = network(
                pixel_values=batch["pixel_values"][place : place + 1],
                bool_masked_pos=hidden[place : place + 1],
            )
            assert_near(costs[place, 0], said.loss, 1e-4)
    assert row.items(labels).tolist() == [1, 1, 1]
    again = row.collate(processor)([features[1]])
    assert again["chance"][0] == batch["chance"][1]  # not of its neighbours
    other = row.collate(processor)([features[1] | {"epoch": 1}])
    assert other["chance"][0] != batch["chance"][1]


def test_the_next_pixel_is_that_of_the_picture():
    """A picture of four levels of grey, whose colours a person can follow."""
    row = row_of("clm", "imagegpt")
    network, processor = make_field_model(
        "imagegpt", pictures.AutoModelForNextPixel, vocab_size=5, n_positions=4
    )
    values = np.array([[0, 85], [170, 255]], np.uint8)
    cell = {"bytes": b"P5 2 2 255\n" + values.tobytes(), "path": None}
    batch = row.collate(processor)([{"image": cell, "row": 0}])
    assert batch["input_ids"].tolist() == [[4, 0, 1, 2]] and batch["labels"].tolist() == [[0, 1, 2, 3]]
    labels = batch.pop("labels")
    batch.pop("row")
    with torch.no_grad():
        logits = row.forward(network, batch, labels)
        whole = network(input_ids=batch["input_ids"]).logits[0]
    assert_near(logits, whole, 1e-5)
    assert_near(
        row.loss(logits, labels),
        torch.nn.functional.cross_entropy(whole, labels[0], reduction="sum")[None],
        1e-5,
    )


@pytest.mark.parametrize(
    ("objective", "family", "overrides", "figure"),
    [("masked_patches", "vit", TINY, "explained"), ("clm", "imagegpt", PIXELS, "perplexity")],
)
def test_pretraining_starts_a_task(objective, family, overrides, figure, tmp_path):
    for n in range(24):
        folder = tmp_path / ("rows", "more")[n // 12] / ("train" if n % 12 < 8 else "test") / "ab"[n % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{n}.pgm").write_bytes(picture(n)["bytes"])
    main, out = script("pretrain").main, tmp_path / "run"
    given = f"--objective {objective} --from_config {family} --config_overrides {overrides} --bf16 false "
    given += f"--dataset_name {tmp_path / 'rows'} --output_dir {out} --max_steps 2 --learning_rate 1e-2"
    main(
        *parse(main, [*given.split(), "--eval_dataset_name", *(str(tmp_path / x) for x in ("rows", "more"))])
    )
    figures = json.loads((out / "metrics.json").read_text())
    # of all pictures, and of each evaluation set
    assert np.isfinite([figures[figure], figures[f"rows_{figure}"], figures[f"more_{figure}"]]).all()
    main = script("train").main
    given = f"--task image --method full --model_name_or_path {out} --dataset_name {tmp_path / 'rows'} "
    given += f"--output_dir {tmp_path / 'task'} --max_steps 1 --bf16 false"
    main(*parse(main, given.split()))
    assert (tmp_path / "task" / "metrics.json").exists()


def test_what_a_family_cant_learn_is_refused():
    assert row_of("clm", "gpt2").reads == "text" and row_of("clm", "imagegpt").reads == "image"
    with pytest.raises(InputError, match="'masked_patches' has no use for --whole_words"):
        row_of("masked_patches", "vit", whole_words=True)
