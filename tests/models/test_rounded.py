"""LoRA that trains for 4 bits: in training it computes what the file of 4 bits will, elsewhere what it is."""

from __future__ import annotations

import pytest
import torch
from bounds import assert_near
from conftest import make_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from finetune.errors import InputError
from finetune.methods import MethodArguments, attach
from finetune.training.continuing import tune

IDS = torch.tensor([[5, 8, 9, 10, 6]])


def tuned_for_4_bits(kind: str = "llama", auto: type = AutoModelForCausalLM, **sizes: int):
    pytest.importorskip("torchao", reason="qat_lora needs the extra 'int4'")
    network = make_model(kind, auto, hidden_size=64, intermediate_size=64, **sizes)
    tuned = attach(network, "qat_lora", {"r": 4, "lora_alpha": 64}, "CAUSAL_LM")
    torch.manual_seed(1)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)  # at 0 an adapter would change nothing
    return tuned


def test_training_computes_what_the_file_of_4_bits_will(tmp_path):
    tuned = tuned_for_4_bits()
    from finetune.formats.int4 import load_int4, save_int4

    in_training, plain = tuned.train()(input_ids=IDS).logits, tuned.eval()(input_ids=IDS).logits
    merged = tuned.merge_and_unload()
    assert_near(merged(input_ids=IDS).logits, plain, 1e-5)
    from_file = load_int4(save_int4(merged, tmp_path), "AutoModelForCausalLM")(input_ids=IDS).logits.float()
    # the file computes in bf16, which is far nearer than rounding to 4 bits is to none
    apart, further = (from_file - in_training).norm(), (from_file - plain).norm()
    assert apart < 0.2 * further
    assert further > 0.01 * plain.norm()


def test_the_gradient_passes_the_rounding():
    from finetune.models.rounded import rounded

    pytest.importorskip("torchao", reason="qat_lora needs the extra 'int4'")
    weight = torch.randn(16, 64, requires_grad=True)
    found = rounded(weight)
    assert len(found[0, :32].unique()) <= 16 and (found - weight).abs().max() > 0
    (found * 3).sum().backward()
    assert weight.grad is not None
    # but for those that are cut, and for the largest of each group, which its scale follows
    assert float(((weight.grad - 3).abs() < 1e-4).float().mean()) > 0.9


def test_factors_alone_are_trained():
    tuned = tuned_for_4_bits().train()
    before = {name: weight.detach().clone() for name, weight in tuned.named_parameters()}
    tuned(input_ids=IDS, labels=IDS).loss.backward()
    with torch.no_grad():
        for weight in tuned.parameters():
            if weight.grad is not None:
                weight -= 0.3 * weight.grad
    moved = {name for name, weight in tuned.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if "lora_" in name}


def test_a_run_that_goes_on_rounds_too(tmp_path):
    tuned = tuned_for_4_bits()
    tuned.save_pretrained(tmp_path)
    base = make_model("llama", AutoModelForCausalLM, hidden_size=64, intermediate_size=64)
    _, again = tune(base, None, MethodArguments("qat_lora"), "CAUSAL_LM", tmp_path)
    assert_near(again.train()(input_ids=IDS).logits, tuned.train()(input_ids=IDS).logits, 1e-6)
    assert not torch.equal(again.eval()(input_ids=IDS).logits, tuned.train()(input_ids=IDS).logits)


def test_what_cannot_be_rounded_is_named(monkeypatch):
    network = make_model("bert", AutoModelForSequenceClassification)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="'qat_lora' rounds by torchao, which is not installed: pip"):
        attach(network, "qat_lora", None, "SEQ_CLS")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: "there")
    with pytest.raises(InputError, match="lora_dropout and use_dora have no place"):
        attach(network, "qat_lora", {"lora_dropout": 0.1}, "SEQ_CLS")
    with pytest.raises(InputError, match="'qat_lora' can't tune GPT2LMHeadModel: no linear layer"):
        attach(make_model("gpt2", AutoModelForCausalLM), "qat_lora", None, "CAUSAL_LM")
