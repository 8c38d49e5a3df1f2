"""What an objective may be told. Knows options; knows no objective."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from finetune.errors import InputError
from finetune.methods import MethodArguments


@dataclass
class ObjectiveArguments:
    """Which objective, and what it may be told; an option that the objective has no use for is refused."""

    objective: str = field(
        default="mlm",
        metadata={
            "help": "A row of OBJECTIVES: mlm, clm, nsp, contrastive, span_corruption, infilling, "
            "masked_patches, masked_series."
        },
    )
    max_length: int = field(
        default=256, metadata={"help": "Longest row in tokens; longer texts go on in further rows."}
    )
    layout: str | None = field(
        default=None,
        metadata={
            "help": "rows: a row for each piece of a text; blocks: rows filled with several (clm, mlm, "
            "span_corruption)."
        },
    )
    masking_rate: float | None = field(
        default=None,
        metadata={
            "help": "Share of tokens to predict (default: 0.15; infilling: 0.3; masked_patches: 0.6; "
            "masked_series: 0.4)."
        },
    )
    whole_words: bool | None = field(
        default=None, metadata={"help": "Mask all tokens of a word or none (mlm, nsp)."}
    )
    mean_span: float | None = field(
        default=None, metadata={"help": "Mean length of a span (default: 3; span_corruption, infilling)."}
    )
    sentence_order: bool | None = field(
        default=None,
        metadata={
            "help": "nsp: tell a swapped pair from one in order, as ALBERT does, instead of a stranger's "
            "segment."
        },
    )
    permute_sentences: bool | None = field(
        default=None, metadata={"help": "infilling: sentences in random order (default: true)."}
    )
    deletion_rate: float | None = field(
        default=None, metadata={"help": "infilling: share of tokens deleted without a trace."}
    )


@dataclass
class TuningArguments(MethodArguments):
    """How the model is trained; all weights unless a method is named."""

    method: str = field(default="full", metadata={"help": "A row of METHODS: full, lora, ..."})


def check_values(values: dict[str, Any]) -> None:
    """No option holds what can't be.

    Raises:
        InputError: one does.
    """
    for name in ("masking_rate", "deletion_rate"):
        low_allowed = name == "deletion_rate"
        # a rate of 0 deletes nothing, as is the default; masking nothing teaches nothing
        if name in values and not (0 < values[name] < 1 or (low_allowed and values[name] == 0)):
            raise InputError(f"--{name} {values[name]} is no share; wanted a number between 0 and 1")
    # below one token a span is none
    if values.get("mean_span", 1.0) < 1:
        raise InputError(f"--mean_span {values['mean_span']} is below 1; wanted 1 or more")
    if values.get("temperature", 1.0) <= 0:
        raise InputError(f"--temperature {values['temperature']} is not above 0")
    if values.get("layout") not in (None, "rows", "blocks"):
        raise InputError(f"Unknown layout '{values['layout']}'; wanted rows or blocks. Set --layout")
