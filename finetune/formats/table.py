"""FORMATS: what a trained model can be written as. One row a format: who writes and reads it, what it needs.

Knows models and formats; knows no rows.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from finetune.adapters.onnx import INT8, MODEL, export_onnx, export_row
from finetune.errors import InputError
from finetune.formats import executorch, int4, llama_cpp

WHOLE = "float32"


class Exportable(NamedTuple):
    """What is written: a model with its tokenizer, for texts of at most `longest` tokens, or with its
    processor and an example of what that makes (a row, [1, ...] by name).
    """

    network: Any
    processor: Any
    longest: int
    types: bool
    example: dict[str, torch.Tensor] | None = None


@dataclass(frozen=True)
class FileFormat:
    """One format.

    Attributes:
        write: (what is written, an empty folder) → the file, or the folder that the runtime opens.
        runtime: the row of `runtimes.RUNTIMES` that reads it.
        needs: the package that writes and reads it, where it is no dependency of this project.
        extra: the extra of this project that brings the package.
        texts: whether it holds models of texts alone.
        says: what it is, for tables.
    """

    write: Callable[[Exportable, Path], Path]
    runtime: str
    says: str
    needs: str | None = None
    extra: str | None = None
    texts: bool = False

    @property
    def is_installed(self) -> bool:
        """Whether its package is there."""
        # looked for, not imported: heavy packages would weigh on every start
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


def _transformers(dtype: torch.dtype, what: Exportable, folder: Path) -> Path:
    """A folder of transformers', with weights in a type; buffers that are no weights stay as they are."""
    # a converted copy of the weights: the network itself goes into the next format
    weights = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in what.network.state_dict().items()
    }
    # the saved configuration says in which type to load
    before, what.network.config.dtype = what.network.config.dtype, dtype
    what.network.save_pretrained(folder, state_dict=weights)
    what.network.config.dtype = before
    return folder


def _onnx(int8: bool, what: Exportable, folder: Path) -> Path:
    # writes float32 first, of which int8 is made
    if what.example is None:
        export_onnx(what.network, what.processor, folder, int8)
    else:
        export_row(what.network, what.example, folder, int8)
    if int8:  # the device has one of the two
        for file in folder.glob(f"{MODEL}*"):
            file.unlink()
    return folder / (INT8 if int8 else MODEL)


FORMATS: dict[str, FileFormat] = {
    WHOLE: FileFormat(partial(_transformers, torch.float32), "torch", "safetensors, as trained"),
    "bf16": FileFormat(partial(_transformers, torch.bfloat16), "torch", "safetensors, 16 bits"),
    "int4": FileFormat(
        lambda what, folder: int4.save_int4(what.network, folder), "torchao",
        "weight-only, groups of 32", "torchao", "int4",
    ),
    "onnx": FileFormat(partial(_onnx, False), "onnxruntime", "ONNX, float32", "onnxscript", "export"),
    "int8": FileFormat(
        partial(_onnx, True), "onnxruntime", "ONNX, weights and activations dynamically", "onnxscript",
        "export",
    ),
    "q8_0": FileFormat(
        lambda what, folder: llama_cpp.save_q8_0(what.network, what.processor, folder), "llama.cpp",
        "GGUF, 8 bits", "llama_cpp", "llama_cpp", texts=True,
    ),
    **{
        kind: FileFormat(
            lambda what, folder, kind=kind: llama_cpp.save_k_quants(
                what.network, what.processor, folder, kind
            ),
            "llama.cpp", f"GGUF, {kind.upper()}_M", "llama_cpp", "llama_cpp", texts=True,
        )
        for kind in ("q5_k", "q4_k")
    },
    "executorch": FileFormat(
        lambda what, folder: executorch.save_executorch(what.network, folder, what.longest, what.types),
        "executorch", "ExecuTorch .pte, XNNPACK, float32", "executorch", "executorch", texts=True,
    ),
}  # fmt: skip
# names for several formats; `all` leaves out what isn't installed, a name doesn't
GROUPS = {"all": tuple(FORMATS), "gguf": ("q8_0", "q5_k", "q4_k")}


def find_formats(names: Sequence[str]) -> dict[str, FileFormat]:
    """The rows of those names in the table's order, `float32` always first: the others are compared with it.

    Raises:
        InputError: no such format, or one whose package is not installed; of `all`, those are left out.
    """
    unknown = [name for name in names if name not in FORMATS and name not in GROUPS]
    if unknown:
        raise InputError(
            f"Unknown format '{unknown[0]}'; wanted one of: {', '.join((*FORMATS, *GROUPS))}. Set --to"
        )
    # groups' names stand for several
    wanted = {WHOLE, *(one for name in names for one in GROUPS.get(name, (name,)))}
    found = {name: row for name, row in FORMATS.items() if name in wanted}
    for name, row in found.items():
        # what is asked for by name must not be left out silently
        if not row.is_installed and "all" not in names:
            raise InputError(
                f"The format '{name}' needs the extra '{row.extra}', and {row.needs} is not installed: "
                f"pip install 'finetune-and-prompt[{row.extra}]'"
            )
    return found
