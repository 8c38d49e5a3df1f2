"""Whether two models say the same, asked on a few texts, or on made-up pictures, sounds or series. Knows
models and changes of weights; knows no rows and no training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.adapters.file_inputs import picture_cell, sound_cell
from finetune.adapters.input_reader import reads_of
from finetune.adapters.merge import MergeArguments, weighted_sum
from finetune.adapters.weights import Adapter
from finetune.errors import InputError
from finetune.models.forecasters import forecast, forecasts, window_of
from finetune.models.processors import TEXT
from finetune.tasks.table import TASKS

PROBES = (
    "A warm, funny film with a fine cast.", "Two hours that I will never get back.",
    "The trains run every hour.",
    "Explain in one sentence what a prime number is.", "No.", (
        "She asked whether the parcel had come, and nobody answered."
    ),
    "Prices rose by 3.5 % in March after falling for a year.", (
        "Not bad at all, though the ending drags on and on and on."
    ),
    "What should I cook tonight with rice, eggs and spinach?", "The quick brown fox jumps over the lazy dog.",
    "Great actors, dull story, awful sound.", "Der Zug nach Wien fährt um acht Uhr ab.",
)  # fmt: skip
# What rounding may make of the largest logit; a share, since logits of 100 are rounded to a hundredfold of
# what logits of 1 are.
EXACT = 1e-3


@dataclass(frozen=True)
class Probe:
    """How far two models are apart on the same texts.

    Attributes:
        difference: largest distance of two logits.
        largest: size of the largest logit of the first.
        changed: predictions that differ; one a text for classifiers, one a token elsewhere, of a forecast the
            numbers that differ by more than rounding.
        predictions: how many there were.
        of: what they are, forecasts having no logits.
    """

    difference: float
    largest: float
    changed: int
    predictions: int
    of: str = "logit"

    @property
    def exact(self) -> float:
        """The most that rounding makes two models that are the same differ."""
        return EXACT * self.largest

    def __str__(self) -> str:
        return (
            f"largest {self.of} difference {self.difference:.2e}, {self.changed} of {self.predictions} "
            "predictions changed"
        )


@torch.inference_mode()
def logits_of(
    network: Any, processor: Any, texts: Sequence[str] = PROBES
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [texts, (time,) classes] in float32, and which of them count (padding doesn't); a model that
    reads something else is asked on as many made-up inputs of its kind. A forecast's numbers [texts, horizon,
    channels] count each."""
    if forecasts(network):
        numbers = forecast(network, *made_up_past(network.config, len(texts))).float().cpu()
        return numbers, torch.ones_like(numbers, dtype=torch.bool)
    reads = reads_of(network.config)
    if reads == TEXT:
        # Padding on the right: decoders' positions then begin at 0 without asking.
        batch = processor(
            list(texts),
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=64,
            return_tensors="pt",
        )
        # Types of all zeros say nothing, and decoders don't take them.
        inputs = {k: v.to(network.device) for k, v in batch.items() if k != "token_type_ids" or v.any()}
        out = network(**inputs)
        logits = (out["logits"] if "logits" in out else out["last_hidden_state"]).float().cpu()
    else:
        batch = TASKS[reads].collate(processor)(made_up(reads, network.config, processor, len(texts)))
        inputs = {name: tensor.to(network.device) for name, tensor in batch.items()}
        logits = TASKS[reads].forward(network, inputs, None).float().cpu()
    # Classifiers give one line a text; elsewhere padding would count as disagreement.
    counted = (
        batch["attention_mask"].bool() if logits.dim() == 3 else torch.ones(len(logits), dtype=torch.bool)
    )
    return logits, counted


def made_up(reads: str, config: Any, processor: Any, count: int) -> list[dict[str, Any]]:
    """Rows of noise as pictures, sounds or series, the same ones each time."""
    # Fixed, since two models are asked one after the other.
    draw = np.random.default_rng(0)
    if reads == "image":
        from PIL import Image  # Late: pictures are an extra.

        # The processor brings any size into the model's own.
        kinds = [draw.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(count)]
        return [{reads: picture_cell(Image.fromarray(one))} for one in kinds]
    if reads == "audio":
        rate = processor.sampling_rate
        # A second: longer than the window that any of these models begins with.
        waves = draw.normal(scale=0.1, size=(count, rate)).astype(np.float32)
        return [{reads: sound_cell((wave, rate))} for wave in waves]
    # On the standard scale, which a model reads: a processor of plain PEFT has none of its own.
    series = draw.normal(size=(count, config.context_length, config.num_input_channels))
    return [{"past_values": one.tolist()} for one in series]


