"""TASKS: what there is to learn. One row a task; behind it pure functions for each step of the flow."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from finetune import loss
from finetune.data import checks, collate, encode
from finetune.errors import InputError
from finetune.loss import everything
from finetune.methods import room
from finetune.metrics import classification, texts
from finetune.models import forward, generate, heads
from finetune.tasks import answers, examine, instructions, labels, spans, writing

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """One task, as the functions and classes that each step needs.

    A keyword-only parameter of `encode` or `read` that has the name of an option is filled from it (see `settle`).

    Attributes:
        model: transformers' auto class.
        examine: (rows, data options) → (rows sampled and checked, columns, names of the classes or None).
        encode: (rows, columns, processor, max_length, labels) → features.
        collate: processor → (features → batch).
        loss: (logits, labels) → summed loss of each row [batch].
        items: labels → number of items that the loss of each row is summed over [batch].
        metrics: (what is kept of the logits, labels, label names) → figures.
        peft: PEFT's name of the task.
        pair: whether a row has two texts.
        best: the figure that tells the better of two models; greater is better.
        forward: (model, batch without labels, labels) → logits, where a head wants more than `model(**batch)["logits"]`.
        keep: (logits, labels) → what evaluation keeps of a batch [batch, ...]; all logits of a vocabulary would not fit.
        read: (what is kept, what was asked) → one answer a raw row; None where a model writes its answers.
        figures: (answers, label names) → further figures, where those of single logits don't say it.
        config: entries of the model's configuration.
        start: (network, training targets) → None, where a new head is told of them before the first step.
        decoder_only: the row to take for a model that has no encoder, where that is another.
    """

    model: Any
    examine: Callable
    encode: Callable
    collate: Callable
    loss: Callable
    items: Callable
    metrics: Callable
    peft: str
    pair: bool = False
    best: str = "accuracy"
    forward: Callable = forward.plain
    keep: Callable = everything
    read: Callable | None = answers.classes
    figures: Callable | None = None
    config: dict[str, Any] = field(default_factory=dict)
    start: Callable | None = None
    decoder_only: Task | None = None


CLASSES = Task(
    AutoModelForSequenceClassification, partial(checks.examine_classes, pair=False), encode.sequence, collate.sequences,
    loss.cross_entropy, loss.items, classification.labels, "SEQ_CLS",
)  # fmt: skip
CONTINUATIONS = Task(
    AutoModelForCausalLM, examine.examine_texts, writing.continuations, collate.continuations,
    loss.cross_entropy, loss.items, classification.next_tokens, "CAUSAL_LM",
    best="rougeL", keep=loss.hits, read=None, figures=answers.text_figures,
)  # fmt: skip

TASKS: dict[str, Task] = {
    "classification": CLASSES,
    "pairs": replace(CLASSES, examine=partial(checks.examine_classes, pair=True), pair=True),
    "multilabel": Task(
        AutoModelForSequenceClassification, examine.examine_label_sets, labels.label_sets, collate.sequences,
        loss.binary_cross_entropy, loss.items, classification.label_sets, "SEQ_CLS",
        best="micro_f1", read=answers.label_sets, config={"problem_type": "multi_label_classification"},
    ),
    "regression": Task(
        AutoModelForSequenceClassification, examine.examine_numbers, labels.numbers, collate.sequences,
        loss.squared_error, loss.items, classification.numbers, "SEQ_CLS",
        best="pearson", read=answers.numbers, config={"num_labels": 1, "problem_type": "regression"},
        start=heads.start_at_mean,
    ),
    "tokens": Task(
        AutoModelForTokenClassification, examine.examine_tags, labels.tokens, collate.tokens,
        loss.cross_entropy, loss.items, classification.tag_accuracy, "TOKEN_CLS",
        best="f1", read=answers.tags, figures=answers.tag_figures,
    ),
    "spans": Task(
        AutoModelForQuestionAnswering, examine.examine_spans, spans.spans, collate.sequences,
        loss.cross_entropy, loss.items, classification.span_ends, "QUESTION_ANS",
        best="f1", forward=forward.spans, keep=loss.time_first, read=answers.spans, figures=answers.span_figures,
    ),
    "seq2seq": Task(
        AutoModelForSeq2SeqLM, examine.examine_texts, writing.targets, collate.tokens,
        loss.cross_entropy, loss.items, classification.next_tokens, "SEQ_2_SEQ_LM",
        best="rougeL", forward=forward.encoder_decoder, keep=loss.hits, read=None, figures=answers.text_figures,
        decoder_only=CONTINUATIONS,
    ),
    "sft": Task(
        AutoModelForCausalLM, examine.examine_instructions, instructions.instructions, collate.continuations,
        loss.cross_entropy, loss.items, classification.next_tokens, "CAUSAL_LM",
        best="token_accuracy", keep=loss.hits, read=None, figures=answers.instruction_figures,
    ),
    "choice": Task(
        AutoModelForSequenceClassification, examine.examine_choices, labels.choices, collate.choices,
        loss.cross_entropy, loss.items, classification.choices, "SEQ_CLS",
        forward=forward.choices, read=answers.choices, config={"num_labels": 1},
    ),
}  # fmt: skip


@dataclass
class TaskArguments:
    """Which task, and what its steps may be told; an option that the task has no use for is refused."""

    task: str = field(
        default="classification",
        metadata={
            "help": "A row of TASKS: classification, pairs, multilabel, regression, tokens, spans, seq2seq, choice, sft."
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
            "help": "Give no answer where its score beats the best answer's by this (spans; default: always answer)."
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
        default=False, metadata={"help": "Write predictions.jsonl: id, text, gold, prediction, score."}
    )


ALWAYS = {"task", "max_length", "early_stopping_patience", "save_predictions"}
WRITING = {"max_target_length", "num_beams", "generation_kwargs"}
SHAPES = {"class_weights": "weights", "focal_gamma": "gamma", "label_smoothing_factor": "smoothing"}


def find_task(name: str) -> Task:
    """The row of that name.

    Raises:
        InputError: there is none.
    """
    if name not in TASKS:
        raise InputError(f"Unknown task '{name}'; wanted one of: {', '.join(TASKS)}. Set --task")
    return TASKS[name]


def settle(options: TaskArguments, architecture: str) -> Task:
    """The row of `options.task` with the options in its functions.

    Args:
        architecture: of the model: encoder, decoder or encoder-decoder.

    Raises:
        InputError: no such task, a model that can't do it, or an option set that the task has no use for.
    """
    row = find_task(options.task)
    if row.decoder_only is not None and architecture != "encoder-decoder":
        if architecture == "encoder":
            raise InputError(
                f"The task '{options.task}' wants a model that writes; this one reads. Set --model_name_or_path"
            )
        row = row.decoder_only
    if row.model is AutoModelForCausalLM and architecture != "decoder":
        raise InputError(
            f"The task '{options.task}' wants a decoder, not an {architecture}. Set --model_name_or_path"
        )
    given = {
        f.name: vars(options)[f.name]
        for f in fields(options)
        if f.default is MISSING or vars(options)[f.name] != f.default
    }
    _check(options)
    takes = {
        name: _keywords(function) for name in ("encode", "read") if (function := vars(row)[name]) is not None
    }
    useful = ALWAYS.union(*takes.values(), WRITING if row.read is None else ())
    useful |= {option for option, name in SHAPES.items() if name in _keywords(row.loss)}
    idle = sorted(set(given) - useful)
    if idle:
        raise InputError(
            f"The task '{options.task}' has no use for --{idle[0]}; leave it out or set another --task"
        )
    bound = {
        step: partial(vars(row)[step], **{k: given[k] for k in names if k in given})
        for step, names in takes.items()
    }
    return replace(row, encode=bound["encode"], read=bound.get("read"))


def _check(options: TaskArguments) -> None:
    for name in ("max_length", "max_target_length", "max_answer_length", "n_best", "num_beams"):
        if vars(options)[name] < 1:
            raise InputError(f"Got --{name} {vars(options)[name]}; wanted 1 or more")
    if options.early_stopping_patience is not None and options.early_stopping_patience < 1:
        raise InputError(
            f"Got --early_stopping_patience {options.early_stopping_patience}; wanted 1 or more, or none"
        )
    if options.focal_gamma < 0:
        raise InputError(f"Got --focal_gamma {options.focal_gamma}; wanted 0 or more")


def packed(row: Task) -> Task:
    """A row for texts of a decoder, with its rows packed into one line and logits where there is a label alone."""
    return replace(
        row,
        collate=collate.packed,
        forward=heads.packed,
        loss=loss.placed_cross_entropy,
        keep=loss.placed_hits,
    )


def _keywords(function: Callable) -> set[str]:
    return {
        name for name, one in inspect.signature(function).parameters.items() if one.kind is one.KEYWORD_ONLY
    }


def answerer(
    row: Task, options: TaskArguments, processor: Any, asked: answers.Asked, batch_size: int
) -> Callable:
    """(what evaluation kept, network) → one answer a raw row: read off, or written by the model where the row reads nothing.

    Raises:
        InputError: options of generation that are no JSON mapping.
    """
    if row.read is not None:
        return lambda kept, network: row.read(kept, asked)  # type: ignore[misc]
    further = _further(options)
    logger.warning("%s", "; ".join(f"{name} {value}" for name, value in texts.signatures().items()))

    def write(kept: Any, network: Any) -> list[answers.Answer]:
        config = generate.settings(network, processor, options.max_target_length, options.num_beams, further)
        features = asked.features.select(np.argsort(asked.features["row"][:], kind="stable"))
        ids = features["input_ids"][:]
        sources = (
            [row[:n] for row, n in zip(ids, features["prompt"], strict=True)]
            if "prompt" in features.column_names
            else ids
        )
        written = generate.texts(network, sources, processor, config, batch_size)
        gold = answers.references(asked.rows, asked.columns.label)
        return [
            {"gold": g, "prediction": text, "score": score}
            for g, (text, score) in zip(gold, written, strict=True)
        ]

    return write


def _further(options: TaskArguments) -> dict[str, Any]:
    try:
        return dict(json.loads(options.generation_kwargs or "{}"))
    except (ValueError, TypeError) as error:
        raise InputError(
            f"--generation_kwargs '{options.generation_kwargs}' is no JSON mapping ({error})"
        ) from error


def check_writing(row: Task, options: TaskArguments, network: Any, processor: Any, features: Dataset) -> None:
    """What evaluation lets a model write can be written; said before the training that comes first.

    Raises:
        InputError: options that generation doesn't have, or prompts that leave too few positions for what follows them.
    """
    if row.read is not None:
        return
    config = generate.settings(
        network, processor, options.max_target_length, options.num_beams, _further(options)
    )
    prompt = max(features["prompt"][:]) if "prompt" in features.column_names else 1
    limit, needed = (
        room(network),
        prompt + config.max_new_tokens - 1,
    )  # the last token written is read by nobody
    if limit is not None and needed > limit and "rope_parameters" not in network.config.to_dict():
        raise InputError(
            f"A prompt of {prompt} tokens and {config.max_new_tokens} new ones take {needed} positions and the model has {limit}; "
            "set fewer new tokens, or a lower --max_length"
        )


def longest_line(features: Dataset, encoder_decoder: bool) -> int:
    """Tokens of the longest line that a model reads or writes at once: each choice is one, and so is an encoder-decoder's target."""
    lines = _lines(features)
    gold: list[Any] = features["labels"][:] if encoder_decoder else []
    targets = [row for row in gold if isinstance(row, list) and isinstance(row[0], int)]
    return max(map(len, lines + targets))


