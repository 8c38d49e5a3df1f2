"""A checkpoint of AdapterHub's library (adapters 1.x) → a folder that PEFT and this project load. Knows both
layouts; of models, whether a head is its base's own.

Taken are bottleneck adapters in their three published shapes, LoRA, IA3, and heads for classes and tags. What
can't be said in this project's terms is refused by its name: another formula under the same name would be
another model.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.activations import ACT2FN

from finetune.adapters.adapterhub_heads import (
    Head,
    left_alone,
    read_head,
    read_theirs,
    want_shapes,
    want_words,
)
from finetune.adapters.loading import MODELS, quietly
from finetune.adapters.weights import PREFIX
from finetune.artefacts.bounds import LARGEST, read_json
from finetune.artefacts.files import write_atomically
from finetune.artefacts.folder import LABELS_FILE
from finetune.artefacts.passport import CONFIG, WEIGHTS
from finetune.errors import InputError
from finetune.models.names import resolve

THEIRS = "adapter.safetensors"
ACTIVATIONS = {"gelu_orig": "gelu", "leakyrelu": "leaky_relu"}
# where a family's blocks for bottlenecks lie → our module: behind attention, behind the feed-forward
# (houlsby), where its residual is added (pfeiffer), beside it (parallel, where it reads what theirs reads)
BERT = {
    "attention.output": ("attention.output.dense", None, None),
    "output": ("output.dense", "output.LayerNorm", "output"),
}
PLACES: dict[str, dict[str, tuple[str, str | None, str | None]]] = {
    "bert": BERT, "roberta": BERT, "xlm-roberta": BERT, "camembert": BERT, "electra": BERT,
    "gpt2": {"attention_adapters": ("attn.c_proj", None, None), "output_adapters": ("mlp.c_proj", "", None)},
    "llama": {"attention_adapters": ("self_attn.o_proj", None, None), "output_adapters": ("mlp.down_proj",
    "", None)},
    "mistral": {"attention_adapters": ("self_attn.o_proj", None, None), "output_adapters": ("mlp.down_proj",
    "", None)},
    "bart": {
        "attention_adapters": ("self_attn.out_proj", None, None), "output_adapters": ("fc2",
        "final_layer_norm", None),
        "cross_attention_adapters": ("encoder_attn.out_proj", "encoder_attn_layer_norm", None),
    },
    # A block's parts are numbered; the feed-forward is the encoder's second and the decoder's third.
    "t5": {
        "layer.0": ("layer.0.SelfAttention.o", None, None),
        "layer.1": ("layer.1.DenseReluDense.wo", "layer.1", None),
        "layer.2": ("layer.2.DenseReluDense.wo", "layer.2", None),
    },
}  # fmt: skip
# what a decoder has at a place where its encoder has something else: attention to the encoder
DECODERS = {"t5": {"layer.1": ("layer.1.EncDecAttention.o", "layer.1", None)}}
CROSSING = ("bart", "t5")
Converter = Callable[
    [Path, dict[str, Any], dict[str, Tensor]], tuple[dict[str, Any], dict[str, Tensor]]
]  # source, configuration, tensors → ours
WORDS: dict[str | None, dict[str, Any]] = {
    None: {"mh_adapter": bool, "output_adapter": bool, "non_linearity": str},
    "lora": {"r": int, "alpha": (int, float), "attn_matrices": list},
}
# why methods that have a name here too are others
REFUSED = {
    "prompt_tuning": (
        "whose made-up tokens enter behind the embeddings' positions and norm, where PEFT's enter before "
        "them, and read padding"
    ),
}
# options that change the formula, with the one value that ours is
FORMULA = {
    "ln_before": False, "ln_after": False, "use_gating": False, "phm_layer": False, "inv_adapter": None,
    "residual_before_ln": True, "adapter_residual_before_ln": False, "original_ln_after": True,
    "stochastic_depth": 0.0,
}  # fmt: skip


def convert(source: str | Path, folder: str | Path, base: str | None = None, heads: bool = True) -> list[str]:
    """Write the folder; gives back what was taken, in lines.

    Args:
        base: the base's name, where the checkpoint doesn't say it.
        heads: take its head along, where it has one.

    Raises:
        InputError: no such checkpoint, or one that can't be said in this project's terms.
    """
    source, folder = Path(source), Path(folder)
    # Theirs and PEFT's configuration have one file name; the keys below tell them apart.
    said = read_json(source / CONFIG) if (source / CONFIG).is_file() else None
    if not isinstance(said, dict) or "model_type" not in said or not isinstance(said.get("config"), dict):
        raise InputError(f"{source} is no checkpoint of AdapterHub's library; wanted its adapter_config.json")
    name = base or said.get("model_name")
    if not name:
        raise InputError(f"{source} does not say which base it belongs on; set --base")
    want_words(source / CONFIG, said, {"model_type": str, "name": str, "hidden_size": int})
    config, weights = _kind(source, said["config"])(source, said, read_theirs(source / THEIRS))
    # Before anything is written.
    found = read_head(source, said["model_type"], said["hidden_size"]) if heads else ({}, {}, [])
    head, more, labels, told = kept_head(source, name, found)
    config |= {"base_model_name_or_path": name, "inference_mode": True} | more
    folder.mkdir(parents=True, exist_ok=True)
    whole = {PREFIX + key: tensor.contiguous() for key, tensor in (weights | head).items()}
    save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})
    write_atomically(folder / CONFIG, json.dumps(config, indent=1))
    if labels:
        write_atomically(folder / LABELS_FILE, json.dumps(labels, ensure_ascii=False))
    # Their folder may lack a tokenizer; ours then takes the base's.
    for file in source.glob("tokenizer*"):
        shutil.copy2(file, folder / file.name)
    kind = config.get("shape") or config["peft_type"].lower()
    return [f"{source}: {kind} on {len(config['target_modules'])} modules of '{name}'"] + (
        [f"head for {len(labels)} labels: {', '.join(labels)}"] if labels else told
    )


def kept_head(
    source: Path, base: str, found: Head
) -> tuple[dict[str, Tensor], dict[str, Any], list[str], list[str]]:
    """The head, without one over the vocabulary that is the base's own; and a line on what became of that.

    Raises:
        InputError: a part of it that PEFT can't hold differs from the base's.
    """
    head, config, labels = found
    saved = {key for key in head if key.startswith("lm_head")}
    if not saved:
        return head, config, labels, []
    theirs = _of_base(base, config["task_type"])
    differ = [key for key, tensor in head.items() if theirs is None or _unlike(tensor, theirs.get(key))]
    # BART's shift of its logits is a buffer, and zero in a base that isn't there to be asked.
    lost = [key for key in differ if key not in saved and (theirs is not None or bool(head[key].any()))]
    if lost:
        raise InputError(
            f"{source} has a '{lost[0]}' that differs from '{base}', and an adapter has no place for it; "
            f"{left_alone(source)}"
        )
    if saved & set(differ):
        why = "is not at hand to compare" if theirs is None else "has another"
        return {key: head[key] for key in saved}, config, labels, [f"its lm_head is kept: '{base}' {why}"]
    return {}, {"task_type": config["task_type"]}, labels, [f"its lm_head is that of '{base}'"]


def _unlike(tensor: Tensor, other: Tensor | None) -> bool:
    return other is None or other.shape != tensor.shape or not torch.equal(other.to(tensor), tensor)


def _of_base(base: str, task: str) -> dict[str, Tensor] | None:
    """Weights of the base, or None where it doesn't lie here: a hub is not asked for gigabytes to compare."""
    source, further = resolve(base)
    if not Path(source).is_dir():
        return None
    try:
        with quietly():
            return dict(MODELS[task].from_pretrained(source, **further).state_dict())
    except (OSError, ValueError):
        return None


