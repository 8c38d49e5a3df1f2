"""What one can look at is what the model computes: weights that sum to 1, gradients that add up."""

from __future__ import annotations

import math
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bounds import assert_near
from conftest import make_model, make_tokenizer
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    MambaConfig,
    MambaModel,
)

from finetune.errors import InputError
from finetune.interpret.attention import attention_maps, head_entropy, rollout, scaled_dot_product
from finetune.interpret.gradients import answer, gradients_through_time, integrated_gradients
from finetune.interpret.picture_views import open_picture, over_patches, picture_attention, picture_gradients
from finetune.interpret.positions import (
    alibi,
    learnt_table,
    position_views,
    relative_bias,
    rotary_rates,
    rotated_products,
    sinusoidal,
)
from finetune.interpret.subject import Subject
from finetune.interpret.vectors import project

TEXT = "the film was not very good"


def batch_of(family: str) -> dict[str, torch.Tensor]:
    return dict(make_tokenizer(family)(TEXT, return_tensors="pt"))


def test_the_big_dog():
    """Queries, keys and values of two decimals, and the rounded weights and outputs they must give."""
    query = torch.tensor([[0.5, 1.18], [-0.99, 0.4], [-0.8, 0.54]])
    key = torch.tensor([[0.54, 0.48], [-1.45, 0.23], [-1.23, 0.62]])
    value = torch.tensor([[0.55, -0.96], [-0.45, 0.38], [0.55, 0.94]])
    output, weights = scaled_dot_product(query, key, value)
    wanted = torch.tensor([[0.50, 0.20, 0.30], [0.12, 0.45, 0.43], [0.15, 0.42, 0.43]])
    assert torch.allclose(weights, wanted, rtol=0, atol=0.005)
    assert torch.allclose(
        output, torch.tensor([[0.35, -0.12], [0.10, 0.46], [0.13, 0.42]]), rtol=0, atol=0.005
    )


def test_masked_attention_is_torchs_own():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    output, weights = scaled_dot_product(query, key, value, mask)
    assert_near(output, torch.nn.functional.scaled_dot_product_attention(query, key, value, mask))
    assert not weights[..., ~mask].any()


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_maps_are_the_models_weights(family):
    model = make_model(family, AutoModel)
    before = model.config._attn_implementation
    maps = attention_maps(model, batch_of(family))["self"]
    time = batch_of(family)["input_ids"].shape[1]
    assert maps.shape == (2, 2, time, time)
    assert_near(maps.sum(-1), torch.ones(2, 2, time))
    assert model.config._attn_implementation == before
    if family != "bert":
        assert not maps.triu(1).any()  # a decoder sees nothing to come


def test_an_encoder_decoder_has_three_kinds_of_maps():
    model = make_model("bart", AutoModelForSeq2SeqLM)
    batch = batch_of("bart")
    maps = attention_maps(model, {**batch, "decoder_input_ids": batch["input_ids"][:, :3]})
    time = batch["input_ids"].shape[1]
    assert {kind: tuple(one.shape) for kind, one in maps.items()} == {
        "encoder": (2, 2, time, time), "decoder": (2, 2, 3, 3), "cross": (2, 2, 3, time)
    }  # fmt: skip


def test_an_adapter_is_looked_through_and_virtual_tokens_are_keys():
    lora = get_peft_model(
        make_model("bert", AutoModelForSequenceClassification), LoraConfig(task_type="SEQ_CLS")
    )
    time = batch_of("bert")["input_ids"].shape[1]
    assert attention_maps(lora, batch_of("bert"))["self"].shape == (2, 2, time, time)
    prefix = get_peft_model(
        make_model("llama", AutoModelForCausalLM),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    )
    time = batch_of("llama")["input_ids"].shape[1]
    maps = attention_maps(prefix, batch_of("llama"))["self"]
    assert maps.shape == (2, 2, time, time + 3)
    assert_near(rollout(maps).sum(-1), torch.ones(time))


def test_a_model_without_attention_is_named():
    config = MambaConfig(hidden_size=8, num_hidden_layers=1, state_size=4, vocab_size=40)
    with pytest.raises(InputError, match="mamba.*show gradients"):
        attention_maps(MambaModel(config).eval(), {"input_ids": torch.tensor([[3, 4, 5]])})


