"""Options of exports: which formats, of which run, and what they may cost. Knows no model and no runtime."""

from __future__ import annotations

from dataclasses import dataclass, field

from finetune.data.narrowed import OwnRowsArguments
from finetune.errors import InputError


@dataclass
class ExportArguments:
    """Which run becomes which files, and how much worse they may answer."""

    artefact: str | None = field(default=None, metadata={"help": "Output folder of a training script."})
    to: list[str] = field(
        default_factory=lambda: ["all"],
        metadata={
            "help": "Rows of FORMATS: float32, bf16, int8, int4, onnx, q8_0, q5_k, q4_k, executorch; gguf "
            "for its three; all for whatever the model and this installation can be written as. Or one "
            "engine, vllm or llama_cpp: a folder that it serves, with the command and a smoke test."
        },
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "A new folder for the files and their table (default: RUN/exports)."}
    )
    merged: bool = field(
        default=False,
        metadata={"help": "vllm, llama_cpp: a whole model, where LoRA would be served beside its base."},
    )
    tolerance: float | None = field(
        default=None,
        metadata={
            "help": "Largest drop of the accuracy against float32, as a share of the rows (0.01: one point): "
            "a format that drops more ends the command with status 1."
        },
    )
    beside: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Further runs on the same task as lines of the table, in float32: a distilled one, a "
            "pruned one."
        },
    )
    allow_mismatch: bool = field(
        default=False, metadata={"help": "Go on where an adapter doesn't belong on its base."}
    )

    def __post_init__(self) -> None:
        if self.tolerance is not None and not 0 <= self.tolerance < 1:
            raise InputError(f"Got --tolerance {self.tolerance}; wanted a share from 0 to below 1, as 0.01")
        # an empty list given by hand would write nothing and say nothing
        if not self.to:
            raise InputError("No format; set --to")


@dataclass
class ExportRowsArguments(OwnRowsArguments):
    """Rows that each file answers."""

    max_eval_rows: int | None = field(
        default=500, metadata={"help": "Answer this many rows, one at a time: a seeded sample."}
    )