def made_up_past(config: Any, count: int) -> tuple[dict[str, Tensor], Tensor]:
    """Windows of noise on the standard scale, the same ones each time, with times where a model reads them;
    and as many zeros as it forecasts numbers.
    """
    channels, context, horizon = window_of(config)
    # fixed, since two models are asked one after the other
    draw = torch.Generator().manual_seed(0)
    batch = {"past_values": torch.randn(count, context, channels, generator=draw)}
    # as the calendar has them, from -0.5 to 0.5
    if told := config.to_dict().get("num_time_features"):
        for name, steps in (("past_time_features", context), ("future_time_features", horizon)):
            batch[name] = torch.rand(count, steps, told, generator=draw) - 0.5
    return batch, torch.zeros(count, horizon, channels)


def compare_models(
    before: tuple[torch.Tensor, torch.Tensor], after: tuple[torch.Tensor, torch.Tensor]
) -> Probe:
    """Two answers of `logits_of` → how far they are apart."""
    one, other = before[0][before[1]], after[0][after[1]]
    # numbers of forecasts, which have no classes to choose among
    if one.dim() == 1:
        off, largest = (one - other).abs(), float(one.abs().max())
        return Probe(float(off.max()), largest, int((~(off <= EXACT * largest)).sum()), len(one), "number")
    changed = int((one.argmax(-1) != other.argmax(-1)).sum())
    return Probe(float((one - other).abs().max()), float(one.abs().max()), changed, len(one))


def hold(probe: Probe, limit: float, what: str) -> None:
    """Stop where two models that should say the same don't.

    Raises:
        InputError: the largest difference is beyond the limit (or no number).
    """
    # Not `>`: NaN must be refused too.
    if not probe.difference <= limit:
        raise InputError(f"{what}: {probe}; wanted {limit:g} at most. --limit sets the limit")


def reference(network: torch.nn.Module, adapter: Adapter) -> None:
    """Add an adapter's changes to the weights of its base, in place and without PEFT: what every other way
    must equal.

    Raises:
        InputError: a module isn't in this model.
    """
    modules = dict(network.named_modules())
    # All before any is changed.
    missing = [name for name in (*adapter.factors, *adapter.scales, *adapter.shifts) if name not in modules]
    if missing:
        raise InputError(
            f"The base has no module '{missing[0]}'; wanted the base that {adapter.folder} was trained on"
        )
    with torch.no_grad():
        for name, factors in adapter.factors.items():
            weight: Any = modules[name].weight
            dense = factors.dense()
            # A Conv1D keeps weights the other way round; a square one would not tell by its shape.
            turned = (
                dense.T if dense.shape != weight.shape or type(modules[name]).__name__ == "Conv1D" else dense
            )
            weight.add_(turned.to(weight))
        for name, scale in adapter.scales.items():
            _scale(modules[name], scale, name in adapter.inward)
        for name, shift in adapter.shifts.items():
            bias: Any = modules[name].bias
            bias.add_(shift.to(bias))
        # Heads are written over, not added to.
        own = network.state_dict()
        for name, tensor in adapter.heads.items():
            own[name].copy_(tensor)


def _scale(module: Any, scale: Tensor, inward: bool) -> None:
    turned = type(module).__name__ == "Conv1D"
    scale = scale.to(module.weight)
    # A product of rows or columns, by whether a factor sits on the input and how the layer keeps weights.
    module.weight.mul_(scale[None] if inward != turned else scale[:, None])
    if not inward and module.bias is not None:
        module.bias.mul_(scale)


def asked_for(network: torch.nn.Module, adapters: Sequence[Adapter], options: MergeArguments) -> None:
    """The base with the weighted sum of all changes, in float64 and without PEFT: what a merge is held to."""
    weights = options.weights or [1.0] * len(adapters)
    for index, (adapter, weight) in enumerate(zip(adapters, weights, strict=True)):
        factors = {name: weighted_sum([f], [weight]) for name, f in adapter.factors.items()}
        heads = adapter.heads if options.head in (None, index) else {}
        shifts = {name: weight * shift for name, shift in adapter.shifts.items()}
        reference(network, replace(adapter, factors=factors, scales={}, shifts=shifts, heads=heads))
    if any(
        adapter.scales for adapter in adapters
    ):  # factors act on the untouched weight, not one on the other's result
        total: dict[str, Tensor] = {}
        for adapter, weight in zip(adapters, weights, strict=True):
            for name, scale in adapter.scales.items():
                total[name] = total.get(name, 1.0) + weight * (scale.double() - 1)
        reference(network, replace(adapters[0], factors={}, scales=total, shifts={}, heads={}))
