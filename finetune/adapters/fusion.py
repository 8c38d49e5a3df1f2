"""Learnt fusion of several bottleneck adapters (AdapterFusion, Pfeiffer et al. 2021, arXiv:2005.00247).

At each adapted layer, attention over the adapters' outputs: the layer's own output asks, each adapter's
output is key and value. Base and adapters stay frozen; the three matrices of each layer are trained, and the
task's head. A saved fusion holds a copy of its adapters, so that its folder is whole. Knows layers and files;
knows no training loop.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftConfig, PeftModel, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.adapters.loading import labels_of
from finetune.adapters.weights import read_adapter, read_tensors
from finetune.artefacts import passport
from finetune.artefacts.bounds import read_json
from finetune.artefacts.files import ARGUMENTS, METRICS, RUN, write_atomically
from finetune.artefacts.folder import LABELS_FILE
from finetune.errors import InputError
from finetune.methods import head_names
from finetune.models.load import MADE_UP
from finetune.reports.page import leave_behind
from finetune.tasks.task import Task
from finetune.tuners import BottleneckConfig
from finetune.tuners.bottleneck.layer import AfterLayer, AfterNorm, BottleneckLayer, Sequential

FUSION_FILE, FUSION_WEIGHTS, ADAPTERS = "fusion.json", "fusion.safetensors", "adapters"
COPIED = (passport.CONFIG, passport.WEIGHTS, passport.PASSPORT)
LEARNING_RATE = 5e-5  # the paper's, section 4.2
SEQUENTIAL = (Sequential, AfterNorm, AfterLayer)
PARTS = ("query", "key", "value")
FORMULA = ("query_bias", "residual")  # options of `Fused` that a folder holds


@dataclass
class FusionArguments:
    """Which adapters are fused, and how closely their values stay what they were."""

    adapters: list[str] = field(
        default_factory=list, metadata={"help": "Folders of bottleneck adapters on one base, two or more."}
    )
    drift_weight: float = field(
        default=0.01,
        metadata={"help": "Weight in the loss of the values' squared distance from the identity."},
    )
    allow_mismatch: bool = field(
        default=False, metadata={"help": "Fuse adapters that don't belong on their base."}
    )

    def checked(self) -> list[str]:
        """The folders.

        Raises:
            InputError: fewer than two.
        """
        if len(self.adapters) < 2:
            raise InputError(f"{len(self.adapters)} adapters to fuse; wanted two or more. Set --adapters")
        return self.adapters


class Fused(nn.Module):
    """A layer with several sequential adapters, mixed by attention instead of run one after the other.

    Shapes: hidden [..., width]; the adapters' outputs [..., adapters, width].

    Args:
        query_bias: whether the query has a bias. A key's would change nothing: it adds the same to all of a
            position's scores.
        residual: whether keys and values are the adapters' outputs with what they read added, as in the
            paper, or what they add alone, as in AdapterHub's library.
    """

    def __init__(
        self, layer: BottleneckLayer, names: Sequence[str], query_bias: bool = False, residual: bool = True
    ) -> None:
        super().__init__()
        self.layer, self.names, self.residual = layer, list(names), residual
        down: Any = layer.bottleneck_down[self.names[0]]
        width = down.in_features
        self.query, self.key, self.value = (
            nn.Linear(width, width, bias=query_bias and part == "query").to(down.weight) for part in PARTS
        )
        # the paper's start: values as they are, so that the mean of the adapters is where learning begins
        nn.init.eye_(self.value.weight)
        # Small, so that attention begins nearly even over the adapters.
        nn.init.normal_(self.query.weight, std=0.02)
        nn.init.normal_(self.key.weight, std=0.02)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.around([self._change], *args, **kwargs)

    def _change(self, hidden: Tensor) -> Tensor:
        """What the mixture adds to what the adapters read."""
        outputs = torch.stack([self.layer.change(name, hidden) for name in self.names], dim=-2)
        if self.residual:
            outputs = outputs + hidden[..., None, :]
        scores = (self.query(hidden)[..., None, :] * self.key(outputs)).sum(-1)
        mixed = (scores.softmax(-1)[..., None] * self.value(outputs)).sum(-2)
        # The residual is taken off again: the layer adds it by itself.
        return mixed - hidden if self.residual else mixed

    def __getattr__(self, name: str) -> Any:
        # Models read their layers' attributes: T5's feed-forward asks its last layer's weight for its type.
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Before it is assigned: asking for it would come here again, for ever.
            if name == "layer":
                raise
            return getattr(self.layer, name)

    def matrices(self) -> dict[str, Tensor]:
        """What fusion itself learns, by name: the layer and its adapters stay as they were."""
        return {
            f"{part}.{name}": tensor
            for part in PARTS
            for name, tensor in getattr(self, part).state_dict().items()
        }

    def drift(self) -> Tensor:
        """Squared distance of the values from the identity: the paper's regulariser, to be added to the loss
        with weight 0.01."""
        return (self.value.weight - torch.eye(len(self.value.weight)).to(self.value.weight)).square().sum()


def fuse(network: PeftModel, names: Sequence[str], **formula: bool) -> list[Fused]:
    """Put fusion over the named adapters of a model, and leave nothing but fusion (and the task's head) to
    train; `formula` as `Fused` takes it.

    Raises:
        InputError: adapters that aren't there, or aren't sequential bottlenecks on the same layers.
    """
    missing = [name for name in names if name not in network.peft_config]
    if missing or not names:
        raise InputError(f"No adapter {missing or 'named'}; the model has: {', '.join(network.peft_config)}")
    layers = {path: module for path, module in network.named_modules() if isinstance(module, SEQUENTIAL)}
    partial = [path for path, layer in layers.items() if not set(names) <= set(layer.scaling)]
    if not layers or partial:
        where = f"'{partial[0]}' has not all of them" if partial else "there is no sequential bottleneck"
        raise InputError(
            "Fusion needs bottleneck adapters of one sequential shape (houlsby or pfeiffer) throughout; "
            f"{where}"
        )
    # Heads that are to be trained; noted before all is frozen.
    heads = {
        name
        for name, parameter in network.named_parameters()
        if "modules_to_save" in name and parameter.requires_grad
    }
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in heads)
    fused = []
    for path, layer in layers.items():
        parent, _, child = path.rpartition(".")
        fused.append(Fused(layer, names, **formula))
        # In its place, so that the model calls fusion where it called the layer.
        setattr(network.get_submodule(parent), child, fused[-1])
    return fused


def mount_all(
    network: PreTrainedModel, folders: Sequence[Path], processor: Any, allow_mismatch: bool | None = None
) -> tuple[PeftModel, list[str]]:
    """Several adapters on one base without their heads, under names that they have in this model alone.

    Raises:
        InputError: one that is no adapter, no bottleneck, or doesn't belong on this base.
    """
    # Names of this model's own: two folders may have been trained under one name.
    tuned, names = None, [f"adapter{index}" for index in range(len(folders))]
    for name, folder in zip(names, folders, strict=True):
        passport.check_passport(folder, network if tuned is None else tuned, processor, allow_mismatch)
        config = PeftConfig.from_pretrained(folder)
        if not isinstance(config, BottleneckConfig):
            raise InputError(f"{folder} holds a {config.peft_type} adapter; fusion takes bottleneck adapters")
        # the fused model has a head of its own, which need not have the classes of any of its adapters
        config.task_type, config.modules_to_save = None, None
        if tuned is None:
            tuned = PeftModel(network, config, adapter_name=name)
        else:
            tuned.add_adapter(name, config)
        # Heads aside, since the fused model has its own.
        weights = {k: v for k, v in read_tensors(folder).items() if "bottleneck_" in k}
        set_peft_model_state_dict(tuned, weights, name)
    if tuned is None:
        raise InputError("No adapters to fuse; name two or more by --adapters")
    return tuned.eval(), names


def fuse_folders(
    network: PreTrainedModel,
    folders: Sequence[Path],
    processor: Any,
    labels: Sequence[str] | None,
    allow_mismatch: bool | None = None,
) -> PeftModel:
    """A base with its adapters and untrained fusion over them; the head is that of the first adapter with
    these labels.

    Raises:
        InputError: adapters that can't be fused on this base.
    """
    for weights in _heads_for(folders, labels):
        # Not strict: these are a head's weights alone.
        network.load_state_dict(weights, strict=False)
    tuned, names = mount_all(network, folders, processor, allow_mismatch)
    fuse(tuned, names)
    # `fuse` has frozen what PEFT doesn't know as a module to save.
    for head in _trained_whole(network):
        network.get_submodule(head).requires_grad_(True)
    return tuned


def _trained_whole(network: PreTrainedModel) -> list[str]:
    """Modules trained beside the fusion: heads, and what the base's checkpoint lacked (a pooler)."""
    return head_names(network) + [
        f"{network.base_model_prefix}.{name}" for name in network.config.to_dict().get(MADE_UP, [])
    ]


def _heads_for(folders: Sequence[Path], labels: Sequence[str] | None) -> list[dict[str, Tensor]]:
    # The head of an adapter for these very classes knows something; another's would be wrong.
    fitting = [folder for folder in folders if labels is not None and labels_of(folder) == list(labels)]
    return [read_adapter(folder).heads for folder in fitting[:1]]


def drift(network: nn.Module) -> Tensor:
    """The paper's regulariser of a whole model: the sum of its layers'."""
    return torch.stack([layer.drift() for layer in _fused(network).values()]).sum()


def with_drift(row: Task, network: nn.Module, weight: float) -> Task:
    """The task with the regulariser in its training loss, once an optimizer step whatever the batches and
    processes."""

    def loss(logits: Any, labels: Any, **shape: Any) -> Tensor:
        losses = row.loss(logits, labels, **shape)
        # losses are summed and divided by the items of the whole step: with each row's items as its share,
        # one drift is left
        # Evaluation keeps to the task's own loss.
        if not logits.requires_grad:
            return losses
        return losses + weight * drift(network) * row.items(labels).to(losses)

    return replace(row, loss=loss)


def save_fusion(network: PeftModel, folder: str | Path, adapters: Sequence[Path] = ()) -> None:
    """Write the fusion's own matrices, the head that was trained with it, and copies of its adapters.

    Raises:
        InputError: the model has no fusion.
    """
    path, layers = Path(folder), _fused(network)
    if not layers:
        raise InputError("This model has no fusion to save; wanted one that `fuse` was called on")
    first = next(iter(layers.values()))
    for name, source in zip(first.names, adapters, strict=False):
        (path / ADAPTERS / name).mkdir(parents=True, exist_ok=True)
        # Copies, so that a fusion outlives the folders that it was made of.
        for file in COPIED:
            if (source / file).is_file():
                shutil.copy2(source / file, path / ADAPTERS / name / file)
    path.mkdir(parents=True, exist_ok=True)
    base = network.get_base_model()
    heads = _trained_whole(base)
    tensors = _matrices(layers) | _weights_of(base, heads)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / FUSION_WEIGHTS)
    said = {"query_bias": first.query.bias is not None, "residual": first.residual, "heads": heads}
    write_atomically(path / FUSION_FILE, json.dumps({"adapters": first.names} | said))


