"""BitFit: biases and heads move, nothing else; merged = adapter; adapters switch, save and load."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from bounds import near
from conftest import make_model
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.pytorch_utils import Conv1D

from finetune.tuners import BITFIT, BitFitConfig

# name → family, auto class, task, heads trained whole
CASES = {
    "bert": ("bert", AutoModelForSequenceClassification, "SEQ_CLS", ["classifier"]),
    "roberta": ("roberta", AutoModelForTokenClassification, "TOKEN_CLS", ["classifier"]),
    "distilbert": (
        "distilbert",
        AutoModelForSequenceClassification,
        "SEQ_CLS",
        ["pre_classifier", "classifier"],
    ),
    "gpt2": ("gpt2", AutoModelForCausalLM, "CAUSAL_LM", []),
    "gpt2 classifier": ("gpt2", AutoModelForSequenceClassification, "SEQ_CLS", ["score"]),
    "bart": ("bart", AutoModelForSeq2SeqLM, "SEQ_2_SEQ_LM", []),
    "bart classifier": ("bart", AutoModelForSequenceClassification, "SEQ_CLS", ["classification_head"]),
    "mlm": ("bert", AutoModelForMaskedLM, None, []),
}
IDS = torch.tensor([[2, 7, 8, 9, 10, 6], [2, 9, 11, 12, 13, 6]])


def base(case: str) -> nn.Module:
    family, auto, *_ = CASES[case]
    return make_model(family, auto)


def config(case: str) -> BitFitConfig:
    *_, task, heads = CASES[case]
    return BitFitConfig(task_type=task, modules_to_save=list(heads) or None)


def adapted(case: str) -> PeftModel:
    return shake(get_peft_model(base(case), config(case)).eval(), "default")


def shake(model: PeftModel, name: str) -> PeftModel:
    for key, parameter in model.named_parameters():
        if key.endswith(f"bitfit_bias.{name}"):
            nn.init.normal_(parameter.data, std=0.3)
    return model


def logits(model: nn.Module) -> torch.Tensor:
    more = {"decoder_input_ids": IDS, "use_cache": False} if model.config.is_encoder_decoder else {}
    return model(input_ids=IDS, attention_mask=torch.ones_like(IDS), **more)["logits"]


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return near(one, other)


@pytest.mark.parametrize("case", CASES)
def test_biases_and_heads_move_alone(case):
    plain = logits(base(case))
    network = base(case)
    heads = tuple(f"{head}." for head in CASES[case][3])
    biases = {
        name: module.bias.numel()
        for name, module in network.named_modules()
        if isinstance(module, (nn.Linear, Conv1D,
        nn.LayerNorm)) and module.bias is not None and not name.startswith(heads)
        and name not in CASES[case][3]
    }  # fmt: skip
    model = get_peft_model(network, config(case))
    assert same(logits(model.eval()), plain)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for name, p in trainable.items() if "bitfit_bias" in name) == sum(biases.values())
    assert len([name for name in trainable if "bitfit_bias" in name]) == len(biases)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        logits(model).log_softmax(-1)[..., 1].mean().backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    # the bias of a key shifts all scores of a query alike, so that its gradient is zero but for rounding; a
    # pooler may be unused
    still = {
        name for name in trainable if ".key." in name or ".k_" in name or "embed" in name or "pooler" in name
    }
    assert moved <= set(trainable)
    assert set(trainable) - still <= moved


@pytest.mark.parametrize("case", CASES)
def test_merged_is_adapter(case):
    model = adapted(case)
    expected = logits(model)
    assert not same(expected, logits(base(case)))
    merged = model.merge_and_unload()
    assert not any(isinstance(module, BaseTunerLayer) for module in merged.modules())
    assert merged.state_dict().keys() == base(case).state_dict().keys()
    assert same(logits(merged), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unmerging_gives_the_very_biases_back(dtype):
    model = shake(get_peft_model(base("bert").to(dtype), config("bert")).eval(), "default")
    biases = {
        name: p.detach().clone() for name, p in model.named_parameters() if name.endswith("base_layer.bias")
    }
    before = logits(model)
    model.merge_adapter()
    assert torch.allclose(logits(model), before, atol=1e-6 if dtype == torch.float32 else 0.05)
    model.unmerge_adapter()
    assert all(torch.equal(p, biases[name]) for name, p in model.named_parameters() if name in biases)
    assert same(logits(model), before)


def test_disabling_a_merged_adapter_gives_the_base():
    plain = logits(base("gpt2"))
    model = adapted("gpt2")
    model.merge_adapter()
    with model.disable_adapter():
        assert same(logits(model), plain)


def test_a_broken_adapter_is_not_merged():
    model = adapted("gpt2")
    model.get_parameter("base_model.model.transformer.h.0.mlp.c_fc.bitfit_bias.default").data[0] = float(
        "nan"
    )
    with pytest.raises(ValueError, match="NaN or infinity"):
        model.merge_and_unload(safe_merge=True)


@pytest.mark.parametrize("case", CASES)
def test_saved_is_loaded_and_adapters_switch(case, tmp_path: Path):
    plain = logits(base(case))
    first = adapted(case)
    expected = logits(first)
    first.save_pretrained(tmp_path)
    heads = CASES[case][3]
    keys = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert all("bitfit_bias" in key or any(f".{head}." in key for head in heads) for key in keys)
    assert all(any(f".{head}." in key for key in keys) for head in heads)
    model = PeftModel.from_pretrained(base(case), tmp_path)
    assert same(logits(model), expected)
    model.add_adapter("second", config(case))
    model.set_adapter("second")
    assert same(logits(model.eval()), plain)
    second = logits(shake(model, "second"))
    model.load_adapter(tmp_path, "third")
    model.set_adapter("third")
    assert same(logits(model), expected)
    model.set_adapter("second")
    assert same(logits(model), second)
    with model.disable_adapter():
        assert same(logits(model), plain)
    assert same(logits(model.unload()), plain)


def test_active_adapters_add_up():
    model = adapted("gpt2")
    model.add_adapter("second", config("gpt2"))
    shake(model, "second").base_model.set_adapter(["default", "second"])
    layer = model.get_submodule("base_model.model.transformer.h.0.mlp.c_fc")
    hidden = torch.randn(3, 16)
    expected = layer.base_layer(hidden) + layer.bitfit_bias["default"] + layer.bitfit_bias["second"]
    assert same(layer(hidden), expected)
    before = logits(model)
    assert same(logits(model.merge_and_unload()), before)


def test_targets_can_be_named():
    model = get_peft_model(
        base("bert"), BitFitConfig(task_type="SEQ_CLS", target_modules=["query", "intermediate.dense"])
    )
    adapters = {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    assert {name.split(".layer.")[1] for name in adapters} == {
        f"{i}.{part}" for i in range(2) for part in ("attention.self.query", "intermediate.dense")
    }
    with pytest.raises(TypeError, match=r"'transformer\.wte' is a Embedding"):
        get_peft_model(base("gpt2"), BitFitConfig(target_modules=["wte"]))


@pytest.mark.parametrize(
    ("family", "auto", "heads", "words"),
    [
        ("llama", AutoModelForCausalLM, None, "LlamaForCausalLM.*llama"),
        ("t5", AutoModelForSeq2SeqLM, None, "T5ForConditionalGeneration.*t5"),
        # its only biases are the head's
        (
            "t5",
            AutoModelForSequenceClassification,
            ["classification_head"],
            "T5ForSequenceClassification.*t5",
        ),
    ],
)
def test_a_model_without_biases_is_refused(family, auto, heads, words):
    with pytest.raises(ValueError, match=rf"{words}.*have none"):
        get_peft_model(make_model(family, auto), BitFitConfig(modules_to_save=heads))


def test_weight_decay_leaves_the_biases_alone(tmp_path: Path):
    from transformers import Trainer, TrainingArguments

    model = adapted("gpt2")
    trainer = Trainer(model, TrainingArguments(tmp_path, use_cpu=True))
    assert not any("bitfit" in name for name in trainer.get_decay_parameter_names(model))


def test_half_precision_bases_take_float32_biases():
    model = get_peft_model(base("bert").to(torch.bfloat16), config("bert")).eval()
    assert {p.dtype for name, p in model.named_parameters() if "bitfit" in name} == {torch.float32}
    assert logits(shake(model, "default")).dtype == torch.bfloat16


def test_peft_finds_the_method_by_name():
    assert peft.get_peft_config({"peft_type": "BITFIT"}).peft_type == BITFIT
