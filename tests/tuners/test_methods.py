"""Which method works on which model, what moves, and that saved = loaded, disabled = base."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import peft
import pytest
import torch
from bounds import assert_near
from conftest import make_model
from covering import covering
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from finetune.errors import InputError
from finetune.methods import METHODS, MethodArguments, attach, head_names, refusal

AUTO = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "CAUSAL_LM": AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM,
}
# bases in 4 bits, real and simulated, have tests of their own: tests/models/
WORKING = set(METHODS) - {"qlora", "qat_lora"}
VIRTUAL = {"prefix", "prompt", "ptuning"}
# The whole table of what works: for each task and family, the methods that are refused.
REFUSED = {
    ("SEQ_CLS", "bert"): set(),
    ("SEQ_CLS", "roberta"): set(),
    ("SEQ_CLS", "distilbert"): {"prefix", "ia3"},
    ("SEQ_CLS", "llama"): {"bitfit"},
    ("SEQ_CLS", "gpt2"): set(),
    ("SEQ_CLS", "t5"): VIRTUAL | {"bitfit"},
    ("SEQ_CLS", "bart"): VIRTUAL,
    ("TOKEN_CLS", "bert"): {"prompt", "ptuning"},
    ("TOKEN_CLS", "distilbert"): VIRTUAL | {"ia3"},
    ("TOKEN_CLS", "llama"): {"prompt", "ptuning", "bitfit"},
    ("CAUSAL_LM", "llama"): {"bitfit", "linear_probe"},
    ("CAUSAL_LM", "gpt2"): {"linear_probe"},
    ("SEQ_2_SEQ_LM", "t5"): {"bitfit", "linear_probe"},
    ("SEQ_2_SEQ_LM", "bart"): {"linear_probe"},
}
# rsLoRA and DoRA go LoRA's way but for their arithmetic: one model of each architecture shows them
VARIANTS, SHOWN_ON = {"rslora", "dora"}, {("SEQ_CLS", "bert"), ("CAUSAL_LM", "gpt2"), ("SEQ_2_SEQ_LM", "t5")}
PAIRS = [
    (task, family, name)
    for (task, family), gone in REFUSED.items()
    if family != "roberta"
    for name in sorted(WORKING - gone - (set() if (task, family) in SHOWN_ON else VARIANTS))
]


def model(task: str, family: str, seed: int = 0):
    return make_model(family, AUTO[task], seed, **({"num_labels": 3} if task.endswith("CLS") else {}))


def batch(family: str, task: str) -> dict[str, torch.Tensor]:
    ids = (
        [[7, 8, 9, 10, 6], [7, 9, 10, 6, 0]]
        if family in ("t5", "bart")
        else [[2, 7, 8, 9, 3], [2, 9, 10, 3, 0]]
    )
    inputs = {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]),
    }
    return inputs | (
        {"decoder_input_ids": torch.tensor([[0, 7, 8], [0, 9, 6]])} if task == "SEQ_2_SEQ_LM" else {}
    )


def two_steps(network, inputs) -> set[str]:
    """Names of the parameters that two steps of SGD moved."""
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.3)
    for _ in range(2):
        logits = network(**inputs)["logits"]
        (logits.logsumexp(-1).sum() + logits[..., 0].sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}


@contextmanager
def disabled(network: peft.PeftModel) -> Iterator[nn.Module]:
    """The model as it was before it was tuned, its old head included; yields what is to be called.

    PEFT's own `disable_adapter` fails at its end for methods of virtual tokens on models that can't generate,
    and leaves the trained head on.
    """
    if not network.active_peft_config.is_prompt_learning:
        with network.disable_adapter():
            yield network
        return
    heads = [module for module in network.modules() if isinstance(module, ModulesToSaveWrapper)]
    for head in heads:
        head.enable_adapters(False)
    try:
        yield network.get_base_model()
    finally:
        for head in heads:
            head.enable_adapters(True)


@pytest.mark.parametrize(("task", "family"), REFUSED)
def test_the_table_of_what_works(task, family):
    network = model(task, family)
    assert {name for name in WORKING if refusal(network, name, task)} == REFUSED[task, family]


@pytest.mark.parametrize(("task", "family", "name"), covering(PAIRS))
def test_saved_loaded_switched_disabled(task, family, name, tmp_path):
    inputs, network = batch(family, task), model(task, family)
    with torch.no_grad():
        base = network(**inputs)["logits"]
    heads = head_names(network) if task.endswith("CLS") else []
    tuned = attach(network, name, None, task)
    trainable = {n for n, p in tuned.named_parameters() if p.requires_grad}
    moved = two_steps(tuned, inputs)
    assert moved <= trainable
    assert moved
    if name == "full":
        return
    assert all(any(head in n for n in moved) for head in heads)
    own = {n for n in moved if not any(head in n for head in heads)}
    assert bool(own) == (name != "linear_probe")
    assert all(
        any(part in n for part in ("lora_", "ia3_", "bottleneck", "bitfit", "prompt_encoder")) for n in own
    )
    tuned.eval()
    with torch.no_grad():
        answer = tuned(**inputs)["logits"]
        tuned.save_pretrained(tmp_path, save_embedding_layers=False)
        loaded = peft.PeftModel.from_pretrained(model(task, family), tmp_path).eval()
        torch.testing.assert_close(loaded(**inputs)["logits"], answer, rtol=0, atol=0)
        with disabled(loaded) as plain:
            assert_near(plain(**inputs)["logits"], base)
        torch.testing.assert_close(loaded(**inputs)["logits"], answer, rtol=0, atol=0)
        other = attach(model(task, family), name, None, task)
    two_steps(other, {k: v.flip(0) for k, v in inputs.items()})
    other.eval()
    other.save_pretrained(tmp_path / "other", save_embedding_layers=False)
    with torch.no_grad():
        theirs = other(**inputs)["logits"]
        loaded.load_adapter(str(tmp_path / "other"), "other")
        loaded.set_adapter("other")
        assert_near(loaded(**inputs)["logits"], theirs)
        loaded.set_adapter("default")
        assert_near(loaded(**inputs)["logits"], answer)


def test_exactly_the_heads_are_found():
    assert head_names(model("SEQ_CLS", "bert")) == ["classifier"]
    assert head_names(model("SEQ_CLS", "distilbert")) == ["pre_classifier", "classifier"]
    assert head_names(model("SEQ_CLS", "llama")) == ["score"]
    assert head_names(model("SEQ_CLS", "t5")) == ["classification_head"]


@pytest.mark.parametrize("shape", ["houlsby", "pfeiffer", "parallel"])
def test_method_options_reach_peft(shape):
    tuned = attach(model("SEQ_CLS", "bert"), "bottleneck", {"shape": shape, "reduction_factor": 4}, "SEQ_CLS")
    config = tuned.active_peft_config
    assert (config.shape, config.reduction_factor) == (shape, 4)


def test_refused_by_name():
    with pytest.raises(
        InputError,
        match="'bitfit' can't tune LlamaForSequenceClassification: its layers have no biases. Set --method",
    ):
        attach(model("SEQ_CLS", "llama"), "bitfit", None, "SEQ_CLS")
    with pytest.raises(
        InputError, match="'prefix' can't tune DistilBertForSequenceClassification: .* no past keys"
    ):
        attach(model("SEQ_CLS", "distilbert"), "prefix", None, "SEQ_CLS")
    with pytest.raises(InputError, match="Unknown method 'loar'; wanted one of: full, lora"):
        attach(model("SEQ_CLS", "bert"), "loar", None, "SEQ_CLS")
    with pytest.raises(InputError, match="'lora': .*unexpected keyword argument 'rank'"):
        attach(model("SEQ_CLS", "bert"), "lora", {"rank": 3}, "SEQ_CLS")
    with pytest.raises(InputError, match="'full' takes no --method_kwargs"):
        attach(model("SEQ_CLS", "bert"), "full", {"r": 3}, "SEQ_CLS")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the refusal of machines without CUDA")
def test_qlora_on_a_base_that_is_not_rounded_is_refused():
    with pytest.raises(InputError, match="'qlora' can't tune .* isn't held in 4 bits"):
        attach(model("SEQ_CLS", "bert"), "qlora", None, "SEQ_CLS")


def test_method_kwargs_are_json():
    assert MethodArguments(method_kwargs='{"r": 4}').method_kwargs == {"r": 4}
    with pytest.raises(InputError, match="is no JSON"):
        MethodArguments(method_kwargs="r=4")
    with pytest.raises(InputError, match="wanted a mapping"):
        MethodArguments(method_kwargs="[4]")


def test_recurrent_models_are_tuned_whole_or_at_their_head():
    """LoRA, bottleneck, biases and virtual tokens want layers that they haven't; a probe is their head."""
    from finetune.models.recurrent_config import RecurrentConfig

    def made():
        sizes = {"vocab_size": 40, "embedding_size": 6, "hidden_size": 5}
        return AutoModelForSequenceClassification.from_config(RecurrentConfig(**sizes))

    for name in sorted(set(METHODS) - {"full", "linear_probe"}):
        with pytest.raises(InputError, match=r"no linear layers inside.*full \(and linear_probe\)|4 bits"):
            attach(made(), name, None, "SEQ_CLS")
    tuned = attach(made(), "linear_probe", None, "SEQ_CLS")
    moved = {name.split(".")[-2] for name, weight in tuned.named_parameters() if weight.requires_grad}
    assert moved == {"default"} and all(
        "classifier" in n for n, w in tuned.named_parameters() if w.requires_grad
    )