def _matrices(layers: dict[str, Fused]) -> dict[str, Tensor]:
    # A weight goes by its part alone, as in folders from when there was nothing else.
    return {
        f"{name}.{key.removesuffix('.weight')}": tensor
        for name, layer in layers.items()
        for key, tensor in layer.matrices().items()
    }


def _weights_of(base: nn.Module, heads: Sequence[str]) -> dict[str, Tensor]:
    return {f"{head}.{key}": t for head in heads for key, t in base.get_submodule(head).state_dict().items()}


def save_fused(
    network: PeftModel,
    processor: Any,
    folder: str | Path,
    adapters: Sequence[Path],
    *,
    labels: list[str] | None,
    metrics: dict[str, Any],
) -> None:
    """An artefact that `finetune.adapters.load` reads: fusion and adapters, tokenizer, passport, labels;
    figures come last."""
    path = Path(folder)
    save_fusion(network, path, adapters)
    processor.save_pretrained(path)
    # What the folder says of its rows is of this run; base and tokenizer are the adapters'.
    options = yaml.safe_load((path / ARGUMENTS).read_text(encoding="utf-8"))
    # All of them were checked: base and tokenizer are the same.
    first = passport.read_passport(adapters[0]) or {}
    own = {
        "base": options["model_name_or_path"], "method": "fusion",
        "method_kwargs": {"adapters": len(adapters)},
        "task": options["task"], "labels": labels, "heads": _trained_whole(network.get_base_model()),
        "metrics": metrics,
        "data": json.loads((path / RUN).read_text(encoding="utf-8"))["data"],
    }  # fmt: skip
    write_atomically(path / passport.PASSPORT, json.dumps(first | own, indent=1, ensure_ascii=False))
    if labels is not None:
        write_atomically(path / LABELS_FILE, json.dumps(labels, ensure_ascii=False))
    # Last: figures mark the folder as finished.
    write_atomically(path / METRICS, json.dumps(metrics, indent=1))
    leave_behind(path)


