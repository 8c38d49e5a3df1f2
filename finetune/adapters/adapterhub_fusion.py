"""An AdapterFusion of AdapterHub's library (adapters 1.x) with its adapters → one folder that
`finetune.adapters.load` reads. Knows both layouts; knows no models.

Theirs asks with a bias, and its keys and values are what the adapters add, without what they read. Matrices
that a configuration of theirs leaves out (the "static" one has no values) are the identity here.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from finetune.adapters.adapterhub import convert, find_module, kept_head
from finetune.adapters.adapterhub_heads import read_head, read_theirs, want_shapes, want_words
from finetune.adapters.fusion import ADAPTERS, FUSION_FILE, FUSION_WEIGHTS, PARTS
from finetune.adapters.weights import PREFIX
from finetune.artefacts import passport
from finetune.artefacts.bounds import read_json
from finetune.artefacts.files import ARGUMENTS, METRICS, write_atomically
from finetune.artefacts.folder import LABELS_FILE
from finetune.errors import InputError

THEIRS, THEIR_WEIGHTS = "adapter_fusion_config.json", "model_adapter_fusion.safetensors"
# Options that change the formula. The temperature falls from call to call, also when a model only answers.
FORMULA = {"temperature": False, "query_before_ln": False, "residual_before": False}
# What our folders say of a run, by what a head is for. Their fusion says no length: 512 is their encoders'.
RUNS: dict[str, dict[str, Any]] = {
    "SEQ_CLS": {"task": "classification", "max_length": 512},
    "TOKEN_CLS": {"task": "tokens", "max_length": 512},
    "CAUSAL_LM": {"objective": "clm"},
    "SEQ_2_SEQ_LM": {"task": "seq2seq", "max_length": 512, "max_target_length": 128},
}
# why fusions with other heads are none of these runs
UNREADABLE = {
    "QUESTION_ANS": "has a head for questions, and no run here loads such a fusion; take in its adapters",
    "FEATURE_EXTRACTION": "has no head, by which a fusion is loaded; save it with its head (with_head=True)",
}


def is_fusion(folder: str | Path) -> bool:
    """Whether their library wrote a fusion there."""
    return (Path(folder) / THEIRS).is_file()


def convert_fusion(sources: Sequence[str | Path], folder: str | Path, base: str | None = None) -> list[str]:
    """Write the folder; gives back what was taken, in lines.

    Args:
        sources: the fusion's folder, and those of its adapters in any order; without any, they lie beside it
            under their names, as `save_adapter_setup` leaves them.
        base: the base's name, where the checkpoint doesn't say it.

    Raises:
        InputError: no such checkpoint, one that lacks an adapter, or one that can't be said in this project's
            terms.
    """
    source, folder = next(Path(one) for one in sources if is_fusion(one)), Path(folder)
    said = _said(source)
    name = base or said.get("model_name")
    if not name:
        raise InputError(f"{source} does not say which base it belongs on; set --base")
    adapters = _adapters(source, [Path(one) for one in sources if Path(one) != source], said["adapter_names"])
    found = read_head(source, said["model_type"], said["hidden_size"])
    run = RUNS.get(found[1]["task_type"])
    if run is None:
        raise InputError(f"{source} {UNREADABLE[found[1]['task_type']]}")
    head, _, labels, told = kept_head(source, name, found)
    lines = [f"{source}: AdapterFusion of {len(adapters)} adapters on '{name}'", *told]
    for index, adapter in enumerate(adapters):
        # Without heads: the fusion has its own.
        lines += convert(adapter, folder / ADAPTERS / f"adapter{index}", name, heads=False)
    shape, modules = _sites(adapters, [folder / ADAPTERS / f"adapter{i}" for i in range(len(adapters))])
    tensors = _matrices(source, said, shape, modules) | head
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / FUSION_WEIGHTS)
    # The pooler lies in the base, other heads on it.
    heads = {"bert.pooler" if key.startswith("bert.pooler.") else key.split(".")[0] for key in head}
    ours = {"query_bias": True, "residual": False, "heads": sorted(heads)}
    names = [f"adapter{index}" for index in range(len(adapters))]
    write_atomically(folder / FUSION_FILE, json.dumps({"adapters": names} | ours))
    options = run | {"model_name_or_path": name, "method": "fusion"}
    write_atomically(folder / ARGUMENTS, yaml.safe_dump(options))
    if labels:
        write_atomically(folder / LABELS_FILE, json.dumps(labels, ensure_ascii=False))
        lines.append(f"head for {len(labels)} labels: {', '.join(labels)}")
    for file in source.glob("tokenizer*"):
        shutil.copy2(file, folder / file.name)
    # Their checkpoint has no figures; the file says that the folder is whole.
    write_atomically(folder / METRICS, "{}")
    return lines


def _said(source: Path) -> dict[str, Any]:
    said = read_json(source / THEIRS)
    wanted = {"adapter_names": list, "config": dict, "model_type": str, "hidden_size": int, "name": str}
    want_words(source / THEIRS, said, wanted)
    want_words(source / THEIRS, said["config"], dict.fromkeys(PARTS, bool))
    other = [
        f"{key}={said['config'][key]!r}"
        for key, value in FORMULA.items()
        if said["config"].get(key, value) != value
    ]
    if other:
        raise InputError(f"{source} is an AdapterFusion with {', '.join(other)}, which is not built here")
    if len(said["adapter_names"]) < 2:
        raise InputError(f"{source} fuses {len(said['adapter_names'])} adapters; wanted two or more")
    return dict(said)


def _adapters(source: Path, given: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """Folders of the adapters, in the fusion's order."""
    found: dict[str, Path] = {}
    for folder in given or [source.parent / str(name) for name in names]:
        if not (folder / passport.CONFIG).is_file():
            raise InputError(
                f"There is no adapter in {folder}; {source} fuses {', '.join(map(str, names))}. Set "
                "--adapters to its folder and theirs"
            )
        said = read_json(folder / passport.CONFIG)
        name = said.get("name") if isinstance(said, dict) else None
        if name in found:
            raise InputError(f"{found[name]} and {folder} both hold an adapter named '{name}'; give one")
        found[str(name)] = folder
    if set(found) != set(names):
        raise InputError(
            f"{source} fuses {', '.join(map(str, names))}; the folders given hold {', '.join(found)}"
        )
    return [found[name] for name in names]


