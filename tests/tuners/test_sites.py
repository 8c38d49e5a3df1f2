"""Every row of the table of sites, on a tiny model of that architecture."""

from __future__ import annotations

import pytest
import torch
from bounds import near
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoConfig, AutoModel, BloomConfig, BloomModel, PreTrainedConfig

from finetune.tuners import BottleneckConfig
from finetune.tuners.bottleneck.layer import ParallelOutput
from finetune.tuners.bottleneck.sites import SITES, parallel_kind, targets

# what the architectures call their sizes
SMALL = (
    dict.fromkeys(["hidden_size", "d_model", "n_embd", "dim", "embedding_size", "word_embed_proj_dim"], 16)
    | dict.fromkeys(
        [
            "intermediate_size",
            "d_ff",
            "hidden_dim",
            "encoder_ffn_dim",
            "decoder_ffn_dim",
            "ffn_dim",
            "n_inner",
        ],
        32,
    )
    | dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"], 2)
    | dict.fromkeys(["encoder_layers", "decoder_layers"], 2)
    | dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads"], 2)
    | dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], 2)
    | dict.fromkeys(["head_dim", "d_kv"], 8)
    | {
        "rotary_dim": 4,
        "attention_types": [[["global", "local"], 1]],
        "attention_layers": ["global", "local"],
    }
    | {
        "vocab_size": 40,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 0,
        "sep_token_id": 2,
    }
    | {"cls_token_id": 1, "max_position_embeddings": 64, "n_positions": 64, "image_size": 8, "patch_size": 4}
    | {"num_mel_bins": 16, "max_length": 32, "max_source_positions": 16, "num_conv_pos_embeddings": 8}
    | {"conv_dim": [16, 16], "conv_kernel": [3, 3], "conv_stride": [2, 2], "num_feat_extract_layers": 2}
    | {"num_conv_pos_embedding_groups": 2}
)


def small(model_type: str) -> PreTrainedConfig:
    names = AutoConfig.for_model(model_type).to_dict()
    return AutoConfig.for_model(model_type, **{name: value for name, value in SMALL.items() if name in names})


def inputs(config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[5, 6, 7, 8, 2]])
    if config.model_type in ("vit", "deit", "dinov2"):
        return {"pixel_values": torch.randn(1, 3, 8, 8)}
    if config.model_type == "patchtst":
        return {"past_values": torch.randn(1, config.context_length, config.num_input_channels)}
    if config.model_type == "audio-spectrogram-transformer":
        return {"input_values": torch.randn(1, 32, 16)}
    if config.model_type in ("wav2vec2", "hubert"):
        return {"input_values": torch.randn(1, 64)}
    start = (
        {"input_features": torch.randn(1, 16, 32)} if config.model_type == "whisper" else {"input_ids": ids}
    )
    return start | ({"decoder_input_ids": ids} if config.is_encoder_decoder else {})


def sub_layers(config: PreTrainedConfig) -> dict[str, int]:
    """How many modules each shape should adapt; a layer of two modules beside an inline feed-forward counts
    twice."""
    layers, attentions = (4, 4) if config.is_encoder_decoder else (2, 2)
    if config.model_type == "albert":
        layers = attentions = 1  # all layers share their weights
    return {
        "houlsby": attentions + layers,
        "pfeiffer": layers,
        "parallel": layers * len(SITES[config.model_type].parallel),
    }


@pytest.mark.parametrize("model_type", SITES)
def test_every_architecture_takes_every_shape(model_type):
    config = small(model_type)
    batch = inputs(config)
    model = AutoModel.from_config(config).eval()
    with torch.no_grad():
        plain = model(**batch).last_hidden_state
    for shape, count in sub_layers(config).items():
        tuned = get_peft_model(model, BottleneckConfig(shape=shape, reduction_factor=4)).eval()
        assert sum(isinstance(module, BaseTunerLayer) for module in tuned.modules()) == count
        with torch.no_grad():
            assert near(tuned(**batch).last_hidden_state, plain)
            for parameter in tuned.parameters():
                if parameter.requires_grad:
                    torch.nn.init.normal_(parameter)
            assert not near(tuned(**batch).last_hidden_state, plain, 1e-3)
        model = tuned.unload()


@pytest.mark.parametrize(
    "model_type", [name for name, sites in SITES.items() if ParallelOutput in sites.parallel.values()]
)
def test_the_residual_of_berts_kin_is_the_feed_forwards_input(model_type):
    config = small(model_type)
    model = AutoModel.from_config(config).eval()
    seen = {}
    layer = model.get_submodule("encoder.layer.1")
    layer.intermediate.register_forward_hook(lambda _, given, __: seen.update(read=given[0]))
    layer.output.register_forward_hook(
        lambda _, given, output: seen.update(inner=given[0], residual=given[1], output=output)
    )
    model(**inputs(config))
    assert seen["read"] is seen["residual"]
    by_hand = layer.output.LayerNorm(layer.output.dense(seen["inner"]) + seen["residual"])
    assert near(seen["output"], by_hand)


def test_a_module_the_table_does_not_know_is_a_whole_feed_forward():
    assert parallel_kind("bart", "model.encoder.layers.0.fc1").__name__ == "WideIn"
    assert parallel_kind("bert", "encoder.layer.0.output").__name__ == "ParallelOutput"
    assert parallel_kind("bert", "encoder.layer.0.attention.output").__name__ == "Parallel"
    assert parallel_kind("bloom", "h.0.mlp").__name__ == "Parallel"


def test_the_names_of_bert():
    assert (
        targets({"model_type": "bert"}, BottleneckConfig(shape="pfeiffer"))
        == r"(.*\.)?(\d+\.output\.LayerNorm)"
    )


def test_an_unknown_architecture_needs_names():
    def bloom() -> BloomModel:
        return BloomModel(BloomConfig(hidden_size=16, n_layer=2, n_head=2, vocab_size=20)).eval()

    with pytest.raises(ValueError, match=r"'bloom'.*target_modules in --method_kwargs"):
        get_peft_model(bloom(), BottleneckConfig())
    options = BottleneckConfig(reduction_factor=4, target_modules=["mlp.dense_4h_to_h"])
    model = get_peft_model(bloom(), options)
    assert sum(isinstance(m, BaseTunerLayer) for m in model.modules()) == 2
