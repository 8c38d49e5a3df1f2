"""Bottleneck adapters: what they compute, what they train, and that PEFT saves, loads, switches and drops
them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from bounds import assert_near, near
from conftest import make_model
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch.nn.functional import gelu, relu, silu
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from finetune.tuners import BOTTLENECK, BottleneckConfig

SHAPES = ("houlsby", "pfeiffer", "parallel")
# family, task → auto class, the head that is trained whole, sub-layers with an adapter: houlsby, pfeiffer
# and parallel
CASES = {
    ("bert", "SEQ_CLS"): (AutoModelForSequenceClassification, ["classifier"], 4, 2),
    ("distilbert", "SEQ_CLS"): (AutoModelForSequenceClassification, ["pre_classifier", "classifier"], 4, 2),
    ("llama", "CAUSAL_LM"): (AutoModelForCausalLM, [], 4, 2),
    ("llama", "SEQ_CLS"): (AutoModelForSequenceClassification, ["score"], 4, 2),
    ("gpt2", "CAUSAL_LM"): (AutoModelForCausalLM, [], 4, 2),
    ("t5", "SEQ_2_SEQ_LM"): (AutoModelForSeq2SeqLM, [], 8, 4),
    ("t5", "SEQ_CLS"): (AutoModelForSequenceClassification, ["classification_head"], 8, 4),
    ("bart", "SEQ_2_SEQ_LM"): (AutoModelForSeq2SeqLM, [], 8, 4),
    ("bart", "SEQ_CLS"): (AutoModelForSequenceClassification, ["classification_head"], 8, 4),
}
EVERY = [
    (family, task, shape)
    for family, task in CASES
    for shape in SHAPES
    if (family, task) != ("bart", "SEQ_CLS")
]
IDS = torch.tensor([[2, 7, 8, 9, 10, 6], [2, 9, 11, 12, 13, 6]])


def base(family: str, task: str) -> torch.nn.Module:
    return make_model(family, CASES[family, task][0], **({"num_labels": 3} if task == "SEQ_CLS" else {}))


def config(family: str, task: str, shape: str, **options) -> BottleneckConfig:
    heads = list(CASES[family, task][1])
    return BottleneckConfig(
        task_type=task, shape=shape, modules_to_save=heads or None, **({"reduction_factor": 4} | options)
    )


def adapted(family: str, task: str, shape: str, **options) -> PeftModel:
    """A model whose adapter is drawn at random instead of starting at zero."""
    return shake(get_peft_model(base(family, task), config(family, task, shape, **options)).eval(), "default")


def shake(model: PeftModel, name: str, scale: float = 0.3) -> PeftModel:
    for key, parameter in model.named_parameters():
        if "bottleneck_" in key and f".{name}." in key:
            torch.nn.init.normal_(parameter.data, std=scale)
    return model


def logits(model: torch.nn.Module, task: str, ids: torch.Tensor = IDS) -> torch.Tensor:
    more = {"decoder_input_ids": ids[:, :4], "use_cache": False} if task == "SEQ_2_SEQ_LM" else {}
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), **more)["logits"]


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal but for the order of sums, which depends on where a tensor lies in memory."""
    return near(one, other)


def module(model: torch.nn.Module, ending: str) -> torch.nn.Module:
    """The first module whose name ends so."""
    return next(m for name, m in model.named_modules() if f".{name}".endswith(f".{ending}"))


def calls(layer: torch.nn.Module, model: torch.nn.Module, task: str) -> tuple[torch.Tensor, torch.Tensor]:
    """First input and output of a layer in one pass of the model."""
    seen = []
    hook = layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    logits(model, task)
    hook.remove()
    return seen[0]


def by_hand(
    parameters: dict[str, torch.Tensor], x: torch.Tensor, scaling: float, f=relu, name: str = "default"
) -> torch.Tensor:
    """scaling · up(f(down(x))), written out."""
    down, up = (
        {
            kind: next(v for k, v in parameters.items() if f"bottleneck_{part}.{name}.{kind}" in k)
            for kind in ("weight", "bias")
        }
        for part in ("down", "up")
    )
    return scaling * (f(x @ down["weight"].T + down["bias"]) @ up["weight"].T + up["bias"])


