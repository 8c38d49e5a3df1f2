"""Which layers accelerate is told to shard: wrong ones would end a run on GPUs as it begins."""

import os

import pytest
from conftest import make_model
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import finetune.models.own_families  # noqa: F401  (registers a family that is tested here)
from finetune.models.sharded import name_layers

LAYERS = {"bert": "BertLayer", "llama": "LlamaDecoderLayer", "gpt2": "GPT2Block", "t5": "T5Block"}


@pytest.fixture(autouse=True)
def _nothing_told(monkeypatch):
    for name in ("FSDP_TRANSFORMER_CLS_TO_WRAP", "FSDP_AUTO_WRAP_POLICY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize("family", sorted(LAYERS))
def test_layers_are_sharded_and_no_module_around_the_embeddings(family):
    name_layers(make_model(family, AutoModel))
    assert os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"] == LAYERS[family]


def test_what_the_launcher_says_stays(monkeypatch):
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "LlamaMLP")
    name_layers(make_model("llama", AutoModelForCausalLM))
    assert os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"] == "LlamaMLP"


def test_a_network_without_layers_of_its_own_is_sharded_as_a_whole():
    name_layers(make_model("textcnn", AutoModelForSequenceClassification))
    assert os.environ["FSDP_AUTO_WRAP_POLICY"] == "NO_WRAP"
