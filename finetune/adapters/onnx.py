"""A model → ONNX, checked against PyTorch's logits; and its int8 version with what that costs. Knows ONNX; knows no adapters."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune.adapters.probe import PROBES, Probe, compare, logits_of
from finetune.errors import InputError

MODEL, INT8 = "model.onnx", "model.int8.onnx"


class _Logits(nn.Module):
    """What the exported graph computes: ids and mask [batch, time] → logits."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        # a cache would be one more output of every layer
        self.further = {"use_cache": False} if "use_cache" in inspect.signature(network.forward).parameters else {}

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        out = self.network(input_ids=input_ids, attention_mask=attention_mask, **self.further)
        return out["logits"] if "logits" in out else out["last_hidden_state"]


def export_onnx(network: Any, processor: Any, folder: Path, int8: bool = False) -> dict[str, Probe]:
    """Write `model.onnx` (any batch, any length), with `int8` also `model.int8.onnx`, and the tokenizer.

    Returns:
        How far each file's logits, as onnxruntime computes them, are from PyTorch's on the probe texts.

    Raises:
        InputError: the extra 'export' is not installed, or the model can't be traced.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"ONNX needs the extra 'export', and {error.name} is not installed: pip install '.[export]'") from error
    inputs = {name: torch.ones(2, 5, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter's own, about operators of packages that aren't used
            torch.onnx.export(
                _Logits(network).eval(), tuple(inputs.values()), str(folder / MODEL), dynamo=True, dynamic_shapes=(free, free),
                input_names=list(inputs), output_names=["logits"], verbose=False,
            )  # fmt: skip
    except (torch.onnx.OnnxExporterError, RuntimeError, TypeError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"{type(network).__name__} can't be exported to ONNX: {first}") from error
    processor.save_pretrained(folder)
    before = logits_of(network, processor)
    found = {MODEL: compare(before, (run_onnx(folder / MODEL, processor), before[1]))}
    if int8:
        _quantise(folder)
        found[INT8] = compare(before, (run_onnx(folder / INT8, processor), before[1]))
    return found


def _quantise(folder: Path) -> None:
    """Weights as int8, activations quantised as they come."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(folder / MODEL)
    del graph.graph.value_info[:]  # the exporter's notes on shapes contradict what the quantiser infers
    quantize_dynamic(graph, folder / INT8, weight_type=QuantType.QInt8)


def run_onnx(file: Path, processor: Any, texts: tuple[str, ...] = PROBES) -> torch.Tensor:
    """Logits of the texts as onnxruntime computes them."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    batch = processor(list(texts), padding=True, padding_side="right", truncation=True, max_length=64, return_tensors="np")
    return torch.from_numpy(session.run(None, {k: batch[k] for k in ("input_ids", "attention_mask")})[0])
