"""Options of reward models on graded answers: several heads, or one that judges each step. Knows options
alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from finetune.alignment.pair_options import check_name
from finetune.alignment.trl_options import PairOptions


@dataclass
class GradedOptions(PairOptions, TrainingArguments):
    """transformers' options, as far as both kinds of grades want them alike."""

    task: str = field(default="reward")
    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Peak learning rate (default: the method's own, see METHODS)."}
    )
    drop_faulty_rows: bool = field(
        default=False, metadata={"help": "Leave rows that can't teach anything out instead of stopping."}
    )
    # columns and figures are this project's own
    remove_unused_columns: bool = field(default=False, init=False)
    prediction_loss_only: bool = field(default=True, init=False)
    label_names: list[str] | None = field(default=None, init=False)
    include_for_metrics: list[str] = field(default_factory=list, init=False)
    batch_eval_metrics: bool = field(default=False, init=False)


@dataclass
class AttributeArguments(GradedOptions):
    """A reward model with a head for each attribute of an answer."""

    algorithm: str = field(default="attributes", metadata={"help": "Always attributes here."})
    attributes: list[str] | None = field(
        default=None,
        metadata={
            "help": "Columns of numbers, a head for each (default: helpfulness correctness coherence "
            "complexity verbosity, HelpSteer's). A row may lack some of them."
        },
    )

    def __post_init__(self) -> None:
        check_name("algorithm", self.algorithm, ("attributes",))
        # Filled in, since a reward that reads the folder wants their names.
        self.attributes = self.attributes or [
            "helpfulness", "correctness", "coherence", "complexity", "verbosity",
        ]  # fmt: skip
        super().__post_init__()


@dataclass
class ProcessArguments(GradedOptions):
    """A reward model that says of each step of an answer whether it is right."""

    algorithm: str = field(default="process", metadata={"help": "Always process here."})
    step_separator: str = field(
        default="\n", metadata={"help": "What stands before each step, in training and in what is scored."}
    )

    def __post_init__(self) -> None:
        check_name("algorithm", self.algorithm, ("process",))
        super().__post_init__()
