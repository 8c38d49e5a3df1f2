"""Fusion starts as the mean of its adapters, learns which to listen to, and comes back as it was saved."""

import peft
import pytest
import torch
from conftest import make_model, make_tokenizer
from test_pool import TEXTS, make
from transformers import AutoModel, AutoModelForSequenceClassification

from finetune.adapters.fusion import Fused, fuse, load_fusion, save_fusion
from finetune.errors import InputError

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
    return network(**make_tokenizer("bert")(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)).logits


def test_one_adapter_fused_is_itself(two):
    network = two()
    before = ask(network)
    fuse(network, ["films"])
    assert torch.allclose(ask(network), before, atol=1e-5)


def test_equal_scores_give_the_mean_of_the_adapters(two):
    fused = fuse(two(), NAMES)[0]
    torch.nn.init.zeros_(fused.query.weight)
    inner = torch.randn(2, 3, 32)
    hidden = fused.layer.base_layer(inner)
    outputs = [hidden + fused.layer.change(name, hidden) for name in NAMES]
    assert torch.allclose(fused(inner), (outputs[0] + outputs[1]) / 2, atol=1e-6)
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
    assert moved and all(name.split(".")[-2] in ("query", "key", "value") and ".layer." in name for name in moved)
    assert len(moved) == 3 * len(layers)
    save_fusion(network, tmp_path / "fusion")
    again = two()
    load_fusion(again, tmp_path / "fusion")
    assert torch.allclose(ask(again), ask(network), atol=1e-6)


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
