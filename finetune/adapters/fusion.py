"""Learnt fusion of several bottleneck adapters (AdapterFusion, Pfeiffer et al. 2021, arXiv:2005.00247).

At each adapted layer, attention over the adapters' outputs: the layer's own output asks, each adapter's output is key and value.
Base and adapters stay frozen; only the three matrices of each layer are trained. Knows layers and files; knows no training loop.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetune.errors import InputError
from finetune.training.checkpoints import write_atomically
from finetune.tuners.bottleneck.layer import Sequential

CONFIG, WEIGHTS = "fusion.json", "fusion.safetensors"
PARTS = ("query", "key", "value")


class Fused(nn.Module):
    """A layer with several sequential adapters, mixed by attention instead of run one after the other.

    Shapes: hidden [..., width]; the adapters' outputs [..., adapters, width].
    """

    def __init__(self, layer: Sequential, names: Sequence[str]) -> None:
        super().__init__()
        self.layer, self.names = layer, list(names)
        down: Any = layer.bottleneck_down[self.names[0]]
        width = down.in_features
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False).to(down.weight) for _ in range(3))
        # the paper's start: values as they are, so that the mean of the adapters is where learning begins
        nn.init.eye_(self.value.weight)
        nn.init.normal_(self.query.weight, std=0.02)
        nn.init.normal_(self.key.weight, std=0.02)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        hidden = self.layer.base_layer(*args, **kwargs)
        outputs = torch.stack([hidden + self.layer.change(name, hidden) for name in self.names], dim=-2)
        scores = (self.query(hidden)[..., None, :] * self.key(outputs)).sum(-1)
        return (scores.softmax(-1)[..., None] * self.value(outputs)).sum(-2)

    def drift(self) -> Tensor:
        """Squared distance of the values from the identity: the paper's regulariser, to be added to the loss with weight 0.01."""
        return (self.value.weight - torch.eye(len(self.value.weight)).to(self.value.weight)).square().sum()


def fuse(network: PeftModel, names: Sequence[str]) -> list[Fused]:
    """Put fusion over the named adapters of a model, and leave nothing but fusion (and the task's head) to train.

    Raises:
        InputError: adapters that aren't there, or aren't sequential bottlenecks on the same layers.
    """
    missing = [name for name in names if name not in network.peft_config]
    if missing or not names:
        raise InputError(f"No adapter {missing or 'named'}; the model has: {', '.join(network.peft_config)}")
    layers = {path: module for path, module in network.named_modules() if isinstance(module, Sequential)}
    partial = [path for path, layer in layers.items() if not set(names) <= set(layer.scaling)]
    if not layers or partial:
        where = f"'{partial[0]}' has not all of them" if partial else "there is no sequential bottleneck"
        raise InputError(f"Fusion needs bottleneck adapters of one sequential shape (houlsby or pfeiffer) throughout; {where}")
    heads = {name for name, parameter in network.named_parameters() if "modules_to_save" in name and parameter.requires_grad}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in heads)
    fused = []
    for path, layer in layers.items():
        parent, _, child = path.rpartition(".")
        fused.append(Fused(layer, names))
        setattr(network.get_submodule(parent), child, fused[-1])
    return fused


def save_fusion(network: PeftModel, folder: str | Path) -> None:
    """Write the fusion's own matrices and the names of its adapters; the adapters stay where they are."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    layers = _fused(network)
    if not layers:
        raise InputError("This model has no fusion to save; wanted one that `fuse` was called on")
    tensors = {f"{name}.{part}": getattr(layer, part).weight.detach() for name, layer in layers.items() for part in PARTS}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / WEIGHTS)
    write_atomically(path / CONFIG, json.dumps({"adapters": next(iter(layers.values())).names}))


def load_fusion(network: PeftModel, folder: str | Path) -> list[Fused]:
    """Fusion as it was saved, on a model that has its adapters under the same names.

    Raises:
        InputError: no fusion there, or one of other adapters or layers.
    """
    path = Path(folder)
    if not (path / CONFIG).is_file():
        raise InputError(f"{path} holds no {CONFIG}; wanted a folder that save_fusion wrote")
    fused = fuse(network, json.loads((path / CONFIG).read_text(encoding="utf-8"))["adapters"])
    tensors, layers = load_file(path / WEIGHTS), _fused(network)
    if {f"{name}.{part}" for name in layers for part in PARTS} != tensors.keys():
        raise InputError(f"The fusion in {path} belongs to other layers; wanted the base and adapters it was trained with")
    with torch.no_grad():
        for name, layer in layers.items():
            for part in PARTS:
                getattr(layer, part).weight.copy_(tensors[f"{name}.{part}"])
    return fused


def _fused(network: PeftModel) -> dict[str, Fused]:
    return {name: module for name, module in network.named_modules() if isinstance(module, Fused)}
