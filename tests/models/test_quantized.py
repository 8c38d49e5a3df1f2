"""A base in 4 bits: the bytes it holds, what trains on it, and that its adapter comes back on the
same rounded weights.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch
from conftest import make_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

from finetune.adapters.loading import mount
from finetune.artefacts.passport import write_passport
from finetune.errors import InputError
from finetune.methods import attach
from finetune.models import quantized
from finetune.models.load import ModelArguments, load_model

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="4 bits need the extra 'qlora'"
)
IDS = torch.tensor([[5, 8, 9, 10, 6]])


@pytest.fixture
def base(tmp_path):
    """Wide enough for blocks of 64 weights."""
    torch.manual_seed(0)
    size = len(make_tokenizer("llama"))
    config = LlamaConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256, vocab_size=size,
        pad_token_id=0, bos_token_id=5, eos_token_id=6,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    make_tokenizer("llama").save_pretrained(tmp_path / "base")
    return ModelArguments(model_name_or_path=str(tmp_path / "base"))


def linear_bytes(network) -> int:
    return sum(
        p.numel() * p.element_size()
        for n, p in network.named_parameters()
        if "_proj" in n and "lora" not in n
    )


@needs_package
def test_a_base_in_4_bits_holds_an_eighth_and_trains_low_ranks_alone(base):
    _, plain = load_model(base, AutoModelForCausalLM)
    _, network = load_model(base, AutoModelForCausalLM, quantized=True)
    assert linear_bytes(network) * 8 == linear_bytes(plain)
    tuned = attach(network, "qlora", None, "CAUSAL_LM")
    with torch.no_grad():
        tuned.eval()(input_ids=IDS)
    before = {name: value.detach().clone() for name, value in tuned.named_parameters()}
    for _ in range(2):
        tuned(input_ids=IDS, labels=IDS).loss.backward()
        with torch.no_grad():
            for value in tuned.parameters():
                if value.grad is not None:
                    value -= 0.5 * value.grad
                    value.grad = None
    moved = {name for name, value in tuned.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if "lora_" in name}
    near, far = tuned.get_base_model().lm_head, plain.lm_head
    assert torch.equal(near.weight, far.weight)  # what stands on top is not rounded


@needs_package
def test_gradients_pass_a_rounded_base_after_an_evaluation(base):
    """bitsandbytes lays weights out for inference in evaluation, and lets no gradient through them
    afterwards.
    """
    found = []
    for evaluated in (False, True):
        torch.manual_seed(0)
        tuned = attach(load_model(base, AutoModelForCausalLM, quantized=True)[1], "qlora", None, "CAUSAL_LM")
        with torch.no_grad():
            for name, value in tuned.named_parameters():
                if "lora_B" in name:
                    value.normal_(std=0.1)
            if evaluated:
                tuned.eval()(input_ids=IDS)
        tuned.train()(input_ids=IDS, labels=IDS).loss.backward()
        found.append({n: p.grad for n, p in tuned.named_parameters() if "layers.0" in n and p.requires_grad})
    assert found[0] and all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@needs_package
def test_its_adapter_comes_back_on_the_same_rounded_base(base, tmp_path):
    processor, network = load_model(base, AutoModelForCausalLM, quantized=True)
    tuned = attach(network, "qlora", None, "CAUSAL_LM")
    with torch.no_grad():
        for name, value in tuned.named_parameters():
            if "lora_B" in name:
                value.normal_()
    folder = tmp_path / "adapter"
    tuned.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_passport(
        folder, tuned, processor, base=base.model_name_or_path, method="qlora", method_kwargs=None,
        task="sft",
        labels=None, data_fingerprint=None, metrics={},
    )  # fmt: skip
    _, again = mount(folder)
    assert again.get_base_model().is_quantized
    with torch.no_grad():
        assert torch.equal(again(input_ids=IDS).logits, tuned.eval()(input_ids=IDS).logits)


@needs_package
def test_a_new_head_on_a_base_in_4_bits_is_whole_and_trained(base):
    _, network = load_model(base, AutoModelForSequenceClassification, ["a", "b"], quantized=True)
    tuned = attach(network, "qlora", None, "SEQ_CLS")
    head = [p for n, p in tuned.named_parameters() if "score.modules_to_save" in n]
    assert head and all(p.is_floating_point() and p.requires_grad for p in head)


def test_methods_that_a_base_does_not_fit_are_refused(base, monkeypatch):
    _, plain = load_model(base, AutoModelForCausalLM)
    with pytest.raises(InputError, match="isn't held in 4 bits"):
        attach(plain, "qlora", None, "CAUSAL_LM")
    monkeypatch.setattr(quantized, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(InputError, match="pip install bitsandbytes"):
        load_model(base, AutoModelForCausalLM, quantized=True)