@pytest.mark.parametrize(("family", "task", "shape"), EVERY)
def test_a_new_adapter_changes_nothing_and_has_the_papers_size(family, task, shape):
    before = logits(base(family, task), task)
    model = get_peft_model(base(family, task), config(family, task, shape)).eval()
    assert same(logits(model, task), before)
    _, heads, many, few = CASES[family, task]
    width, units = 16, 4
    count = sum(p.numel() for name, p in model.named_parameters() if "bottleneck_" in name)
    assert count == (many if shape == "houlsby" else few) * (2 * width * units + width + units)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {
        n for n, _ in model.named_parameters() if "bottleneck_" in n or "modules_to_save.default" in n
    }
    assert all(any(f".{head}." in name for name in trainable) for head in heads)


@pytest.mark.parametrize(("family", "task", "shape"), EVERY)
def test_two_steps_move_the_adapter_and_the_head_alone(family, task, shape):
    # a unit of relu may be dead for all these tokens; in the first layers of so narrow a model gradients are
    # small
    model = adapted(family, task, shape, non_linearity="gelu").train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    for _ in range(2):
        optimizer.zero_grad()
        logits(model, task).log_softmax(-1)[..., 1].mean().backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {n for n in before if "bottleneck_" in n or "modules_to_save.default" in n}


@pytest.mark.parametrize(("family", "task", "shape"), EVERY)
def test_saved_is_loaded(family, task, shape, tmp_path: Path):
    model = adapted(family, task, shape)
    expected = logits(model, task)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    keys = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert all(
        "bottleneck_" in key or any(f".{head}." in key for head in CASES[family, task][1]) for key in keys
    )
    assert all(any(f".{head}." in key for key in keys) for head in CASES[family, task][1])
    assert same(logits(PeftModel.from_pretrained(base(family, task), tmp_path), task), expected)
    assert same(
        logits(PeftModel.from_pretrained(base(family, task), tmp_path, low_cpu_mem_usage=True), task),
        expected,
    )


@pytest.mark.parametrize(("family", "task", "shape"), EVERY)
def test_adapters_switch_and_go(family, task, shape):
    plain = logits(base(family, task), task)
    model = adapted(family, task, shape)
    first = logits(model, task)
    model.add_adapter("second", config(family, task, shape, reduction_factor=8))
    assert same(logits(model, task), first)
    model.set_adapter("second")
    second = logits(shake(model, "second").eval(), task)
    assert not torch.allclose(first, second)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if ".second." in n
    }
    with model.disable_adapter():
        assert same(logits(model, task), plain)
    assert same(logits(model, task), second)
    model.set_adapter("default")
    assert same(logits(model, task), first)
    model.delete_adapter("second")
    assert same(logits(model, task), first)
    with pytest.raises(ValueError, match="can't be merged"):
        model.merge_and_unload()
    bare = model.unload()
    assert not any(isinstance(m, BaseTunerLayer) for m in bare.modules())
    assert same(logits(bare, task), plain)


@pytest.mark.parametrize(
    ("family", "task", "shape"), [case for case in EVERY if case[:2] != ("llama", "SEQ_CLS")]
)
def test_checkpointed_gradients_are_equal(family, task, shape):
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        model = adapted(family, task, shape, non_linearity="gelu").train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        logits(model, task).square().mean().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert_near(checkpointed, plain)
    assert all(plain[name].abs().sum() > 0 for name in plain if "bottleneck_" in name)


@pytest.mark.parametrize(
    ("family", "ending"),
    [
        ("bert", "attention.output.dense"),
        ("bert", "1.output.dense"),
        ("distilbert", "ffn.lin2"),
        ("llama", "self_attn.o_proj"),
        ("gpt2", "mlp.c_proj"),
        ("t5", "SelfAttention.o"),
        ("t5", "DenseReluDense.wo"),
        ("bart", "encoder_attn.out_proj"),
    ],
)
def test_a_sequential_adapter_by_hand(family, ending):
    task = {"bert": "SEQ_CLS", "distilbert": "SEQ_CLS", "t5": "SEQ_2_SEQ_LM", "bart": "SEQ_2_SEQ_LM"}.get(
        family, "CAUSAL_LM"
    )
    model = adapted(family, task, "houlsby", scaling=2.0, cross_attention=True)
    layer = module(model, ending)
    _, hidden = calls(layer.base_layer, model, task)
    _, output = calls(layer, model, task)
    assert same(output, hidden + by_hand(dict(layer.named_parameters()), hidden, 2.0, f=silu))


