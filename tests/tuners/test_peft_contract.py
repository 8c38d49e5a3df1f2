"""What PEFT asks of a tuner, asked of ours: names, starts, sizes, rows of their own, mixed with disabled
ones."""

import peft
import pytest
import torch
from conftest import make_model
from test_tuners import adapted, config, logits, same, shake
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from finetune.tuners import BITFIT, BOTTLENECK, BitFitConfig, BottleneckConfig
from finetune.tuners.bitfit import BitFitLayer
from finetune.tuners.bottleneck.layer import BottleneckLayer

NAMED = ["default", "__base__", "second", "default"]
IDS = torch.tensor([[2, 7, 8, 9, 10, 6]] * 4) + torch.arange(4)[:, None]


def test_types_are_strings_with_a_value_as_pefts_own():
    for kind, made in ((BOTTLENECK, BottleneckConfig()), (BITFIT, BitFitConfig())):
        assert made.peft_type == kind == kind.value and made.peft_type.value == str(kind)
    assert peft.get_peft_config({"peft_type": "BOTTLENECK", "shape": "pfeiffer"}).shape == "pfeiffer"


@pytest.mark.parametrize("shape", ["houlsby", "pfeiffer", "parallel"])
@pytest.mark.parametrize(("family", "task"), [("bert", "SEQ_CLS"), ("gpt2", "CAUSAL_LM")])
def test_layers_tell_their_sizes_and_random_starts_change_something(family, task, shape):
    plain = logits(make_model(family, AUTO[task]), task)
    tuned = peft.get_peft_model(
        make_model(family, AUTO[task]), config(family, task, shape, init_weights=False)
    )
    assert not torch.allclose(logits(tuned.eval(), task), plain, atol=1e-3)
    for layer in tuned.modules():
        if isinstance(layer, BottleneckLayer):
            assert layer.in_features == layer.out_features == 16


AUTO = {"SEQ_CLS": AutoModelForSequenceClassification, "CAUSAL_LM": AutoModelForCausalLM}


@pytest.mark.parametrize("shape", ["houlsby", "pfeiffer", "parallel"])
@pytest.mark.parametrize(
    ("family", "task"), [("bert", "SEQ_CLS"), ("llama", "CAUSAL_LM"), ("t5", "SEQ_2_SEQ_LM")]
)
@torch.no_grad()
def test_each_row_goes_through_the_adapter_it_names(family, task, shape):
    model = adapted(family, task, shape)
    model.add_adapter("second", config(family, task, shape))
    shake(model, "second").eval()
    wanted = {}
    for name in ("default", "second"):
        model.set_adapter(name)
        wanted[name] = logits(model, task, IDS)
    with model.disable_adapter():
        wanted["__base__"] = logits(model, task, IDS)
    more = {"decoder_input_ids": IDS[:, :4], "use_cache": False} if task == "SEQ_2_SEQ_LM" else {}
    mixed = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), adapter_names=NAMED, **more)["logits"]
    for row, name in enumerate(NAMED):
        assert same(mixed[row], wanted[name][row]), name
    with pytest.raises(ValueError, match="no adapter 'third'"):
        model(input_ids=IDS, adapter_names=["third"] * 4, **more)
    with pytest.raises(ValueError, match="inference"):
        model.train()(input_ids=IDS, adapter_names=NAMED, **more)


def test_a_widened_feed_forward_says_that_rows_cannot_differ():
    model = adapted("bart", "SEQ_2_SEQ_LM", "parallel")
    with pytest.raises(ValueError, match="one adapter for all rows"):
        model(input_ids=IDS, decoder_input_ids=IDS, adapter_names=["default"] * 4)


@torch.no_grad()
def test_rows_of_bitfit_go_through_the_adapter_they_name():
    def made() -> BitFitConfig:
        return BitFitConfig(task_type="SEQ_CLS", modules_to_save=["classifier"], init_weights=False)

    model = peft.get_peft_model(make_model("bert", AutoModelForSequenceClassification), made())
    model.add_adapter("second", made())
    model.eval()
    wanted = {}
    for name in ("default", "second"):
        model.set_adapter(name)
        wanted[name] = logits(model, "SEQ_CLS", IDS)
    with model.disable_adapter():
        wanted["__base__"] = logits(model, "SEQ_CLS", IDS)
    mixed = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), adapter_names=NAMED)["logits"]
    for row, name in enumerate(NAMED):
        assert same(mixed[row], wanted[name][row]), name


def test_bitfit_leaves_a_pooler_alone_that_feeds_no_head():
    def names(auto: type) -> set[str]:
        model = peft.get_peft_model(make_model("bert", auto), BitFitConfig())
        return {name for name, layer in model.named_modules() if isinstance(layer, BitFitLayer)}

    assert not any("pooler" in name for name in names(AutoModel))
    assert any("pooler" in name for name in names(AutoModelForSequenceClassification))
