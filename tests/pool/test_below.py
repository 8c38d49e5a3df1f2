"""Adapters that stand on other adapters: served with what is below them, or refused."""

import json
from pathlib import Path

import peft
import pytest
import torch
from bounds import near
from conftest import make_model, make_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM

from finetune.adapters.loading import mount
from finetune.errors import InputError
from finetune.pool.plan import Plan
from finetune.pool.pool import AdapterPool

TEXTS = ["the film was great", "a dull story", "i loved the very bright actor in it and the film", "awful"]


def standing_on(folder: Path, below: Path, network: peft.PeftModel, name: str = "") -> Path:
    """A saved adapter whose folder says, as PEFT's do, that its base is another adapter's folder."""
    network.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = name or str(below)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def lora_on(network: nn.Module, seed: int, **options) -> peft.PeftModel:
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **options)
    tuned = peft.get_peft_model(network, settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in tuned.named_parameters():
            if "lora_" in key and "magnitude" not in key:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return tuned.eval()


def test_an_adapter_on_an_adapter_is_served_with_it(tmp_path):
    base = make_model("llama", AutoModelForCausalLM)
    base.save_pretrained(tmp_path / "base")
    make_tokenizer("llama").save_pretrained(tmp_path / "base")
    chat = lora_on(make_model("llama", AutoModelForCausalLM), 1)
    standing_on(tmp_path / "chat", tmp_path / "base", chat)
    whole = lora_on(chat.merge_and_unload(), 2)
    standing_on(tmp_path / "dpo", tmp_path / "chat", whole)
    ids = make_tokenizer("llama")(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = whole(**ids).logits
    pool = AdapterPool(str(tmp_path / "base"))
    pool.add("dpo", tmp_path / "dpo")
    pool.add("chat", tmp_path / "chat")
    # one row each, beside rows of the lower one and of none
    for names in (["dpo"] * 4, ["dpo", None, "dpo", "chat"]):
        plan = Plan([pool.chain(name) for name in names])
        found = pool.run(plan, lambda: pool.network(**ids)).logits
        for row, name in enumerate(names):
            if name == "dpo":
                own = ids["attention_mask"][row].bool()
                assert near(found[row][own], wanted[row][own], 1e-5)
    # merged below: the lower one's folder as base, and only the upper one runs
    merged = AdapterPool(str(tmp_path / "chat"))
    merged.add("dpo", tmp_path / "dpo")
    assert len(merged.chain("dpo")) == 1
    found = merged.run(Plan([merged.chain("dpo")] * 4), lambda: merged.network(**ids)).logits
    own = ids["attention_mask"].bool()
    assert near(found[own], wanted[own], 1e-5)
    # and outside of a pool
    _, mounted = mount(tmp_path / "dpo")
    with torch.no_grad():
        assert near(mounted(**ids).logits[own], wanted[own], 1e-5)


def test_what_cannot_stand_on_an_adapter_is_refused(tmp_path):
    make_model("llama", AutoModelForCausalLM).save_pretrained(tmp_path / "base")
    make_tokenizer("llama").save_pretrained(tmp_path / "base")
    network = lora_on(make_model("llama", AutoModelForCausalLM), 1)
    standing_on(tmp_path / "chat", tmp_path / "base", network)
    pool = AdapterPool(str(tmp_path / "base"))
    dora = lora_on(make_model("llama", AutoModelForCausalLM), 2, use_dora=True)
    standing_on(tmp_path / "dora", tmp_path / "chat", dora)
    with pytest.raises(InputError, match=r"dora stands on the adapter in .*chat.*--action into_base"):
        pool.add("dora", tmp_path / "dora")
    standing_on(tmp_path / "one", tmp_path / "two", network)
    standing_on(tmp_path / "two", tmp_path / "one", network)
    with pytest.raises(InputError, match="stands on itself"):
        pool.add("one", tmp_path / "one")
    with pytest.raises(InputError, match="stands on itself"):
        AdapterPool(str(tmp_path / "two"))