def _kind(source: Path, settings: dict[str, Any]) -> Converter:
    kind = settings.get("architecture")
    if kind in ("lora", None):
        # Words without which the formula isn't known.
        want_words(source / CONFIG, settings, WORDS[kind])
    if kind == "lora":
        return _ia3 if settings.get("composition_mode", "add") == "scale" else _lora
    if kind is not None:
        why = REFUSED.get(str(kind), "which is not converted")
        raise InputError(f"{source} holds {kind}, {why}; train it anew here")
    return _bottleneck


def _bottleneck(
    source: Path, said: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    settings, family = said["config"], said["model_type"]
    # Only what differs from our formula: options that theirs has gained since may stand at their defaults.
    other = [
        f"{key}={settings[key]!r}" for key, value in FORMULA.items() if settings.get(key, value) != value
    ]
    if settings.get("cross_adapter") and family not in CROSSING:
        other.append("cross_adapter=True")
    # A learnt scaling stands there as a word.
    if other or not isinstance(settings.get("scaling", 1.0), float):
        raise InputError(f"{source} has {', '.join(other) or 'a learnt scaling'}, which is not built here")
    if family not in PLACES:
        raise InputError(f"{source} is for '{family}'; bottlenecks are converted for: {', '.join(PLACES)}")
    shape = _shape(source, settings)
    # Another name's weights would stand in the place of its own.
    name = re.escape(str(said["name"]))
    weights: dict[str, Tensor] = {}
    modules = set()
    for key, tensor in tensors.items():
        match = re.fullmatch(rf"(.+)\.adapters\.{name}\.adapter_(down\.0|up)\.(weight|bias)", key)
        if match is None:
            if key.startswith("heads."):
                continue
            raise InputError(f"{source} also holds '{key}', which is not built here")
        block, part, kind = match.groups()
        module = find_module(source, family, shape, block)
        modules.add(module)
        weights[f"{module}.bottleneck_{part.removesuffix('.0')}.{kind}"] = tensor
    factor, width = _factor(source, settings), said["hidden_size"]
    if not modules:
        raise InputError(f"{source} holds no weight of an adapter '{said['name']}'")
    units = width // factor
    for module in sorted(modules):
        down, up = f"{module}.bottleneck_down", f"{module}.bottleneck_up"
        wanted = {f"{down}.weight": (units, width), f"{down}.bias": (units,)}
        want_shapes(source, weights, wanted | {f"{up}.weight": (width, units), f"{up}.bias": (width,)})
    return {
        "peft_type": "BOTTLENECK", "shape": shape, "reduction_factor": factor,
        "non_linearity": _activation(source, settings),
        # Ours writes None where the shape decides.
        "scaling": settings.get("scaling", 1.0), "original_ln_before": True if shape == "pfeiffer" else None,
        "dropout": settings.get("dropout", 0.0), "target_modules": sorted(modules),
    }, weights  # fmt: skip


def _shape(source: Path, settings: dict[str, Any]) -> str:
    # Which blocks have an adapter, and whether it reads behind the norm: the three shapes differ in these.
    normed = bool(settings.get("original_ln_before", False))
    sites = (settings["mh_adapter"], settings["output_adapter"], normed)
    if settings.get("is_parallel") and sites[:2] == (False, True):
        return "parallel"
    shapes = {(True, True, False): "houlsby", (False, True, True): "pfeiffer"}
    if settings.get("is_parallel") or sites not in shapes:
        raise InputError(f"{source} is none of houlsby, pfeiffer and parallel, and not built here")
    return shapes[sites]


def _activation(source: Path, settings: dict[str, Any]) -> str:
    name = str(settings["non_linearity"]).lower()
    name = ACTIVATIONS.get(name, name)
    if name not in ACT2FN:
        raise InputError(f"{source} has the non_linearity '{name}', which transformers does not have")
    return name


def _factor(source: Path, settings: dict[str, Any]) -> int:
    factor = settings.get("reduction_factor")
    # A mapping gives each layer a factor of its own.
    if not isinstance(factor, (int, float)) or not 1 <= factor < LARGEST or factor != int(factor):
        raise InputError(
            f"{source} has the reduction_factor {factor!r}; wanted one whole number for all layers"
        )
    return int(factor)


def find_module(source: Path, family: str, shape: str, block: str) -> str:
    """Our module for a block of theirs.

    Raises:
        InputError: there is none.
    """
    # T5's model with their heads holds the one that is bare here.
    block = block.removeprefix("transformer.") if family == "t5" else block
    here = PLACES[family] | (DECODERS.get(family, {}) if block.startswith("decoder.") else {})
    # The longest ending first: "output" is the end of "attention.output" too.
    for ending, places in sorted(here.items(), key=lambda item: -len(item[0])):
        if block.endswith(f".{ending}"):
            own = places[("houlsby", "pfeiffer", "parallel").index(shape)]
            if own is None:
                raise InputError(
                    f"{source}: in '{family}' their parallel adapter reads the feed-forward's input before "
                    "its norm or elsewhere than ours; it is not converted"
                )
            return f"{block.removesuffix(ending)}{own}".rstrip(".")
    raise InputError(f"{source} has a block at '{block}', which is not built here")


def _lora(
    source: Path, said: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    settings = said["config"]
    if settings.get("use_dora"):
        raise InputError(f"{source} is DoRA under LoRA's name, which is not converted")
    parts = _factors(source, said, tensors, "AB")
    rank = settings["r"]
    weights: dict[str, Any] = {}
    ranks: dict[str, int] = {}
    for module, both in parts.items():
        down, up = both["A"], both["B"]
        if up.shape[1] != rank or len(down) % rank:
            raise InputError(
                f"{source} holds {tuple(down.shape)} and {tuple(up.shape)} for '{module}'; wanted rank {rank}"
            )
        if (
            len(down) != up.shape[1]
        ):  # one layer for query, key and value, of which some have factors of their own
            up = _beside(source, settings, down, up)
        ranks[module] = len(down)
        weights |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    # Their scaling is alpha over the rank asked for, also where factors stand side by side.
    most, scale = max(ranks.values()), settings["alpha"] / rank
    fewer = {module: own for module, own in ranks.items() if own != most}
    return {
        "peft_type": "LORA", "r": most, "lora_alpha": most * scale, "target_modules": sorted(ranks),
        "bias": "none",
        "rank_pattern": fewer, "alpha_pattern": {module: own * scale for module, own in fewer.items()},
        # GPT-2's layers keep weights the other way round.
        "fan_in_fan_out": said["model_type"] == "gpt2", "lora_dropout": settings.get("dropout", 0.0),
    }, weights  # fmt: skip


def _factors(
    source: Path, said: dict[str, Any], tensors: dict[str, Tensor], wanted: str
) -> dict[str, dict[str, Tensor]]:
    """Module → its A and B, of which IA3 has B alone."""
    settings, name = said["config"], re.escape(str(said["name"]))
    if settings.get("use_gating") or settings.get("vera_d"):
        raise InputError(f"{source} is gated or VeRA under LoRA's name, which is not converted")
    parts: dict[str, dict[str, Tensor]] = {}
    # The adapter's own name stands in each key; ours has one adapter a folder.
    for key, tensor in tensors.items():
        match = re.fullmatch(rf"(.+)\.loras\.{name}\.lora_([AB])", key)
        if match is None and not key.startswith("heads."):
            raise InputError(f"{source} also holds '{key}', which is not built here")
        if match is not None:
            parts.setdefault(match.group(1), {})[match.group(2)] = tensor
    if not parts:
        raise InputError(f"{source} holds no weight of an adapter '{said['name']}'")
    for module, both in parts.items():
        held = {part: tuple(tensor.shape) for part, tensor in sorted(both.items())}
        if set(both) != set(wanted) or any(len(shape) != 2 or 0 in shape for shape in held.values()):
            raise InputError(
                f"{source} holds {held} for '{module}'; wanted a matrix for each of {', '.join(wanted)}"
            )
    return parts


def _ia3(
    source: Path, said: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """IA3: every factor scales what its layer gives, also within the feed-forward, where PEFT's own default
    scales what the last layer reads."""
    settings = said["config"]
    weights, fused = {}, said["model_type"] == "gpt2"
    for module, both in _factors(source, said, tensors, "B").items():
        scale = both["B"].reshape(-1, 1) * float(settings["alpha"])
        if fused and module.endswith("c_attn"):
            scale = _fused_scale(source, settings, scale)
        weights[f"{module}.ia3_l"] = scale
    modules = sorted(name.removesuffix(".ia3_l") for name in weights)
    return {
        "peft_type": "IA3", "target_modules": modules, "feedforward_modules": [], "fan_in_fan_out": fused,
    }, weights  # fmt: skip


def _fused_scale(source: Path, settings: dict[str, Any], scale: Tensor) -> Tensor:
    """Factors of parts of a fused layer for the whole of it: one where a part has none."""
    order = [part for part in ("q", "k", "v") if part in settings["attn_matrices"]]
    if not order or not len(scale) or len(scale) % len(order):
        raise InputError(f"{source} has factors of a fused layer whose parts can't be told apart")
    width = len(scale) // len(order)
    own = dict(zip(order, scale.split(width), strict=True))
    return torch.cat([own.get(part, torch.ones(width, 1)) for part in ("q", "k", "v")])


def _beside(source: Path, settings: dict[str, Any], down: Tensor, up: Tensor) -> Tensor:
    """Factors of parts of a fused layer as one pair: up [3 · width, parts · rank], zero where a part has
    none."""
    order = [part for part in ("q", "k", "v") if part in settings["attn_matrices"]]
    rank = up.shape[1]
    if not order or len(down) != rank * len(order) or len(up) % len(order):
        raise InputError(f"{source} has factors of a fused layer whose parts can't be told apart")
    width = len(up) // len(order)
    # Zeros for parts without factors: the product then changes nothing there.
    whole = torch.zeros(3 * width, len(down), dtype=up.dtype)
    for index, part in enumerate(order):
        row = "qkv".index(part) * width
        own = up[index * width : (index + 1) * width]
        whole[row : row + width, index * rank : (index + 1) * rank] = own
    return whole