def test_rollout_by_hand():
    """Two places, one layer that looks at the other place alone: half stays, half comes from there."""
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).expand(1, 1, 2, 2)
    assert rollout(swap).tolist() == [[0.5, 0.5], [0.5, 0.5]]
    even = torch.full((3, 2, 4, 4), 0.25)
    assert_near(head_entropy(even), torch.full((3, 2), math.log(4)))


def test_sinusoidal_by_hand():
    table = sinusoidal(2, 4)
    wanted = [[0, 1, 0, 1], [math.sin(1), math.cos(1), math.sin(0.01), math.cos(0.01)]]
    assert_near(table, torch.tensor(wanted))
    assert alibi(2, 3)[0].tolist() == pytest.approx([0, -(2**-4 + 2**-8) / 2, -(2**-4 + 2**-8)])


@pytest.mark.parametrize(
    ("family", "own"), [("bert", "learnt"), ("gpt2", "learnt"), ("llama", "rotary"), ("t5", "relative (T5)")]
)
def test_a_models_own_encoding_is_found(family, own):
    views = position_views(make_model(family, AutoModel), 8)
    assert [view.name for view in views if view.own] == [own]
    assert all(view.matrix.shape == (8, 8) for view in views)


def test_rotated_products_are_those_of_the_model():
    """A vector of equal parts through the model's own cos and sin, beside the closed form."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    model = make_model("llama", AutoModel)
    ones = torch.ones(1, 1, 6, 8) / math.sqrt(8)
    cos, sin = model.rotary_emb(ones, torch.arange(6)[None])
    query, key = apply_rotary_pos_emb(ones, ones, cos, sin)
    assert_near((query @ key.transpose(-2, -1))[0, 0], rotated_products(rotary_rates(model), 6))
    assert learnt_table(model) is None and relative_bias(model, 4) is None


def test_integrated_gradients_add_up():
    pytest.importorskip("captum")
    model = make_model("bert", AutoModelForSequenceClassification, num_labels=3)
    batch = batch_of("bert")
    target, logit = answer(model, batch)
    empty = torch.zeros_like(batch["input_ids"])
    found, missing = integrated_gradients(model, batch, target, empty, steps=128)
    apart = logit - answer(model, {**batch, "input_ids": empty}, target)[1]
    assert found.shape == batch["input_ids"].shape[1:]
    assert float(found.sum()) == pytest.approx(float(apart.detach()), rel=0.01)
    assert missing < 0.01
    with pytest.raises(InputError, match="Class 7; the model has 3"):
        answer(model, batch, 7)


def test_gradients_through_time_see_the_past_alone():
    model = make_model("llama", AutoModelForCausalLM)
    norms = gradients_through_time(model, batch_of("llama"))
    assert norms.shape == batch_of("llama")["input_ids"].shape[1:] and (norms > 0).all()
    assert all(weight.requires_grad for weight in model.parameters())


def test_projection_keeps_what_varies():
    generator = np.random.default_rng(0)
    flat = generator.normal(size=(20, 2)) @ generator.normal(size=(2, 7))
    points, shares = project(flat)
    assert points.shape == (20, 2) and sum(shares) == pytest.approx(1)
    with pytest.raises(InputError, match="three or more"):
        project(flat[:2])
    with pytest.raises(InputError, match="wanted one of: pca, umap"):
        project(flat, "tsne")


def test_umap_is_asked_for_neighbours_that_there_are(monkeypatch):
    flat, asked = np.eye(5), {}

    class Projection:
        def __init__(self, **told):
            asked.update(told)

        def fit_transform(self, vectors):
            return vectors[:, :2]

    monkeypatch.setitem(
        sys.modules, "umap", SimpleNamespace(UMAP=Projection, __spec__=ModuleSpec("umap", None))
    )
    points, shares = project(flat, "umap", seed=3)
    assert points.shape == (5, 2) and shares is None
    assert (asked["n_neighbors"], asked["random_state"], asked["n_jobs"]) == (4, 3, 1)
    monkeypatch.delitem(sys.modules, "umap")
    if find_spec("umap") is None:
        with pytest.raises(InputError, match="pip install umap-learn, or set --projection pca"):
            project(flat, "umap")


def vit(tmp_path):
    """A tiny ViT of four patches, its processor and a picture of two halves."""
    from PIL import Image
    from transformers import ViTConfig, ViTForImageClassification

    from finetune.models.images import make_image_processor

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8,
        patch_size=4, num_labels=2,
    )  # fmt: skip
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:, 4:] = 255
    Image.fromarray(picture).save(tmp_path / "halves.png")
    model = ViTForImageClassification(config).eval()
    subject = Subject("vit", model, make_image_processor(config), ["left", "right"], "encoder", 1)
    return subject, str(tmp_path / "halves.png")


def test_a_picture_is_looked_at_patch_by_patch(tmp_path):
    subject, file = vit(tmp_path)
    given = open_picture(subject, file)
    assert (
        given.pixels.shape == (8, 8, 3) and given.pixels[:, :4].max() == 0 and given.pixels[:, 4:].min() == 1
    )
    section, drawings = picture_attention(subject, given, 1)
    assert [one.name for one in drawings] == ["1-rollout", "1-layer0", "1-layer1"]
    assert section.title == "halves.png" and all(one.png.startswith(b"\x89PNG") for one in drawings)
    maps = attention_maps(subject.network, given.batch)["self"]
    grid = over_patches(maps[0, 0], 2, 2)
    assert torch.equal(grid.flatten(), maps[0, 0, 0, 1:])  # the class token's row, itself left out
    table = learnt_table(subject.network)
    assert table is not None and table.shape == (5, 16)


def test_pixels_add_up_to_the_answer(tmp_path):
    pytest.importorskip("captum")
    subject, file = vit(tmp_path)
    section, drawings = picture_gradients(subject, open_picture(subject, file), "right", 32, 1)
    assert len(drawings) == 1 and section.blocks[1].rows[0]["answer"] == "right"
    with pytest.raises(InputError, match="Class 'up'; wanted one of: left, right"):
        picture_gradients(subject, open_picture(subject, file), "up", 32, 1)


def test_what_is_no_picture_is_named(tmp_path):
    subject, _ = vit(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG and no more")
    with pytest.raises(InputError, match="broken.png can't be read"):
        open_picture(subject, str(tmp_path / "broken.png"))
    with pytest.raises(InputError, match="vit reads no texts; .*gradients. look at it with --images"):
        subject.batch("a text")


def recurrent_seq2seq(attention):
    from finetune.models.recurrent_config import RecurrentSeq2SeqConfig
    from finetune.models.recurrent_seq2seq import RecurrentForSeq2SeqLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 8, "embedding_size": 8}
    return RecurrentForSeq2SeqLM(RecurrentSeq2SeqConfig(attention=attention, **sizes)).eval()


def test_alignments_of_a_recurrent_seq2seq():
    batch = {"input_ids": torch.tensor([[7, 8, 9, 10]]), "decoder_input_ids": torch.tensor([[0, 7, 8]])}
    maps = attention_maps(recurrent_seq2seq("additive"), batch)
    assert {kind: tuple(one.shape) for kind, one in maps.items()} == {"cross": (1, 1, 3, 4)}
    assert_near(maps["cross"].sum(-1), torch.ones(1, 1, 3))
    with pytest.raises(InputError, match="hands out no attention"):
        attention_maps(recurrent_seq2seq("none"), batch)
    norms = gradients_through_time(recurrent_seq2seq("additive"), batch)
    assert norms.shape == (4,)


def test_gradients_of_a_recurrent_network_fade():
    """A ReLU network that starts at the identity keeps what a tanh network with small weights loses."""
    from finetune.models.recurrent import RecurrentForCausalLM
    from finetune.models.recurrent_config import RecurrentConfig

    torch.manual_seed(0)
    config = RecurrentConfig(vocab_size=40, hidden_size=8, embedding_size=8, cell="rnn")
    norms = gradients_through_time(
        RecurrentForCausalLM(config).eval(), {"input_ids": torch.arange(3, 19)[None]}
    )
    assert norms.shape == (16,) and norms[0] < norms[-1] / 10