@pytest.mark.parametrize(
    ("family", "ending", "first"),
    [
        ("distilbert", "ffn", "lin1"),
        ("llama", "mlp", "gate_proj"),
        ("gpt2", "mlp", "c_fc"),
        ("t5", "DenseReluDense", "wi"),
    ],
)
def test_a_parallel_adapter_reads_the_feed_forwards_input(family, ending, first):
    task = {"distilbert": "SEQ_CLS", "t5": "SEQ_2_SEQ_LM"}.get(family, "CAUSAL_LM")
    model = adapted(family, task, "parallel")
    layer = module(model, ending)
    hidden, _ = calls(module(layer, first), model, task)
    _, plain = calls(layer.base_layer, model, task)
    _, output = calls(layer, model, task)
    assert same(output, plain + by_hand(dict(layer.named_parameters()), hidden, 4.0))


def test_a_parallel_adapter_in_bert_reads_the_feed_forwards_input():
    model = adapted("bert", "SEQ_CLS", "parallel")
    layer = module(model, "layer.1")
    hidden, inner = calls(layer.intermediate, model, "SEQ_CLS")
    _, output = calls(layer.output, model, "SEQ_CLS")
    bert = layer.output.base_layer
    adapter = by_hand(dict(layer.output.named_parameters()), hidden, 4.0)
    assert same(output, bert.LayerNorm(hidden + bert.dense(inner) + adapter))


def test_a_parallel_adapter_in_bart_reads_the_feed_forwards_input():
    model = adapted("bart", "SEQ_2_SEQ_LM", "parallel")
    layer = module(model, "decoder.layers.1")
    hidden, _ = calls(layer.fc1, model, "SEQ_2_SEQ_LM")
    _, output = calls(layer.final_layer_norm, model, "SEQ_2_SEQ_LM")
    plain = layer.fc2.base_layer(gelu(layer.fc1.base_layer(hidden)))
    adapter = by_hand(dict(layer.named_parameters()), hidden, 4.0, f=gelu)
    assert same(output, layer.final_layer_norm(hidden + plain + adapter))


@pytest.mark.parametrize("order", [["default", "second"], ["second", "default"]])
def test_sequential_adapters_stack_in_the_order_given(order):
    options = {"original_ln_before": False}
    model = adapted("llama", "CAUSAL_LM", "pfeiffer", **options)
    model.add_adapter("second", config("llama", "CAUSAL_LM", "pfeiffer", **options))
    shake(model, "second").base_model.set_adapter(order)
    layer = module(model, "mlp.down_proj")
    _, hidden = calls(layer.base_layer, model, "CAUSAL_LM")
    _, output = calls(layer, model, "CAUSAL_LM")
    for name in order:
        hidden = hidden + by_hand(dict(layer.named_parameters()), hidden, 1.0, name=name)
    assert same(output, hidden)


def test_parallel_adapters_add_side_by_side():
    model = adapted("bart", "SEQ_2_SEQ_LM", "parallel")
    model.add_adapter("second", config("bart", "SEQ_2_SEQ_LM", "parallel", reduction_factor=8, scaling=0.5))
    shake(model, "second").base_model.set_adapter(["second", "default"])
    layer = module(model, "encoder.layers.0")
    hidden, _ = calls(layer.fc1, model, "SEQ_2_SEQ_LM")
    _, output = calls(layer.final_layer_norm, model, "SEQ_2_SEQ_LM")
    parameters = dict(layer.named_parameters())
    plain = layer.fc2.base_layer(gelu(layer.fc1.base_layer(hidden)))
    change = by_hand(parameters, hidden, 4.0, gelu) + by_hand(parameters, hidden, 0.5, gelu, "second")
    assert same(output, layer.final_layer_norm(hidden + plain + change))


