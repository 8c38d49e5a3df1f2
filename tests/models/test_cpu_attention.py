"""Attention by plain products: the same numbers as the fused kernel's, and only where it is trained
in bf16 on a CPU.
"""

from __future__ import annotations

import pytest
import torch
from bounds import assert_near
from conftest import make_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from finetune.models.attention import cpu
from finetune.models.load import ModelArguments, load_model

LEFT_PADDED = {
    "input_ids": torch.tensor([[0, 0, 8, 9, 10], [10, 11, 12, 13, 14]]),
    "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
}


@pytest.mark.parametrize("shared", [4, 2, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients_are_the_kernels(shared, masked):
    sizes = ((3, 4, 5, 8), (3, shared, 7, 8), (3, shared, 7, 8))
    query, key, value = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes)
    seen = torch.rand(3, 1, 5, 7).gt(0.3).index_fill(3, torch.tensor(0), True) if masked else None
    found = cpu.products(query, key, value, seen, scale=0.25)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, seen, scale=0.25, enable_gqa=True
    )
    torch.testing.assert_close(found, wanted)
    weights = torch.randn_like(found)
    inputs = (query, key, value)
    for one, other in zip(
        torch.autograd.grad(found, inputs, weights), torch.autograd.grad(wanted, inputs, weights), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_a_dropped_weight_is_made_up_for():
    value = torch.ones(1, 1, 400, 1)
    query = torch.zeros(1, 1, 50, 4)
    found = cpu.products(query, torch.zeros(1, 1, 400, 4), value, None, scale=1.0, dropout=0.25)
    assert found.std() > 0.01
    assert found.mean() == pytest.approx(1, abs=0.02)


def test_only_trained_bf16_takes_products(monkeypatch):
    query = torch.zeros(2, 4, 6, 8, dtype=torch.bfloat16, requires_grad=True)
    assert cpu.products_are_faster(query, query)
    assert not cpu.products_are_faster(query.float(), query.float())
    assert not cpu.products_are_faster(query.detach(), query.detach())
    with torch.no_grad():
        assert not cpu.products_are_faster(query, query)
    with torch.autocast("cpu", torch.bfloat16):
        assert cpu.products_are_faster(query.float(), query.float())
    monkeypatch.setattr(cpu, "MOST_SCORES", 2 * 4 * 6 * 6 - 1)
    assert not cpu.products_are_faster(query, query)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "llama", "gpt2", "bart", "t5"])
def test_a_model_gives_the_kernels_numbers(family, monkeypatch):
    monkeypatch.setattr(
        cpu, "products_are_faster", lambda query, key: torch.is_grad_enabled()
    )  # in float32 as well
    plain, quick = (
        make_model(family, AutoModelForSequenceClassification, num_labels=2, pad_token_id=0).eval()
        for _ in range(2)
    )
    cpu.choose_attention(quick)
    inputs = LEFT_PADDED if family != "bart" else {name: value.flip(1) for name, value in LEFT_PADDED.items()}
    if family in ("bart", "t5"):
        inputs = {
            "input_ids": inputs["input_ids"].index_fill(1, torch.tensor(4), 6),
            "attention_mask": inputs["attention_mask"],
        }
    found, wanted = (network(**inputs).logits for network in (quick, plain))
    assert_near(found, wanted)
    for logits in (found, wanted):
        logits.square().sum().backward()
    gradients = [
        {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        for network in (quick, plain)
    ]
    assert_near(*gradients)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_no_token_sees_a_later_one(family):
    network = make_model(family, AutoModelForCausalLM).to(torch.bfloat16)
    cpu.choose_attention(network)
    ids = torch.tensor([[8, 9, 10, 11]])
    before, after = network(input_ids=ids).logits, network(input_ids=torch.tensor([[8, 9, 10, 20]])).logits
    torch.testing.assert_close(before[:, :3], after[:, :3], atol=0, rtol=0)
    assert not torch.equal(before[:, 3], after[:, 3])


def test_rotary_positions_under_autocast_stay_close_to_the_kernel():
    found = []
    for choose in (False, True):
        network = make_model("llama", AutoModelForCausalLM)
        if choose:
            cpu.choose_attention(network)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(**LEFT_PADDED).logits.float()[:, 2:]
        logits.square().sum().backward()
        found.append((logits.detach(), network.model.layers[0].self_attn.q_proj.weight.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=0.02 * float(other.abs().max()), rtol=0)


def test_a_kernel_that_was_asked_for_is_kept(tmp_path, saved):
    folder = str(saved("bert", AutoModelForSequenceClassification))
    chosen = load_model(
        ModelArguments(folder, attn_implementation="eager"), AutoModelForSequenceClassification
    )[1]
    assert chosen.config._attn_implementation == "eager"
    if not torch.cuda.is_available():
        assert (
            load_model(ModelArguments(folder), AutoModelForSequenceClassification)[
                1
            ].config._attn_implementation
            == "products"
        )
