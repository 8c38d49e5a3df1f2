"""A model → ONNX, checked against PyTorch's logits; and its int8 version with what that costs. Knows ONNX;
knows no adapters."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune.adapters.probe import EXACT, PROBES, Probe, compare_models, logits_of
from finetune.data.encode import as_columns
from finetune.errors import InputError

MODEL, INT8 = "model.onnx", "model.int8.onnx"


class _Logits(nn.Module):
    """What the exported graph computes: ids, mask (and where the tokenizer makes them, token types) [batch,
    time] → logits."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        # a cache would be one more output of every layer
        self.further = (
            {"use_cache": False} if "use_cache" in inspect.signature(network.forward).parameters else {}
        )

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        out = self.network(input_ids=input_ids, attention_mask=attention_mask, **types, **self.further)
        return out["logits"] if "logits" in out else out["last_hidden_state"]


def _inputs(network: Any, processor: Any) -> list[str]:
    taken = inspect.signature(network.forward).parameters
    types = (
        ["token_type_ids"]
        if "token_type_ids" in processor.model_input_names and "token_type_ids" in taken
        else []
    )
    return ["input_ids", "attention_mask", *types]


def export_onnx(network: Any, processor: Any, folder: Path, int8: bool = False) -> dict[str, Probe]:
    """Write `model.onnx` (any batch, any length), with `int8` also `model.int8.onnx`, and the tokenizer.

    Returns:
        How far each file's logits, as onnxruntime computes them, are from PyTorch's on the probe texts.

    Raises:
        InputError: the extra 'export' is not installed, or the model can't be traced.
    """
    want_exporter()
    # Ones of a small shape: the exporter only follows the operations.
    inputs = {name: torch.ones(2, 5, dtype=torch.long) for name in _inputs(network, processor)}
    # Rows and time are left open, or the file would take this shape alone.
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    _write(_Logits(network), network, inputs, (free,) * len(inputs), folder)
    processor.save_pretrained(folder)
    # Of the model in this process, before the file is read by another program.
    before = logits_of(network, processor)
    found = {MODEL: compare_models(before, (run_onnx(folder / MODEL, processor), before[1]))}
    if int8:
        _quantise(folder)
        found[INT8] = compare_models(before, (run_onnx(folder / INT8, processor), before[1]))
    return found


def export_row(network: Any, example: dict[str, torch.Tensor], folder: Path, int8: bool = False) -> None:
    """Write `model.onnx` of a model of pictures, sounds or series (any batch; waves of any length), with
    `int8` also `model.int8.onnx`; held to PyTorch's logits on the example.

    Args:
        example: a row as a batch of one, [1, ...] by the model's names.

    Raises:
        InputError: the extra 'export' is not installed, the model can't be traced, or the file answers
            otherwise.
    """
    want_exporter()
    # two rows: one alone is taken for a fixed size
    inputs = {name: torch.cat([one, one]) for name, one in example.items()}
    free = {0: torch.export.Dim.DYNAMIC}
    # waves [batch, samples] have lengths of their own; all else has the model's size
    waves = free | {1: torch.export.Dim.DYNAMIC}
    shapes = [waves if one.dim() == 2 and one.is_floating_point() else free for one in inputs.values()]
    graph = _Answer(network, list(inputs)).eval()
    _write(graph, network, inputs, (tuple(shapes),), folder)
    with torch.inference_mode():
        wanted = graph(*inputs.values())
    session = _session(folder / MODEL)
    given = {entry.name: inputs[entry.name].numpy() for entry in session.get_inputs()}
    apart = float((torch.from_numpy(session.run(None, given)[0]) - wanted).abs().max())
    # not `>`: NaN must be refused too
    if not apart <= EXACT * float(wanted.abs().max()):
        raise InputError(f"{MODEL} of {type(network).__name__} answers {apart:.2g} beside the model's logits")
    if int8:
        # onnxruntime has no kernel for convolutions of signed bytes
        _quantise(folder, ["MatMul", "Gemm"])


class _Answer(nn.Module):
    """What a graph for rows that are no texts computes: the model's inputs in order → logits."""

    def __init__(self, network: Any, names: list[str]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        out = self.network(**dict(zip(self.names, values, strict=True)))
        return out["logits" if "logits" in out else "prediction_logits"]


def want_exporter() -> None:
    """The packages that write and read ONNX are there.

    Raises:
        InputError: they are not.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"ONNX needs the extra 'export', and {error.name} is not installed: "
            "pip install 'finetune-and-prompt[export]'"
        ) from error


def _write(
    graph: nn.Module, network: Any, inputs: dict[str, torch.Tensor], shapes: tuple[Any, ...], folder: Path
) -> None:
    try:
        with silent(), torch.no_grad():
            torch.onnx.export(
                graph.eval(), tuple(inputs.values()), str(folder / MODEL), dynamo=True,
                dynamic_shapes=shapes, input_names=list(inputs), output_names=["logits"], verbose=False,
            )  # fmt: skip
    except (torch.onnx.OnnxExporterError, RuntimeError, TypeError) as error:
        # The exporter's message is pages long; its first line says which operation.
        first = str(error).strip().splitlines()[0]
        raise InputError(f"{type(network).__name__} can't be exported to ONNX: {first}") from error


def _quantise(folder: Path, operations: list[str] | None = None) -> None:
    """Weights as int8, activations quantised as they come."""
    import onnx

    # Late: onnx is an extra.
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(folder / MODEL)
    del graph.graph.value_info[:]  # the exporter's notes on shapes contradict what the quantiser infers
    with silent():
        quantize_dynamic(graph, folder / INT8, op_types_to_quantize=operations, weight_type=QuantType.QInt8)


@contextmanager
def silent() -> Iterator[None]:
    """Without the exporter's and the quantiser's own words, on operators of packages that aren't used and on
    other ways to work."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def run_onnx(file: Path, processor: Any, texts: Sequence[Any] = PROBES, max_length: int = 64) -> torch.Tensor:
    """Logits of the texts (or pairs) in one batch, as onnxruntime computes them."""
    return torch.from_numpy(_answer(_session(file), processor, texts, max_length))


def onnx_predictions(
    file: Path, processor: Any, texts: Sequence[Any], max_length: int, batch_size: int = 32
) -> torch.Tensor:
    """Class of each text (or pair), [texts], by an exported classifier."""
    session = _session(file)
    order = sorted(
        range(len(texts)), key=lambda index: len(str(texts[index]))
    )  # alike lengths together: little padding
    found = torch.zeros(len(texts), dtype=torch.long)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        found[batch] = torch.from_numpy(
            _answer(session, processor, [texts[i] for i in batch], max_length)
        ).argmax(-1)
    return found


def _session(file: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def _answer(session: Any, processor: Any, texts: Sequence[Any], max_length: int) -> Any:
    cut = {"truncation": True, "max_length": max_length}
    batch = processor(
        *as_columns(texts, processor), padding=True, padding_side="right", return_tensors="np", **cut
    )
    # By the file's own inputs: the exporter drops those that the graph doesn't read.
    return session.run(None, {entry.name: batch[entry.name] for entry in session.get_inputs()})[0]
