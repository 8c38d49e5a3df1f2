"""What the steps of a task may be told. Knows options; knows no task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from finetune.errors import InputError
from finetune.tasks.series_options import SeriesArguments, check_series


@dataclass
class ReadingArguments:
    """Which task, and how texts are read and answered."""

    task: str = field(
        default="classification",
        metadata={
            "help": "A row of TASKS: classification, pairs, multilabel, regression, tokens, spans, seq2seq, "
            "choice, sft, image, audio, forecast, series."
        },
    )
    max_length: int = field(
        default=256, metadata={"help": "Longest input in tokens; the log says what is cut."}
    )
    class_weights: str | None = field(
        default=None,
        metadata={
            "help": "How much each class counts in training: balanced, or JSON by name: '{\"pos\": 2}'."
        },
    )
    focal_gamma: float = field(
        default=0.0, metadata={"help": "Focal loss: above 0, likely labels count less (2 is usual)."}
    )
    stride: int | None = field(
        default=None,
        metadata={
            "help": "Tokens that windows of a text share (tokens, spans; default: a quarter of max_length)."
        },
    )
    max_answer_length: int = field(default=30, metadata={"help": "Longest answer in tokens (spans)."})
    n_best: int = field(default=20, metadata={"help": "Answers ranked for each question (spans)."})
    no_answer_threshold: float | None = field(
        default=None,
        metadata={
            "help": "Give no answer where its score beats the best answer's by this (spans; default: always "
            "answer)."
        },
    )
    max_target_length: int = field(
        default=128, metadata={"help": "Longest text to learn and to write, in tokens (seq2seq)."}
    )
    source_prefix: str | None = field(
        default=None, metadata={"help": "Text in front of each source (seq2seq)."}
    )
    source_suffix: str | None = field(
        default=None,
        metadata={"help": "Text behind each source (seq2seq; default: an empty line for decoders)."},
    )
    num_beams: int = field(
        default=1, metadata={"help": "Beams of the search for a text (seq2seq); 1 is greedy."}
    )
    generation_kwargs: str | None = field(
        default=None,
        metadata={
            "help": "Options of generation as JSON, by transformers' names: '{\"length_penalty\": 0.8}'."
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop after this many evaluations without a better figure, and keep the best model."
        },
    )
    save_predictions: bool = field(
        default=True,
        metadata={
            "help": "Write predictions.jsonl, which the page's tables are made of: id, text, gold, "
            "prediction, score."
        },
    )


@dataclass
class TaskArguments(SeriesArguments, ReadingArguments):
    """Which task, and what its steps may be told; an option that the task has no use for is refused."""


# Options that every task reads.
ALWAYS = frozenset({"task", "max_length", "early_stopping_patience", "save_predictions"})
# What the loss of one class among several takes, and of classes with names.
SHAPED = frozenset({"focal_gamma", "label_smoothing_factor"})
WEIGHTED = SHAPED | {"class_weights"}
# What a series is read and cut by.
TIMED = frozenset({one.name for one in fields(SeriesArguments)})
# What a model that writes its answers is told.
WRITTEN = frozenset({"max_target_length", "num_beams", "generation_kwargs"})


def given(options: TaskArguments) -> set[str]:
    """Names of the options that are not at their defaults."""
    # a default that is given by hand can't be told from none, and does no harm
    return {one.name for one in fields(options) if vars(options)[one.name] != one.default}


def remembered(arguments: Mapping[str, Any]) -> TaskArguments:
    """The options of a task as a finished run's arguments.yaml has them."""
    return TaskArguments(**{name: arguments[name] for name in vars(TaskArguments()) if name in arguments})


def check_options(options: TaskArguments) -> None:
    """No option holds what can't be.

    Raises:
        InputError: one does.
    """
    for name in ("max_length", "max_target_length", "max_answer_length", "n_best", "num_beams"):
        if vars(options)[name] < 1:
            raise InputError(f"Got --{name} {vars(options)[name]}; wanted 1 or more")
    if options.early_stopping_patience is not None and options.early_stopping_patience < 1:
        raise InputError(
            f"Got --early_stopping_patience {options.early_stopping_patience}; wanted 1 or more, or none"
        )
    check_series(options)
    # below 0 the focal loss would weigh easy rows up
    if options.focal_gamma < 0:
        raise InputError(f"Got --focal_gamma {options.focal_gamma}; wanted 0 or more")
