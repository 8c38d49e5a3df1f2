"""A checkpoint of AdapterHub's library (adapters 1.x) → a folder that PEFT and this project load. Knows both
layouts; knows no models.

Taken are bottleneck adapters in their three published shapes, LoRA, IA3, and heads for classes and tags. What
can't be said in this project's terms is refused by its name: another formula under the same name would be
another model.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from finetune.adapters.weights import PREFIX
from finetune.artefacts.bounds import read_json
from finetune.artefacts.files import write_atomically
from finetune.artefacts.folder import LABELS_FILE
from finetune.artefacts.passport import CONFIG, WEIGHTS
from finetune.errors import InputError

FUSION = "adapter_fusion_config.json"
THEIRS, THEIR_HEAD = "adapter.safetensors", "model_head.safetensors"
# what the base's own head writes; an encoder without head gives vectors
WRITES = {"gpt2": "CAUSAL_LM", "llama": "CAUSAL_LM", "mistral": "CAUSAL_LM", "bart": "SEQ_2_SEQ_LM",
          "t5": "SEQ_2_SEQ_LM"}  # fmt: skip
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
    },
    # A block's parts are numbered; the feed-forward is the encoder's second and the decoder's third.
    "t5": {
        "layer.0": ("layer.0.SelfAttention.o", None, None),
        "layer.1": ("layer.1.DenseReluDense.wo", "layer.1", None),
        "layer.2": ("layer.2.DenseReluDense.wo", "layer.2", None),
    },
}  # fmt: skip
# options that change the formula, with the one value that ours is
FORMULA = {
    "ln_before": False, "ln_after": False, "use_gating": False, "phm_layer": False, "inv_adapter": None,
    "residual_before_ln": True, "adapter_residual_before_ln": False, "original_ln_after": True,
    "stochastic_depth": 0.0, "cross_adapter": False,
}  # fmt: skip


def convert(source: str | Path, folder: str | Path, base: str | None = None) -> list[str]:
    """Write the folder; gives back what was taken, in lines.

    Args:
        base: the base's name, where the checkpoint doesn't say it.

    Raises:
        InputError: no such checkpoint, or one that can't be said in this project's terms.
    """
    source, folder = Path(source), Path(folder)
    if (source / FUSION).is_file():
        raise InputError(
            f"{source} is an AdapterFusion, whose queries have biases that fusion here has not; take in its "
            "adapters one by one, and fuse them anew by scripts/fuse.py"
        )
    # Theirs and PEFT's configuration have one file name; the keys below tell them apart.
    said = read_json(source / CONFIG) if (source / CONFIG).is_file() else None
    if not isinstance(said, dict) or "model_type" not in said or not isinstance(said.get("config"), dict):
        raise InputError(f"{source} is no checkpoint of AdapterHub's library; wanted its adapter_config.json")
    name = base or said.get("model_name")
    if not name:
        raise InputError(f"{source} does not say which base it belongs on; set --base")
    tensors, settings = _read(source / THEIRS), said["config"]
    if settings.get("architecture") == "lora":
        scaled = settings.get("composition_mode", "add") == "scale"
        config, weights = (_ia3 if scaled else _lora)(source, said, tensors)
    elif settings.get("architecture") is None:
        config, weights = _bottleneck(source, said, tensors)
    else:
        raise InputError(
            f"{source} holds {settings['architecture']}, which is not converted; train it anew here"
        )
    # Before anything is written.
    head = _head(source, said["model_type"], tensors)
    config |= {"base_model_name_or_path": name, "inference_mode": True} | head.pop("config", {})
    labels = head.pop("labels", None)
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
        [f"head for {len(labels)} labels: {', '.join(labels)}"] if labels else []
    )


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise InputError(
            f"There is no {file}; pickled weights are not opened. Save it by AdapterHub's library with "
            "use_safetensors=True"
        )
    try:
        return load(file.read_bytes())
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"Cannot read {file}: {error}") from error


def _bottleneck(
    source: Path, said: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    settings, family = said["config"], said["model_type"]
    # Only what differs from our formula: options that theirs has gained since may stand at their defaults.
    other = [
        f"{key}={settings[key]!r}" for key, value in FORMULA.items() if settings.get(key, value) != value
    ]
    # A learnt scaling stands there as a word.
    if other or not isinstance(settings.get("scaling", 1.0), float):
        raise InputError(f"{source} has {', '.join(other) or 'a learnt scaling'}, which is not built here")
    if family not in PLACES:
        raise InputError(f"{source} is for '{family}'; bottlenecks are converted for: {', '.join(PLACES)}")
    shape = _shape(source, settings)
    weights: dict[str, Tensor] = {}
    modules = set()
    for key, tensor in tensors.items():
        match = re.fullmatch(r"(.+)\.adapters\.[^.]+\.adapter_(down\.0|up)\.(weight|bias)", key)
        if match is None:
            if key.startswith("heads."):
                continue
            raise InputError(f"{source} also holds '{key}', which is not built here")
        block, part, kind = match.groups()
        module = _module(source, family, shape, block)
        modules.add(module)
        weights[f"{module}.bottleneck_{part.removesuffix('.0')}.{kind}"] = tensor
    return {
        "peft_type": "BOTTLENECK", "shape": shape, "reduction_factor": _factor(source, settings),
        "non_linearity": ACTIVATIONS.get(settings["non_linearity"], settings["non_linearity"]),
        # Ours writes None where the shape decides.
        "scaling": settings.get("scaling", 1.0), "original_ln_before": True if shape == "pfeiffer" else None,
        "dropout": settings.get("dropout", 0.0), "target_modules": sorted(modules),
    }, weights  # fmt: skip


def _shape(source: Path, settings: dict[str, Any]) -> str:
    # Which blocks have an adapter, and whether it reads behind the norm: the three shapes differ in these.
    sites = (settings["mh_adapter"], settings["output_adapter"], settings.get("original_ln_before", False))
    if settings.get("is_parallel") and sites[:2] == (False, True):
        return "parallel"
    shapes = {(True, True, False): "houlsby", (False, True, True): "pfeiffer"}
    if settings.get("is_parallel") or sites not in shapes:
        raise InputError(f"{source} is none of houlsby, pfeiffer and parallel, and not built here")
    return shapes[sites]


def _factor(source: Path, settings: dict[str, Any]) -> int:
    factor = settings["reduction_factor"]
    # A mapping gives each layer a factor of its own.
    if not isinstance(factor, (int, float)) or factor != int(factor) or factor < 1:
        raise InputError(
            f"{source} has the reduction_factor {factor!r}; wanted one whole number for all layers"
        )
    return int(factor)


def _module(source: Path, family: str, shape: str, block: str) -> str:
    # The longest ending first: "output" is the end of "attention.output" too.
    for ending, places in sorted(PLACES[family].items(), key=lambda item: -len(item[0])):
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
    parts = _factors(source, settings, tensors)
    rank = int(settings["r"])
    weights: dict[str, Any] = {}
    ranks: dict[str, int] = {}
    for module, both in parts.items():
        down, up = both["A"], both["B"]
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
    source: Path, settings: dict[str, Any], tensors: dict[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """Module → its A and B, of which IA3 has B alone."""
    if settings.get("use_gating") or settings.get("vera_d"):
        raise InputError(f"{source} is gated or VeRA under LoRA's name, which is not converted")
    parts: dict[str, dict[str, Tensor]] = {}
    # The adapter's own name stands in each key; ours has one adapter a folder.
    for key, tensor in tensors.items():
        match = re.fullmatch(r"(.+)\.loras\.[^.]+\.lora_([AB])", key)
        if match is None and not key.startswith("heads."):
            raise InputError(f"{source} also holds '{key}', which is not built here")
        if match is not None:
            parts.setdefault(match.group(1), {})[match.group(2)] = tensor
    return parts


def _ia3(
    source: Path, said: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """IA3: every factor scales what its layer gives, also within the feed-forward, where PEFT's own default
    scales what the last layer reads."""
    settings = said["config"]
    weights, fused = {}, said["model_type"] == "gpt2"
    for module, both in _factors(source, settings, tensors).items():
        scale = both["B"].reshape(-1, 1) * settings["alpha"]
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
    if len(scale) % len(order):
        raise InputError(f"{source} has factors of a fused layer whose parts can't be told apart")
    width = len(scale) // len(order)
    own = dict(zip(order, scale.split(width), strict=True))
    return torch.cat([own.get(part, torch.ones(width, 1)) for part in ("q", "k", "v")])


def _beside(source: Path, settings: dict[str, Any], down: Tensor, up: Tensor) -> Tensor:
    """Factors of parts of a fused layer as one pair: up [3 · width, parts · rank], zero where a part has
    none."""
    order = [part for part in ("q", "k", "v") if part in settings["attn_matrices"]]
    rank, width = up.shape[1], len(up) // len(order)
    if len(down) != rank * len(order):
        raise InputError(f"{source} has factors of a fused layer whose parts can't be told apart")
    # Zeros for parts without factors: the product then changes nothing there.
    whole = torch.zeros(3 * width, len(down), dtype=up.dtype)
    for index, part in enumerate(order):
        row = "qkv".index(part) * width
        own = up[index * width : (index + 1) * width]
        whole[row : row + width, index * rank : (index + 1) * rank] = own
    return whole


def _head(source: Path, family: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Weights of the head under transformers' names, with its configuration and labels; nothing where there
    is none."""
    if not (source / THEIR_HEAD).is_file():
        return {"config": {"task_type": WRITES.get(family, "FEATURE_EXTRACTION")}}
    said = read_json(source / "head_config.json")["config"]
    weights = _read(source / THEIR_HEAD)
    if not any(key.startswith("heads.") for key in weights):
        # a model of transformers with its own head: names are as they are here; a language model's is the
        # base's
        return _static_head(weights, read_json(source / "head_config.json"), family)
    # Their keys are heads.NAME.LAYER.PART; the layer's number and the part are what counts.
    layers = {key.split(".", 2)[2]: tensor for key, tensor in weights.items()}
    plain = said.get("activation_function") == "tanh" and not said.get("use_pooler")
    bert = {"bert": "bert", "roberta": "roberta", "xlm-roberta": "roberta", "camembert": "roberta"}.get(
        family
    )
    named: dict[str, str] = {}
    task = "TOKEN_CLS"
    if said["head_type"] == "classification" and said.get("layers") == 2 and plain and bert:
        # Two layers with tanh between are BERT's pooler and classifier, and RoBERTa's dense and out_proj.
        first, last = (
            ("bert.pooler.dense", "classifier")
            if bert == "bert"
            else ("classifier.dense", "classifier.out_proj")
        )
        named, task = {"1": first, "4": last}, "SEQ_CLS"
    elif said["head_type"] == "tagging" and said.get("layers") == 1:
        named = {"1": "classifier"}
    else:
        raise InputError(
            f"{source} has a head '{said['head_type']}' with {said.get('layers')} layers, which no model of "
            "transformers has; "
            "take its file away to convert the adapter alone"
        )
    # By number: `label2id` stands in any order.
    labels = [label for label, _ in sorted((said.get("label2id") or {}).items(), key=lambda item: item[1])]
    found: dict[str, Any] = {
        f"{named[key.split('.')[0]]}.{key.split('.')[1]}": t for key, t in layers.items()
    }
    saved = ["classifier", "pooler"] if "bert.pooler.dense.weight" in found else ["classifier"]
    return found | {"labels": labels, "config": {"task_type": task, "modules_to_save": saved}}


def _static_head(weights: dict[str, Tensor], said: dict[str, Any], family: str) -> dict[str, Any]:
    if any(name.startswith("lm_head") for name in weights):
        return {"config": {"task_type": WRITES.get(family, "CAUSAL_LM")}}
    task = "TOKEN_CLS" if "TokenClassification" in str(said.get("model_class")) else "SEQ_CLS"
    labels = [label for label, _ in sorted((said.get("label2id") or {}).items(), key=lambda item: item[1])]
    saved = sorted({name.split(".")[0] for name in weights})
    return weights | {"labels": labels, "config": {"task_type": task, "modules_to_save": saved}}
