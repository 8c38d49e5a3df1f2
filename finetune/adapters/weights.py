"""An adapter's folder ↔ what it adds to each weight. Knows PEFT's files; knows no model and no arithmetic
between adapters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from finetune.artefacts.files import write_atomically
from finetune.artefacts.passport import CONFIG, WEIGHTS, check_files, read_passport
from finetune.errors import InputError

PREFIX = "base_model.model."
FACTORS = {
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_embedding_A": "down",
    "lora_embedding_B": "up",
}
ADAPTER_KINDS = ("LORA", "IA3", "BOTTLENECK", "BITFIT")
PROMPT = "prompt_embeddings"
LAYERS = ("bottleneck_down.weight", "bottleneck_down.bias", "bottleneck_up.weight", "bottleneck_up.bias")


class Unmixable(InputError):
    """An adapter that is right as it is, but holds more than what can be taken apart and put beside
    others."""


@dataclass(frozen=True)
class Factors:
    """A change of a weight as a product: up [out, rank] · down [rank, in], LoRA's scaling already in `up`.

    Convolutions keep PEFT's shapes, down [rank, in, ...] and up [out, rank, 1, ...]; an embedding's change is
    the transpose.
    """

    down: Tensor
    up: Tensor
    embedding: bool = False

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def dense(self) -> Tensor:
        """The change itself, [out, in] (or the convolution's shape), in float64."""
        product = self.up.double().flatten(1) @ self.down.double().flatten(1)
        return product.T if self.embedding else product.reshape(self.up.shape[0], *self.down.shape[1:])


@dataclass(frozen=True)
class Adapter:
    """What an adapter's files hold, by the names that modules have in the model it was trained on.

    Attributes:
        factors: LoRA's changes of weights.
        scales: IA3's factors, flat; one below a module in `inward` scales that module's input, else its
            output.
        layers: weights of bottleneck adapters, by the names in LAYERS.
        shifts: BitFit's differences of biases.
        magnitudes: DoRA's lengths of the rows of each weight [out].
        prompt: made-up tokens as PEFT saves them, see finetune.pool.virtual_tokens.
        heads: weights of modules that were trained whole.
    """

    folder: Path
    config: dict[str, Any]
    passport: dict[str, Any]
    factors: dict[str, Factors] = field(default_factory=dict)
    scales: dict[str, Tensor] = field(default_factory=dict)
    inward: frozenset[str] = frozenset()
    layers: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    shifts: dict[str, Tensor] = field(default_factory=dict)
    magnitudes: dict[str, Tensor] = field(default_factory=dict)
    prompt: Tensor | None = None
    heads: dict[str, Tensor] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return str(self.config["peft_type"])

    @property
    def head_modules(self) -> list[str]:
        return sorted({name.rpartition(".")[0] for name in self.heads})

    def size(self) -> int:
        """Bytes of all tensors."""
        tensors = [t for f in self.factors.values() for t in (f.down, f.up)] + [
            *self.scales.values(),
            *self.heads.values(),
        ]
        tensors += [
            *self.magnitudes.values(),
            *self.shifts.values(),
            *(t for layer in self.layers.values() for t in layer.values()),
        ]
        tensors += [] if self.prompt is None else [self.prompt]
        return sum(t.numel() * t.element_size() for t in tensors)


def read_adapter(folder: str | Path, kinds: Sequence[str] = ADAPTER_KINDS) -> Adapter:
    """Everything in an adapter's folder; scaling and rank of each module are settled as PEFT settles them.

    Args:
        kinds: what is taken, by PEFT's names.

    Raises:
        InputError: no adapter, a folder that isn't safe to open, or weights of a kind that can't be taken
            apart.
    """
    path = Path(folder)
    config = check_files(path)
    kind = config["peft_type"]
    if kind not in kinds:
        raise Unmixable(f"{path} holds a {kind} adapter; wanted one of: {', '.join(kinds)}")
    # Before the tensors: its options alone may say that it can't be taken apart.
    _check_plain(path, config)
    tensors = read_tensors(path)
    # Made-up tokens have no layer.
    adapter = Adapter(path, config, read_passport(path) or {}, prompt=tensors.pop(PROMPT, None))
    parts: dict[str, dict[str, Tensor]] = {}
    embeddings = set()
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX).removeprefix(
            "base_model."
        )  # what PEFT calls a head behind made-up tokens
        ending = next(
            (
                e
                for e in (*FACTORS, *LAYERS, "ia3_l", "bitfit_bias", "lora_magnitude_vector")
                if name.endswith("." + e)
            ),
            None,
        )
        if ending is None:
            # A head stays whole; a foreign weight is refused by name.
            _check_whole(path, config, name)
            adapter.heads[name] = tensor
            continue
        module = name.removesuffix("." + ending)
        if ending == "ia3_l":
            # Flat, since PEFT gives it a shape by whether it scales an input or an output.
            adapter.scales[module] = tensor.flatten()
        elif ending == "bitfit_bias":
            adapter.shifts[module] = tensor
        elif ending == "lora_magnitude_vector":
            adapter.magnitudes[module] = tensor
        elif ending in LAYERS:
            adapter.layers.setdefault(module, {})[ending] = tensor
        else:
            parts.setdefault(module, {})[FACTORS[ending]] = tensor
            # An embedding's factors are PEFT's transposed.
            embeddings |= {module} if "embedding" in ending else set()
    # An empty file changes nothing, which is no adapter that anybody trained.
    if not tensors and adapter.prompt is None:
        raise InputError(f"{path / WEIGHTS} holds no weights; save the adapter again")
    for module, both in parts.items():
        _check_rank(path, config, module, both["down"].shape[0])
        # In float32: a sum of bf16 factors would lose what small adapters change.
        up = both["up"].float() * _scaling(config, module, both["down"].shape[0])
        adapter.factors[module] = Factors(both["down"].float(), up, module in embeddings)
    # Which of the two PEFT says by a list of names or an expression.
    inward = frozenset(name for name in adapter.scales if _listed(name, config.get("feedforward_modules")))
    return Adapter(**(vars(adapter) | {"inward": inward}))


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """An adapter's weights by PEFT's names, copied: what happens to the file later changes nothing here.

    A file that is mapped (as `load_file` does) changes a model that is in use when it is overwritten, and
    ends the process when it is cut short.
    """
    # Sorted, so that sums go in one order on every disk.
    try:
        tensors = dict(sorted(load((folder / WEIGHTS).read_bytes()).items()))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"Cannot read {folder / WEIGHTS}: {error}. Save the adapter again") from error
    for name, tensor in tensors.items():
        # Of a training that went off: it has no answer, and in a sum or a merge it would spoil the others.
        if not tensor.isfinite().all():
            raise InputError(f"'{name}' in {folder / WEIGHTS} holds numbers that are not finite; train again")
    return tensors


