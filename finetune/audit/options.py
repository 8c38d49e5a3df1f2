"""What an audit may be told. Knows options alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from finetune.errors import InputError

LEAST = {"max_rows": 8, "shadows": 0, "overfit_rows": 0, "overfit_epochs": 1, "extract_rows": 0,
         "prefix_tokens": 1, "exposed_rows": 1, "batch_size": 1}  # fmt: skip
LEAST_CANARIES = {"plant": 0, "candidates": 10}


def check_least(options: Any, least: dict[str, int]) -> None:
    """No number is below its least.

    Raises:
        InputError: one is.
    """
    for name, wanted in least.items():
        if vars(options)[name] < wanted:
            raise InputError(f"Got --{name} {vars(options)[name]}; wanted {wanted} or more")


@dataclass
class CanaryArguments:
    """Secrets that are planted before a training and looked for after it."""

    canaries: str | None = field(
        default=None, metadata={"help": "canaries.json of --plant, whose rows the run was trained on."}
    )
    candidates: int = field(
        default=1000, metadata={"help": "Secrets that nobody saw, which a canary is ranked among."}
    )
    plant: int = field(
        default=0,
        metadata={
            "help": "Write training rows with so many canaries to --output_dir instead, each 1, 4 or 16 "
            "times; --plant_task says what they are for."
        },
    )
    plant_task: str = field(
        default="classification", metadata={"help": "Task of the rows that canaries go into."}
    )

    def __post_init__(self) -> None:
        check_least(self, LEAST_CANARIES)


@dataclass
class AuditArguments:
    """What is attacked, and how hard."""

    artefact: str | None = field(
        default=None, metadata={"help": "Output folder of train, sft, pretrain (clm) or dpo."}
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of the page and audit.json (default: audit in the artefact)."}
    )
    held_out: str | None = field(
        default=None,
        metadata={
            "help": "Data set of rows that the run has not seen, read as its own were (default: its "
            "evaluation rows)."
        },
    )
    max_rows: int = field(
        default=1000, metadata={"help": "At most so many training rows, and so many held-out ones."}
    )
    drop_overlap: bool = field(
        default=False,
        metadata={"help": "Leave held-out rows out that were trained on too, instead of stopping."},
    )
    shadows: int = field(
        default=0,
        metadata={
            "help": "Shadow runs for LiRA, an even number: the same recipe on random halves of the rows."
        },
    )
    overfit_rows: int = field(
        default=32,
        metadata={"help": "Rows of the control that must be found: learnt by heart; 0 leaves it out."},
    )
    overfit_epochs: int = field(default=30, metadata={"help": "How often the control goes over them."})
    extract_rows: int = field(
        default=50, metadata={"help": "Training rows whose rest is asked for by their beginning (texts)."}
    )
    prefix_tokens: int = field(default=32, metadata={"help": "Tokens of such a beginning."})
    exposed_rows: int = field(default=20, metadata={"help": "Rows of the list of the most exposed ones."})
    batch_size: int = field(default=32, metadata={"help": "Rows that are scored together."})
    audit_seed: int = field(default=0, metadata={"help": "Of samples, shadows and canaries."})

    def __post_init__(self) -> None:
        check_least(self, LEAST)
        # half of the shadows leave each row out: its attack compares the two halves
        if self.shadows % 2:
            raise InputError(
                f"Got --shadows {self.shadows}; wanted an even number, so that half of them know each row"
            )