def load_fusion(network: PeftModel, folder: str | Path) -> list[Fused]:
    """Fusion and head as they were saved, on a model that has the adapters under the same names.

    Raises:
        InputError: no fusion there, or one of other adapters or layers.
    """
    path = Path(folder)
    if not (path / FUSION_FILE).is_file():
        raise InputError(f"{path} holds no {FUSION_FILE}; wanted a folder that save_fusion wrote")
    said = _read_config(path)
    fused = fuse(network, said["adapters"], **{key: said[key] for key in FORMULA if key in said})
    base = network.get_base_model()
    # Folders from before they said their heads have what a run here trains.
    heads = said.get("heads", _trained_whole(base))
    tensors = _read_weights(path / FUSION_WEIGHTS)
    lacking = [head for head in heads if head not in dict(base.named_modules())]
    if lacking:
        raise InputError(f"The fusion in {path} has a head '{lacking[0]}', which this model has not")
    own = _matrices(_fused(network)) | _weights_of(base, heads)
    # Both ways: missing matrices would stay untrained, foreign ones be left out.
    if own.keys() != tensors.keys() or any(own[key].shape != tensors[key].shape for key in own):
        raise InputError(
            f"The fusion in {path} belongs to other layers; wanted the base and adapters it was trained with"
        )
    for name, parameter in own.items():
        # Of a state, which shares the model's memory and has no gradient.
        parameter.copy_(tensors[name])
    return fused


