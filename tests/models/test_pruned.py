"""A pruned model computes what the whole one does without the other layers; its configuration says so."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import make_model
from test_train import train
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from finetune.adapters.loading import mount
from finetune.errors import InputError
from finetune.models.load import ModelArguments, load_model
from finetune.models.pruned import chosen_layers, layer_stack, with_fewer_layers

SIZES = {
    "bert": "num_hidden_layers",
    "distilbert": "n_layers",
    "llama": "num_hidden_layers",
    "gpt2": "n_layer",
}
IDS = torch.tensor([[2, 8, 9, 10, 3]])


def deep(family: str, layers: int = 4) -> nn.Module:
    kind = AutoModelForCausalLM if family in ("llama", "gpt2") else AutoModelForSequenceClassification
    return make_model(family, kind, **{SIZES[family]: layers})


def test_which_layers_are_kept():
    assert chosen_layers([6], 12) == [0, 2, 4, 7, 9, 11]
    assert chosen_layers([3], 6) == [0, 2, 5] and chosen_layers([1], 6) == [0]
    assert chosen_layers([4], 4) == [0, 1, 2, 3] and chosen_layers([0, 1, 5], 6) == [0, 1, 5]
    for wanted, said in (
        ([7], "wanted 1 to 6"),
        ([0], "wanted 1 to 6"),
        ([2, 1], "rising"),
        ([1, 6], "0 to 5"),
    ):
        with pytest.raises(InputError, match=said):
            chosen_layers(wanted, 6)


@pytest.mark.parametrize("family", SIZES)
def test_the_layers_that_are_left_compute_as_before(family):
    whole = deep(family)
    pruned = with_fewer_layers(whole, [0, 2])
    assert pruned.config.num_hidden_layers == 2 and pruned.config.kept_layers == [0, 2]
    assert whole.config.num_hidden_layers == 4
    by_hand = copy.deepcopy(whole)
    stack = by_hand.get_submodule(layer_stack(whole))
    del stack[3], stack[1]
    by_hand.config.num_hidden_layers = 2
    with torch.no_grad():
        further = {"use_cache": False} if whole.can_generate() else {}
        assert torch.equal(pruned(input_ids=IDS).logits, by_hand(input_ids=IDS, **further).logits)
        same = with_fewer_layers(whole, [4])
        assert torch.equal(same(input_ids=IDS).logits, whole(input_ids=IDS).logits)
    if whole.can_generate():  # its cache has a place for each layer
        written = pruned.generate(IDS, max_new_tokens=3, do_sample=False, pad_token_id=0)
        again = pruned.generate(IDS, max_new_tokens=3, do_sample=False, use_cache=False, pad_token_id=0)
        assert torch.equal(written, again)


def test_other_families_are_refused_by_name():
    with pytest.raises(InputError, match=r"can't prune T5ForConditionalGeneration \('t5'\)"):
        with_fewer_layers(make_model("t5", AutoModelForSeq2SeqLM), [1])


def test_a_saved_model_and_an_adapter_come_back_pruned(saved, review_file, tmp_path):
    source = saved("bert", AutoModelForSequenceClassification, num_hidden_layers=4)
    asked = ModelArguments(str(source), keep_layers=[2])
    processor, network = load_model(asked, AutoModelForSequenceClassification)
    network.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    _, again = load_model(ModelArguments(str(tmp_path / "whole")), AutoModelForSequenceClassification)
    with torch.no_grad():
        assert torch.equal(network(input_ids=IDS).logits, again(input_ids=IDS).logits)
    from finetune.adapters import load

    for method in ("lora", "full"):
        run = train(source, review_file, tmp_path / method, "--method", method, "--keep_layers", "2")
        classifier = load(run)
        assert classifier.network.config.num_hidden_layers == 2
        if method == "lora":
            _, mounted = mount(run)
            assert mounted.config.num_hidden_layers == 2
    base = train(tmp_path / "full", review_file, tmp_path / "on_full", "--method", "lora")
    assert load(base).network.config.kept_layers == [0, 3]
    further = train(run.parent / "lora", review_file, tmp_path / "further", "--method", "lora")
    assert load(further).network.config.num_hidden_layers == 2