def _check_plain(folder: Path, config: dict[str, Any]) -> None:
    """Options of LoRA by which it is more than a product added to a weight."""
    started = str(config.get("init_lora_weights") or "")
    if started.startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
        raise Unmixable(
            f"{folder} was started by {started}, which takes its beginning off the base's weights"
        )
    more = ("trainable_token_indices", "target_parameters", "lora_bias", "alora_invocation_tokens",
            "arrow_config",
            "layer_replication", "use_qalora", "monteclora_config", "velora_config", "use_bdlora",
            "kasa_config")  # fmt: skip
    named = [option for option in more if config.get(option)]
    if config["peft_type"] == "LORA" and named:
        raise Unmixable(f"{folder} has {named[0]}, which can't be taken apart")


def _listed(name: str, wanted: Any) -> bool:
    """Whether PEFT counts a module among names or below one regular expression."""
    if isinstance(wanted, str):
        # PEFT's own matching, whose rules for endings are not quite `fullmatch`.
        return get_pattern_key([wanted], name) == wanted
    return any(name == entry or name.endswith(f".{entry}") for entry in wanted or ())


def _check_whole(folder: Path, config: dict[str, Any], name: str) -> None:
    """Weights that are no adapter's: a head is one of the modules that were trained whole; anything else is
    refused by name."""
    # Anywhere in the name: a head may have layers of its own.
    if not any(part in (config.get("modules_to_save") or ()) for part in name.split(".")):
        raise Unmixable(
            f"{folder} also holds '{name}', which is neither the adapter's nor a head in modules_to_save"
        )


def _check_rank(folder: Path, config: dict[str, Any], module: str, rank: int) -> None:
    """See that a module has the rank that the options say, by which PEFT makes room for it and scales it."""
    patterns = config.get("rank_pattern") or {}
    said = patterns.get(get_pattern_key(list(patterns), module), config.get("r", rank))
    if said != rank:
        raise InputError(
            f"{folder} is damaged: its options say rank {said} of '{module}', and its weights have {rank}"
        )


def _scaling(config: dict[str, Any], module: str, rank: int) -> float:
    patterns = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(list(patterns), module), config["lora_alpha"])
    # rsLoRA divides by the root, which keeps the change's size over ranks.
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank


def write_adapter(adapter: Adapter, folder: str | Path) -> None:
    """Save LoRA factors (scaling 1, ranks as they are), IA3 scales or BitFit's shifts with their heads, as
    PEFT reads them."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    tensors = {PREFIX + name: tensor for name, tensor in adapter.heads.items()}
    # Saved adapters are loaded as frozen.
    config = adapter.config | {"inference_mode": True}
    if adapter.kind == "LORA":
        # Scaling 1: it is in `up` already.
        config |= _lora_config({name: factors.rank for name, factors in adapter.factors.items()})
        for name, factors in adapter.factors.items():
            keys = (
                ("lora_embedding_A", "lora_embedding_B")
                if factors.embedding
                else ("lora_A.weight", "lora_B.weight")
            )
            tensors |= {
                f"{PREFIX}{name}.{key}": t for key, t in zip(keys, (factors.down, factors.up), strict=True)
            }
    elif adapter.kind == "BITFIT":
        config |= {"target_modules": sorted(adapter.shifts)}
        tensors |= {f"{PREFIX}{name}.bitfit_bias": shift for name, shift in adapter.shifts.items()}
    else:
        config |= {"target_modules": sorted(adapter.scales), "feedforward_modules": sorted(adapter.inward)}
        for name, scale in adapter.scales.items():
            tensors[f"{PREFIX}{name}.ia3_l"] = scale.reshape((1, -1) if name in adapter.inward else (-1, 1))
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        path / WEIGHTS,
        metadata={"format": "pt"},
    )
    write_atomically(path / CONFIG, json.dumps(config, indent=1))


def _lora_config(ranks: dict[str, int]) -> dict[str, Any]:
    """Options under which PEFT takes each module's rank and multiplies by one."""
    # The widest as the common rank, the others by name: fewer entries than naming all.
    most = max(ranks.values(), default=1)
    fewer = {name: rank for name, rank in ranks.items() if rank != most}
    plain = {
        "use_rslora": False,
        "use_dora": False,
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "bias": "none",
    }
    return {
        "r": most,
        "lora_alpha": most,
        "rank_pattern": fewer,
        "alpha_pattern": fewer,
        "target_modules": sorted(ranks),
    } | plain


def is_exact_lora(adapter: Adapter) -> bool:
    """Whether the whole change is a product added to weights: no lengths of their own, no biases."""
    return adapter.kind == "LORA" and not adapter.magnitudes and adapter.config.get("bias", "none") == "none"