def mount_fusion(
    network: PreTrainedModel, folder: Path, processor: Any, allow_mismatch: bool | None = None
) -> PeftModel:
    """A base with the adapters and the fusion of a saved folder.

    Raises:
        InputError: adapters that don't belong on this base, or a folder that isn't whole.
    """
    names = _read_config(folder)["adapters"]
    tuned, _ = mount_all(network, [folder / ADAPTERS / name for name in names], processor, allow_mismatch)
    load_fusion(tuned, folder)
    return tuned.eval()


def _read_config(folder: Path) -> dict[str, Any]:
    said = read_json(folder / FUSION_FILE)
    if not isinstance(said, dict) or not _are_names(said.get("adapters")):
        raise InputError(f"{folder / FUSION_FILE} names no adapters; wanted what save_fusion wrote")
    # `heads` are asked of the model by name, the others are switches.
    if not _are_names(said.get("heads", [])) or any(
        not isinstance(said.get(key, True), bool) for key in FORMULA
    ):
        raise InputError(f"{folder / FUSION_FILE} is damaged: {said!s:.200}; save the fusion again")
    return said


def _are_names(given: Any) -> bool:
    return isinstance(given, list) and all(isinstance(name, str) for name in given)


def _read_weights(file: Path) -> dict[str, Tensor]:
    try:
        return load(file.read_bytes())
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"Cannot read {file}: {error}; save the fusion again") from error


def _fused(network: nn.Module) -> dict[str, Fused]:
    return {name: module for name, module in network.named_modules() if isinstance(module, Fused)}
