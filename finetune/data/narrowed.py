"""Options of rows for verbs that read fewer of them: an option that a verb doesn't read is none of
it. Knows options alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from types import MappingProxyType

from finetune.data.sources import DataArguments, TextArguments
from finetune.errors import InputError


@dataclass
class UnshownArguments(DataArguments):
    """Which rows, for verbs that show none of them."""

    show_rows: int = field(default=0, init=False)
    check: bool = field(default=False, init=False)
    licences: list[str] | None = field(default=None, init=False)


@dataclass
class OwnRowsArguments(UnshownArguments):
    """Labelled rows for a finished run; where none are named, those that it was evaluated on."""

    dataset_name: list[str] | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Labelled rows (default: those that the run was evaluated on)."},
    )


@dataclass
class QuestionArguments(DataArguments):
    """The rows of preferences as those of questions."""

    text_option = "--prompt_column"


@dataclass
class AskedArguments(DataArguments):
    """Which rows of a prompt and answers with marks, or steps with verdicts"""

    RENAMED = MappingProxyType({"text_column": "prompt_column"})

    text_column: str | None = field(default=None, init=False)
    prompt_column: str | None = field(
        default=None,
        metadata={
            "help": "Column with the prompt, a text or messages (default: prompt, question, ...; "
            "without one, what both answers begin with)."
        },
    )
    completion_column: str | None = field(
        default=None,
        metadata={
            "help": "Column with the answer of a row that holds one, or with its steps (default: completion, "
            "response, ...; pairs have two others)."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # on the object too, for who reads its options by name
        self.text_column = None

    def of_questions(self) -> QuestionArguments:
        """The same for what reads a question alone."""
        same = {
            one.name: vars(self)[one.name] for one in fields(QuestionArguments) if one.name != "text_column"
        }
        return QuestionArguments(**same | {"text_column": self.prompt_column})


@dataclass
class PreferenceArguments(AskedArguments):
    """Which rows: prompt, chosen, rejected; or two answers and a verdict; KTO also: prompt, completion, label

    Columns of other names are named; two answers and a verdict are response_0, response_1 and
    better_response_id, and others that are published.
    """

    chosen_column: str | None = field(
        default=None,
        metadata={"help": "Column with the better answer (default: chosen, preferred, better, ...)."},
    )
    rejected_column: str | None = field(
        default=None,
        metadata={"help": "Column with the worse answer (default: rejected, dispreferred, worse, ...)."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.chosen_column is None) != (self.rejected_column is None):
            there, missing = ("chosen", "rejected") if self.chosen_column else ("rejected", "chosen")
            raise InputError(f"--{there}_column names one of two answers. Set --{missing}_column too")
        if self.chosen_column and self.completion_column:
            raise InputError(
                "--completion_column names the answer of rows with one, --chosen_column that of pairs; leave "
                "one out"
            )


@dataclass
class CorpusArguments(TextArguments):
    """Which texts, of which no classes are wanted."""

    balance_eval_rows: bool = field(default=False, init=False)
    class_names: list[str] | None = field(default=None, init=False)
    near_labels: str | None = field(default=None, init=False)
    minus_one: str | None = field(default=None, init=False)


@dataclass
class UnshownCorpusArguments(CorpusArguments):
    """Which texts, for a verb that shows none of them."""

    show_rows: int = field(default=0, init=False)
    check: bool = field(default=False, init=False)