def check_ends(features: Dataset, eos: int) -> None:
    """Every line has as many end tokens: heads of encoder-decoders read a text's vector at its last one.

    Raises:
        InputError: a text that holds one itself.
    """
    counts = [line.count(eos) for line in _lines(features)]
    if len(set(counts)) > 1:
        raise InputError(
            f"{sum(count > min(counts) for count in counts)} texts hold the model's own end token, so that it would find their end in "
            "their midst. Mend the rows, or set --model_name_or_path to an encoder"
        )


def _lines(features: Dataset) -> list[list[int]]:
    ids: list[Any] = features["input_ids"][:]
    return [line for row in ids for line in (row if isinstance(row[0], list) else [row])]


def shape_loss(
    row: Task, options: TaskArguments, smoothing: float, features: Dataset, labels: list[str] | None
) -> dict[str, Any]:
    """Keyword arguments of the row's loss in training, those that were asked for: class weights, smoothing, focal gamma.

    Raises:
        InputError: smoothing for a loss that has none, or weights for classes that aren't there.
    """
    shape: dict[str, Any] = {}
    if not 0 <= smoothing < 1:
        raise InputError(f"Got --label_smoothing_factor {smoothing}; wanted 0 or more, below 1")
    if smoothing:
        if "smoothing" not in _keywords(row.loss):
            raise InputError(
                f"The task '{options.task}' has no use for --label_smoothing_factor; leave it out"
            )
        shape["smoothing"] = smoothing
    if options.focal_gamma:
        shape["gamma"] = options.focal_gamma
    if options.class_weights:
        if labels is None:
            raise InputError(f"The task '{options.task}' has no classes to weight; leave --class_weights out")
        shape["weights"] = class_weights(options.class_weights, features["labels"][:], labels)
    return shape


