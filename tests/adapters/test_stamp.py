"""Passports for folders of plain PEFT, and merges where embeddings and head share a weight."""

import json

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from finetune.adapters.actions import ActionArguments, act
from finetune.adapters.export import merge_into_base
from finetune.adapters.merge import MergeArguments
from finetune.errors import InputError
from finetune.pool.pool import AdapterPool

IDS = torch.tensor([[5, 7, 8, 9, 10, 6]])


def lora(base, targets: list[str], folder):
    network = peft.get_peft_model(base, peft.LoraConfig(r=3, target_modules=targets, task_type="CAUSAL_LM"))
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    network.save_pretrained(folder, save_embedding_layers=False)
    return network.eval()


def test_a_stamped_folder_is_held_to_its_base(saved, tmp_path):
    mine, other = saved("llama", AutoModelForCausalLM), saved("llama", AutoModelForCausalLM, seed=3)
    lora(AutoModelForCausalLM.from_pretrained(mine), ["q_proj", "v_proj"], tmp_path / "a")
    folder = str(tmp_path / "a")
    strict = AdapterPool(str(mine), require_passport=True)
    with pytest.raises(InputError, match="--action stamp"):
        strict.add("a", folder)
    lines = list(act(ActionArguments("stamp", [folder], base=str(mine)), MergeArguments()))
    assert "has a passport for" in lines[0]
    assert json.loads((tmp_path / "a" / "passport.json").read_text())["method"] == "lora"
    strict.add("a", folder)
    with pytest.raises(InputError, match="does not fit"):
        AdapterPool(str(other), require_passport=True).add("a", folder)
    with pytest.raises(InputError, match="a passport already"):
        list(act(ActionArguments("stamp", [folder], base=str(mine)), MergeArguments()))


@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head", "q_proj"]])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_merge_unties_what_an_adapter_changes_apart(saved, tmp_path, targets):
    folder = saved("llama", AutoModelForCausalLM, tie_word_embeddings=True)
    network = lora(AutoModelForCausalLM.from_pretrained(folder), targets, tmp_path / "a")
    with torch.no_grad():
        before = network(IDS).logits
        merged = merge_into_base(network)
        assert torch.allclose(merged(IDS).logits, before, rtol=1e-4, atol=1e-5)
        merged.save_pretrained(tmp_path / "whole")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
        assert torch.allclose(again(IDS).logits, before, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_adapterhub_is_taken_in_by_the_command(tmp_path):
    from test_adapterhub import HERE

    asked = ActionArguments("import", [str(HERE / "bert" / "pfeiffer")], str(tmp_path / "out"), base="tiny")
    lines = list(act(asked, MergeArguments()))
    assert "pfeiffer on 2 modules of 'tiny'" in lines[0] and "LABEL_2" in lines[1]
    assert peft.PeftConfig.from_pretrained(tmp_path / "out").shape == "pfeiffer"