@pytest.mark.parametrize("family", ["bert", "bart"])
def test_threads_do_not_meet(family):
    model = adapted(family, "SEQ_CLS", "parallel")
    batches = [torch.roll(IDS[:, 1:5], i, 1).repeat(1, i + 1) for i in range(8)]
    batches = [torch.cat([ids, torch.full((2, 1), 6)], 1) for ids in batches]
    alone = [logits(model, "SEQ_CLS", ids) for ids in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda ids: logits(model, "SEQ_CLS", ids), batches))
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize(("family", "task", "shape"), EVERY)
def test_a_half_precision_base_takes_float32_adapters(family, task, shape):
    model = get_peft_model(base(family, task).to(torch.bfloat16), config(family, task, shape)).eval()
    assert {p.dtype for n, p in model.named_parameters() if "bottleneck_" in n} == {torch.float32}
    assert logits(shake(model, "default"), task).isfinite().all()
    same = get_peft_model(
        base(family, task).to(torch.bfloat16), config(family, task, shape), autocast_adapter_dtype=False
    )
    assert {p.dtype for n, p in same.named_parameters() if "bottleneck_" in n} == {torch.bfloat16}
    assert logits(same.eval(), task).isfinite().all()


@pytest.mark.parametrize("shape", SHAPES)
def test_t5_keeps_its_last_layer_in_float32(shape):
    network = base("t5", "SEQ_2_SEQ_LM").to(torch.bfloat16)
    for name, layer in network.named_modules():
        if name.endswith(".wo"):
            layer.float()
    model = get_peft_model(network, config("t5", "SEQ_2_SEQ_LM", shape)).eval()
    assert logits(shake(model, "default"), "SEQ_2_SEQ_LM").isfinite().all()


def test_dropout_falls_on_the_bottleneck():
    model = adapted("llama", "CAUSAL_LM", "pfeiffer", dropout=0.5)
    assert same(logits(model, "CAUSAL_LM"), logits(model, "CAUSAL_LM"))
    model.train()
    assert not torch.equal(logits(model, "CAUSAL_LM"), logits(model, "CAUSAL_LM"))


def test_layer_norms_can_be_trained_along_as_in_the_paper():
    options = BottleneckConfig(
        task_type="SEQ_CLS", reduction_factor=4, modules_to_save=["classifier", "LayerNorm"]
    )
    model = get_peft_model(base("bert", "SEQ_CLS"), options)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert sum("LayerNorm" in name for name in trainable) == 2 * 5


def test_settled_options():
    assert BottleneckConfig().peft_type == BOTTLENECK
    assert (BottleneckConfig().scaling, BottleneckConfig(shape="parallel").scaling) == (1.0, 4.0)
    assert BottleneckConfig(shape="parallel", scaling=2.0).scaling == 2.0
    assert adapted("bart", "SEQ_CLS", "parallel").peft_config["default"].non_linearity == "gelu"
    assert adapted("bart", "SEQ_CLS", "houlsby").peft_config["default"].non_linearity == "swish"
    assert adapted("bart", "SEQ_CLS", "pfeiffer").peft_config["default"].non_linearity == "relu"
    assert [BottleneckConfig(shape=shape).reduction_factor for shape in SHAPES] == [16, 16, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "round"}, "houlsby, pfeiffer, parallel"),
        ({"reduction_factor": 0}, "at least 1"),
        ({"reduction_factor": 2.5}, "whole number"),
        ({"non_linearity": "rleu"}, "relu"),
        ({"dropout": 1.0}, "below 1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        BottleneckConfig(**options)


@pytest.mark.parametrize(
    ("family", "task", "options", "error", "message"),
    [
        ("bert", "SEQ_CLS", {"reduction_factor": 32}, ValueError, "16 wide"),
        ("bart", "SEQ_CLS", {"shape": "parallel", "non_linearity": "relu"}, ValueError, "'gelu'"),
        ("bart", "SEQ_CLS", {"shape": "parallel", "target_modules": ["fc1"]}, ValueError, "fc1 and fc2"),
        ("llama", "CAUSAL_LM", {"target_modules": ["self_attn"]}, TypeError, "behind a linear layer"),
    ],
)
def test_what_a_model_cannot_take(family, task, options, error, message):
    with pytest.raises(error, match=message):
        get_peft_model(base(family, task), config(family, task, **({"shape": "houlsby"} | options)))


def test_parallel_and_sequential_do_not_mix():
    model = adapted("bert", "SEQ_CLS", "parallel")
    before = logits(model, "SEQ_CLS")
    with pytest.raises(ValueError, match=r"houlsby \(inside\), parallel \(beside\)"):
        model.add_adapter("second", config("bert", "SEQ_CLS", "houlsby"))
    assert same(logits(model, "SEQ_CLS"), before)