def class_weights(wanted: str, gold: Sequence[Any], labels: list[str]) -> torch.Tensor:
    """Weights [classes]: given by name as JSON (1 for the rest), or balanced.

    Balanced weights make each class count as much in all (King & Zeng 2001), with a mean of 1 over labels; for sets of labels
    they are the ratio of rows without a label to rows with it.

    Args:
        gold: one class id a row, one a token (-100 where there is none), or 0.0 and 1.0 for each class.
    """
    if wanted != "balanced":
        try:
            given = json.loads(wanted)
            unknown = set(given) - set(labels)
            weights = torch.tensor([float(given.get(name, 1.0)) for name in labels])
        except (ValueError, TypeError, AttributeError) as error:
            example = json.dumps({labels[0]: 2})
            raise InputError(
                f"--class_weights {wanted} is no mapping; wanted balanced, or JSON as '{example}'"
            ) from error
        if not torch.isfinite(weights).all() or weights.min() < 0 or not weights.any():
            raise InputError(
                f"--class_weights {wanted} has weights that are below 0 or no numbers; wanted 0 or more, not all 0"
            )
        if unknown:
            raise InputError(
                f"--class_weights names {', '.join(sorted(unknown))}; there are: {', '.join(labels)}"
            )
        return weights
    if isinstance(gold[0], list) and gold[0] and isinstance(gold[0][0], float):
        present = torch.tensor(gold).sum(dim=0)
        return (len(gold) - present) / present.clamp(min=1)
    ids = [label for row in gold for label in row] if isinstance(gold[0], list) else gold
    flat = torch.tensor(ids)
    counts = torch.bincount(flat[flat >= 0], minlength=len(labels)).float()
    return torch.where(
        counts > 0, counts.sum() / (counts.gt(0).sum() * counts.clamp(min=1)), torch.ones_like(counts)
    )
