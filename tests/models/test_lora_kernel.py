"""LoRA's layer: PEFT's numbers and gradients, and PEFT's own way wherever there is more to compute."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path

import peft
import pytest
import torch
from bounds import assert_near
from conftest import make_model
from peft.tuners import lora
from transformers import AutoModelForCausalLM

from finetune.methods import attach
from finetune.models import lora_kernel

IDS = torch.randint(5, 20, (2, 7), generator=torch.Generator().manual_seed(0))


def tuned(**options):
    network = attach(
        make_model("llama", AutoModelForCausalLM),
        "lora",
        {"r": 3, "init_lora_weights": False, **options},
        "CAUSAL_LM",
    )
    torch.manual_seed(1)
    for name, weight in network.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return network


def gradients(network, autocast=False):
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = network(input_ids=IDS).logits
    logits.float().square().mean().backward()
    return logits.detach(), {n: p.grad for n, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("options", [{}, {"use_rslora": True, "lora_alpha": 7}])
def test_outputs_and_gradients_are_those_of_peft(options, monkeypatch):
    found = gradients(tuned(**options))
    monkeypatch.setattr(lora_kernel.LowRankLinear, "_type", lambda self, x: None)
    wanted = gradients(tuned(**options))
    assert any("lora_A" in name for name in found[1])
    assert_near(found, wanted)


def test_in_bf16_it_is_no_further_from_float32_than_peft(monkeypatch):
    def apart() -> float:
        _, found = gradients(tuned(), autocast=True)
        return float(
            sum((found[name] - exact[name]).norm() / exact[name].norm() for name in exact) / len(exact)
        )

    _, exact = gradients(tuned())
    own = apart()
    monkeypatch.setattr(lora_kernel.LowRankLinear, "_type", lambda self, x: None)
    assert 0 < own < 1.05 * apart()


@pytest.mark.parametrize("options", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}])
@pytest.mark.filterwarnings("ignore:`lora_bias=True`")
def test_more_than_two_products_is_pefts_affair(options, monkeypatch):
    monkeypatch.setattr(
        lora_kernel.LowRank, "apply", lambda *_: pytest.fail("the short way leaves something out")
    )
    gradients(tuned(**options))


def test_adapters_can_be_switched_off_and_merged():
    network, plain = tuned(), make_model("llama", AutoModelForCausalLM)
    with network.disable_adapter():
        torch.testing.assert_close(network(input_ids=IDS).logits, plain(input_ids=IDS).logits)
    before = network(input_ids=IDS).logits
    assert_near(network.merge_and_unload()(input_ids=IDS).logits, before)


def test_a_copy_has_weights_of_its_own_and_a_saved_adapter_is_plain_pefts(tmp_path: Path):
    network = tuned()
    other = copy.deepcopy(network)
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    assert network(input_ids=IDS).logits.abs().max() > 0 == other(input_ids=IDS).logits.abs().max()
    network.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(make_model("llama", AutoModelForCausalLM), tmp_path)
    assert {type(m) for m in again.modules() if isinstance(m, lora.LoraLayer)} == {lora.Linear}
    torch.testing.assert_close(again(input_ids=IDS).logits, network(input_ids=IDS).logits)


def test_folded_it_is_the_same_model_and_afterwards_the_same_bits():
    network = tuned()
    network.base_model.model.lm_head.weight.requires_grad_(False)
    state = {name: weight.clone() for name, weight in network.state_dict().items()}
    flags = {name: weight.requires_grad for name, weight in network.named_parameters()}
    before = network(input_ids=IDS).logits
    with lora_kernel.folded(network), torch.no_grad():
        # no adapter is asked any more: what it would add stands in the weights
        assert all(layer.disable_adapters for layer in network.modules() if isinstance(layer, lora.Linear))
        assert_near(network(input_ids=IDS).logits, before.detach())
    assert all(torch.equal(weight, state[name]) for name, weight in network.state_dict().items())
    assert flags == {name: weight.requires_grad for name, weight in network.named_parameters()}
    assert torch.equal(network(input_ids=IDS).logits, before)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}, {"off": True}])
@pytest.mark.filterwarnings("ignore:`lora_bias=True`")
def test_what_is_more_than_a_sum_is_not_folded(options):
    switched_off = options.pop("off", False)
    network = tuned(**options)
    weights = [
        layer.base_layer.weight.clone() for layer in network.modules() if isinstance(layer, lora.Linear)
    ]
    with network.disable_adapter() if switched_off else contextlib.nullcontext(), lora_kernel.folded(network):
        layers = [layer for layer in network.modules() if isinstance(layer, lora.Linear)]
        assert all(torch.equal(layer.base_layer.weight, w) for layer, w in zip(layers, weights, strict=True))
        assert all(layer.disable_adapters == switched_off for layer in layers)


def test_an_error_within_leaves_nothing_folded():
    network = tuned()
    before = network(input_ids=IDS).logits
    with pytest.raises(RuntimeError, match="within"), lora_kernel.folded(network):
        raise RuntimeError("within")
    assert torch.equal(network(input_ids=IDS).logits, before)
