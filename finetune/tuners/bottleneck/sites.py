"""Where bottleneck adapters sit in each architecture. A new architecture is one row. Knows names of modules;
runs nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from finetune.tuners.bottleneck.layer import BottleneckLayer, Parallel, ParallelOutput, WideIn, WideOut


@dataclass(frozen=True)
class Sites:
    """Module names of one architecture, as regular expressions for their endings.

    Attributes:
        attention: linear layers that end an attention, self or cross.
        feed_forward: linear layers that end a feed-forward.
        parallel: what holds an adapter beside the feed-forward, and how.
        activation: the config's name of the feed-forward's activation, where a parallel adapter shares it.
    """

    attention: str
    feed_forward: str
    parallel: dict[str, type[BottleneckLayer]] = field(default_factory=dict)
    activation: str | None = None


BERT = Sites(
    r"(attention|crossattention)\.output\.dense", r"\d+\.output\.dense", {r"\d+\.output": ParallelOutput}
)
LLAMA = Sites(r"self_attn\.o_proj", r"mlp\.down_proj", {"mlp": Parallel})
T5 = Sites(r"(SelfAttention|EncDecAttention)\.o", r"DenseReluDense\.wo", {"DenseReluDense": Parallel})
BART = Sites(
    r"(self_attn|encoder_attn)\.out_proj", "fc2", {"fc1": WideIn, "fc2": WideOut}, "activation_function"
)

VIT = Sites(r"attention\.o_proj", r"mlp\.fc2", {"mlp": Parallel})
WAV2VEC2 = Sites(r"attention\.out_proj", r"feed_forward\.output_dense", {"feed_forward": Parallel})

SITES: dict[str, Sites] = {
    "albert": Sites(
        r"attention\.dense", "ffn_output", {r"\d+\.ffn": WideIn, "ffn_output": WideOut}, "hidden_act"
    ),
    "audio-spectrogram-transformer": VIT,
    "bart": BART,
    "bert": BERT,
    "blenderbot": BART,
    "camembert": BERT,
    "deberta": BERT,
    "deberta-v2": BERT,
    "deit": VIT,
    "dinov2": VIT,
    "distilbert": Sites(r"attention\.out_lin", r"ffn\.lin2", {"ffn": Parallel}),
    "electra": BERT,
    "gemma": LLAMA,
    "gemma2": LLAMA,
    "gemma3_text": LLAMA,
    "gpt2": Sites(r"(attn|crossattention)\.c_proj", r"mlp\.c_proj", {"mlp": Parallel}),
    "gpt_neo": Sites(r"attn\.attention\.out_proj", r"mlp\.c_proj", {"mlp": Parallel}),
    "gpt_neox": Sites(r"attention\.dense", r"mlp\.dense_4h_to_h", {"mlp": Parallel}),
    "gptj": Sites(r"attn\.out_proj", r"mlp\.fc_out", {"mlp": Parallel}),
    "granite": LLAMA,
    "hubert": WAV2VEC2,
    "llama": LLAMA,
    "m2m_100": BART,
    "marian": BART,
    "mbart": BART,
    "mistral": LLAMA,
    "modernbert": Sites(r"attn\.Wo", r"mlp\.Wo", {"mlp": Parallel}),
    "mpnet": Sites(r"attention\.attn\.o", r"\d+\.output\.dense", {r"\d+\.output": ParallelOutput}),
    "mt5": T5,
    "olmo": LLAMA,
    "olmo2": LLAMA,
    "opt": Sites(r"self_attn\.out_proj", "fc2", {"fc1": WideIn, "fc2": WideOut}, "activation_function"),
    "pegasus": BART,
    "phi3": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "roberta": BERT,
    "smollm3": LLAMA,
    "t5": T5,
    "umt5": T5,
    "vit": VIT,
    "wav2vec2": WAV2VEC2,
    "whisper": BART,
    "xlm-roberta": BERT,
}


def targets(model_type: str, shape: str) -> str:
    """One regular expression for the whole names of the modules to adapt.

    Raises:
        ValueError: the architecture isn't in the table.
    """
    if model_type not in SITES:
        raise ValueError(
            f"Where a '{shape}' adapter sits in the architecture '{model_type}' is unknown (known: "
            f"{', '.join(SITES)}). "
            'Name the modules as target_modules in --method_kwargs, for example {"target_modules": '
            '["mlp.down_proj"]}.'
        )
    sites = SITES[model_type]
    endings = {
        "houlsby": [sites.attention, sites.feed_forward],
        "pfeiffer": [sites.feed_forward],
        "parallel": list(sites.parallel),
    }[shape]
    return rf"(.*\.)?({'|'.join(endings)})"


def parallel_kind(model_type: str, name: str) -> type[BottleneckLayer]:
    """How a module of that name holds a parallel adapter; a module the table doesn't know counts as a whole
    feed-forward."""
    if model_type in SITES:
        for ending, kind in SITES[model_type].parallel.items():
            if re.fullmatch(rf"(.*\.)?{ending}", name):
                return kind
    return Parallel
