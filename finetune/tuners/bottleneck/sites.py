"""Where bottleneck adapters sit in each architecture. A new architecture is one row. Knows names of modules;
runs nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from finetune.tuners.bottleneck.config import BottleneckConfig
from finetune.tuners.bottleneck.layer import (
    AfterLayer,
    AfterNorm,
    BottleneckLayer,
    Parallel,
    ParallelOutput,
    Sequential,
    WideIn,
    WideOut,
    is_norm,
)


@dataclass(frozen=True)
class Sites:
    """Module names of one architecture, as regular expressions for their endings.

    Attributes:
        attention: linear layers that end an attention of a text to itself.
        feed_forward: linear layers that end a feed-forward.
        parallel: what holds an adapter beside the feed-forward, and how.
        output: where the feed-forward's output has its residual: the norm that follows it, or the layer that
            ends with it where a sub-layer's input is normed.
        normed_first: an entry of the configuration, and the output's place where it is set.
        cross: linear layers that end an attention to an encoder.
        activation: the config's name of the feed-forward's activation, where a parallel adapter shares it.
    """

    attention: str
    feed_forward: str
    parallel: dict[str, type[BottleneckLayer]] = field(default_factory=dict)
    activation: str | None = None
    output: str = r"layers\.\d+"
    normed_first: tuple[str, str] | None = None
    cross: str | None = None


BERT = Sites(
    r"attention\.output\.dense", r"\d+\.output\.dense", {r"\d+\.output": ParallelOutput},
    output=r"\d+\.output\.LayerNorm", cross=r"crossattention\.output\.dense",
)  # fmt: skip
LLAMA = Sites(r"self_attn\.o_proj", r"mlp\.down_proj", {"mlp": Parallel})
T5 = Sites(
    # Block 1 of an encoder's layer is its feed-forward, block 2 of a decoder's: cross-attention is between.
    r"SelfAttention\.o", r"DenseReluDense\.wo", {"DenseReluDense": Parallel}, cross=r"EncDecAttention\.o",
    output=r"encoder\.block\.\d+\.layer\.1|decoder\.block\.\d+\.layer\.2",
)  # fmt: skip
WIDE: dict[str, type[BottleneckLayer]] = {"fc1": WideIn, "fc2": WideOut}
BART = Sites(
    r"self_attn\.out_proj", "fc2", WIDE, "activation_function", output="final_layer_norm",
    cross=r"encoder_attn\.out_proj",
)  # fmt: skip
# mBART and its kin norm a sub-layer's input, BART its output.
MBART = replace(BART, output=r"layers\.\d+")
GPT2 = Sites(
    r"attn\.c_proj", r"mlp\.c_proj", {"mlp": Parallel}, output=r"h\.\d+", cross=r"crossattention\.c_proj"
)
VIT = Sites(r"attention\.o_proj", r"mlp\.fc2", {"mlp": Parallel}, output=r"layers?\.\d+")
WAV2VEC2 = Sites(
    r"attention\.out_proj", r"feed_forward\.output_dense", {"feed_forward": Parallel},
    output="final_layer_norm",
    normed_first=("do_stable_layer_norm", r"layers\.\d+"),
)  # fmt: skip

SITES: dict[str, Sites] = {
    "albert": Sites(
        r"attention\.dense", "ffn_output", {r"\d+\.ffn": WideIn, "ffn_output": WideOut}, "hidden_act",
        output="full_layer_layer_norm",
    ),
    "audio-spectrogram-transformer": VIT,
    "bart": BART,
    "bert": BERT,
    "blenderbot": MBART,
    "camembert": BERT,
    "deberta": BERT,
    "deberta-v2": BERT,
    "deit": VIT,
    "dinov2": VIT,
    "distilbert": Sites(
        r"attention\.out_lin", r"ffn\.lin2", {"ffn": Parallel}, output="output_layer_norm"
    ),
    "electra": BERT,
    "gemma": LLAMA,
    "gemma2": LLAMA,
    "gemma3_text": LLAMA,
    "gpt2": GPT2,
    "gpt_neo": Sites(r"attn\.attention\.out_proj", r"mlp\.c_proj", {"mlp": Parallel}, output=r"h\.\d+"),
    "gpt_neox": Sites(r"attention\.dense", r"mlp\.dense_4h_to_h", {"mlp": Parallel}),
    "gptj": Sites(r"attn\.out_proj", r"mlp\.fc_out", {"mlp": Parallel}, output=r"h\.\d+"),
    "granite": LLAMA,
    "hubert": WAV2VEC2,
    "llama": LLAMA,
    "m2m_100": MBART,
    "marian": BART,
    "mbart": MBART,
    "mistral": LLAMA,
    "modernbert": Sites(r"attn\.Wo", r"mlp\.Wo", {"mlp": Parallel}),
    "mpnet": Sites(
        r"attention\.attn\.o", r"\d+\.output\.dense", {r"\d+\.output": ParallelOutput},
        output=r"\d+\.output\.LayerNorm",
    ),
    "mt5": T5,
    "olmo": LLAMA,
    "olmo2": LLAMA,
    "opt": Sites(
        r"self_attn\.out_proj", "fc2", WIDE, "activation_function", output="final_layer_norm",
        normed_first=("do_layer_norm_before", r"layers\.\d+"),
    ),
    # Its feed-forward is a plain sequence, of which number 3 is the last layer.
    "patchtst": Sites(
        r"self_attn\.out_proj", r"ff\.3", {"ff": Parallel}, output="norm_sublayer3",
        normed_first=("pre_norm", r"layers\.\d+"),
    ),
    "pegasus": MBART,
    "phi3": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "roberta": BERT,
    "smollm3": LLAMA,
    "t5": T5,
    "umt5": T5,
    "vit": VIT,
    "wav2vec2": WAV2VEC2,
    "whisper": MBART,
    "xlm-roberta": BERT,
}  # fmt: skip


def targets(model_config: dict[str, Any], config: BottleneckConfig) -> str:
    """One regular expression for the whole names of the modules to adapt.

    Raises:
        ValueError: the architecture isn't in the table.
    """
    model_type = model_config["model_type"]
    if model_type not in SITES:
        raise ValueError(
            f"Where a '{config.shape}' adapter sits in the architecture '{model_type}' is unknown (known: "
            f"{', '.join(SITES)}). Name the modules as target_modules in --method_kwargs, for example "
            '{"target_modules": ["mlp.down_proj"]}.'
        )
    sites = SITES[model_type]
    cross = [sites.cross] if config.cross_attention and sites.cross else []
    endings = {
        "houlsby": [sites.attention, *cross, sites.feed_forward],
        "pfeiffer": [
            sites.feed_forward if config.original_ln_before is False else output(sites, model_config)
        ],
        "parallel": list(sites.parallel),
    }[config.shape]
    # Whole names, or an ending would match within a longer one.
    return rf"(.*\.)?({'|'.join(endings)})"


def output(sites: Sites, model_config: dict[str, Any]) -> str:
    """Where a feed-forward's output has its residual, in a model of this configuration."""
    entry, normed_first = sites.normed_first or ("", "")
    return normed_first if model_config.get(entry) else sites.output


def site_kind(shape: str, model_type: str, name: str, module: nn.Module) -> type[BottleneckLayer]:
    """How a module of that name holds an adapter of a shape."""
    if shape == "parallel":
        return parallel_kind(model_type, name)
    if isinstance(module, (nn.Linear, Conv1D)):
        return Sequential
    return AfterNorm if is_norm(module) else AfterLayer


def parallel_kind(model_type: str, name: str) -> type[BottleneckLayer]:
    """How a module of that name holds a parallel adapter; a module the table doesn't know counts as a whole
    feed-forward."""
    if model_type in SITES:
        for ending, kind in SITES[model_type].parallel.items():
            if re.fullmatch(rf"(.*\.)?{ending}", name):
                return kind
    return Parallel