def _sites(sources: Sequence[Path], folders: Sequence[Path]) -> tuple[str, list[str]]:
    """Shape and modules that all adapters have, from what they were converted to."""
    configs = [read_json(folder / passport.CONFIG) for folder in folders]
    for source, config in zip(sources, configs, strict=True):
        if config.get("shape") not in ("houlsby", "pfeiffer"):
            raise InputError(
                f"{source} is no houlsby or pfeiffer bottleneck; a fusion of others is not built"
            )
        # Theirs mixes what a layer has; ours wants every adapter in every layer.
        if any(config[key] != configs[0][key] for key in ("shape", "target_modules")):
            raise InputError(f"{source} sits on other layers than {sources[0]}; such a fusion is not built")
    return configs[0]["shape"], configs[0]["target_modules"]


def _matrices(source: Path, said: dict[str, Any], shape: str, modules: Sequence[str]) -> dict[str, Tensor]:
    """What `load_fusion` reads: for each module query, its bias, key and value."""
    found: dict[str, dict[str, Tensor]] = {}
    # Another fusion whose name begins alike is saved beside this one, and isn't read.
    pattern = rf"(.+)\.adapter_fusion_layer\.{re.escape(said['name'])}\.(\w+\.\w+)"
    for key, tensor in read_theirs(source / THEIR_WEIGHTS).items():
        match = re.fullmatch(pattern, key)
        if match is not None:
            found.setdefault(find_module(source, said["model_type"], shape, match[1]), {})[match[2]] = tensor
    width = said["hidden_size"]
    # The keys' bias adds the same to all of a position's scores, and is left out.
    sizes: dict[str, tuple[int, ...]] = {f"{one}.weight": (width, width) for one in PARTS}
    sizes["query.bias"] = (width,)
    weights: dict[str, Tensor] = {}
    # Layers without adapters have matrices of theirs, which nothing asks.
    for module in modules:
        own = found.get(module, {})
        for part, size in sizes.items():
            # What their configuration leaves out changes nothing.
            if not said["config"].get(part.partition(".")[0]):
                own[part] = torch.eye(width) if part.endswith("weight") else torch.zeros(width)
            want_shapes(source, own, {part: size})
            weights[f"{PREFIX}{module}.{part.removesuffix('.weight')}"] = own[part]
    return weights
