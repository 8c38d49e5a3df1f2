"""A model → GGUF in llama.cpp's K-quants, by llama.cpp's own quantiser. Knows the format; knows no rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.adapters.gguf import FILE, export_gguf
from finetune.errors import InputError

WHOLE = "f32"


def save_q8_0(network: Any, processor: Any, folder: Path) -> Path:
    """Write `model.gguf` in blocks of 8 bits.

    Raises:
        InputError: another architecture or tokenizer than llama.cpp reads in this layout.
    """
    export_gguf(network, processor, folder, "q8_0")
    return folder / FILE


def save_k_quants(network: Any, processor: Any, folder: Path, kind: str) -> Path:
    """Write `model.gguf` as llama.cpp quantises it: `q5_k` is its Q5_K_M, `q4_k` its Q4_K_M.

    Layers whose width is no multiple of 256 get the type of nearly the same size that has smaller blocks.

    Raises:
        InputError: another architecture or tokenizer than llama.cpp reads, or a file that it refuses.
    """
    import llama_cpp

    # the quantiser reads a GGUF file: it is written in float32 first, and removed again
    whole = folder / WHOLE
    whole.mkdir()
    export_gguf(network, processor, whole, WHOLE)
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = {
        "q5_k": llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_K_M, "q4_k": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    }[kind]  # fmt: skip
    with llama_cpp._utils.suppress_stdout_stderr(disable=False):
        failed = llama_cpp.llama_model_quantize(bytes(whole / FILE), bytes(folder / FILE), settings)
    # before the status is looked at: a refused model must leave no large file
    (whole / FILE).unlink()
    whole.rmdir()
    if failed:
        raise InputError(f"llama.cpp can't quantise this model as {kind}: status {failed}")
    return folder / FILE
