"""TASKS: what there is to learn. One row a task, with the functions of its file for each step of the flow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from transformers import (
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from finetune import loss
from finetune.data import collate, encode
from finetune.errors import InputError
from finetune.methods import NO_TOKENS
from finetune.metrics import classification as metrics
from finetune.models import forecasters
from finetune.models.forecasters import AutoModelForForecast, AutoModelForSeriesClassification
from finetune.tasks import (
    audio,
    choice,
    classification,
    forecast,
    image,
    multilabel,
    regression,
    seq2seq,
    series,
    sft,
    spans,
    tokens,
    written,
)
from finetune.tasks.options import (
    ALWAYS,
    SHAPED,
    TIMED,
    WEIGHTED,
    WRITTEN,
    TaskArguments,
    check_options,
    given,
)
from finetune.tasks.task import Task

# rows that others differ from in a few entries have names
CLASSES = Task(
    AutoModelForSequenceClassification, partial(classification.examine, pair=False), encode.sequence,
    collate.sequences, loss.cross_entropy, loss.items, metrics.class_figures, "SEQ_CLS",
    classes=True, pooled=True, read=classification.read, details=classification.details,
    intervals=classification.ACCURACY, takes=WEIGHTED, baselines=classification.baselines,
)  # fmt: skip
# seq2seq's row for decoders, which is no task by name
CONTINUATIONS = Task(
    AutoModelForCausalLM, seq2seq.examine, seq2seq.encode_continuations, collate.continuations,
    loss.cross_entropy, loss.items, metrics.token_figures, "CAUSAL_LM",
    best="rougeL", keep=loss.hits, figures=written.written_figures, intervals=seq2seq.INTERVALS,
    takes=SHAPED | WRITTEN | {"source_prefix", "source_suffix"}, bind=seq2seq.bind_continuations,
)  # fmt: skip

TASKS: dict[str, Task] = {
    "classification": CLASSES,
    "pairs": replace(CLASSES, examine=partial(classification.examine, pair=True), pair=True),
    "multilabel": Task(
        AutoModelForSequenceClassification, multilabel.examine, multilabel.encode, collate.sequences,
        loss.binary_cross_entropy, loss.items, metrics.label_set_figures, "SEQ_CLS",
        pooled=True, best="micro_f1", read=multilabel.read, intervals=multilabel.INTERVALS,
        config={"problem_type": "multi_label_classification"}, takes=WEIGHTED - {"label_smoothing_factor"},
    ),
    "regression": Task(
        AutoModelForSequenceClassification, regression.examine, regression.encode, collate.sequences,
        loss.squared_error, loss.items, metrics.number_figures, "SEQ_CLS",
        pooled=True, best="pearson", read=regression.read, intervals=regression.INTERVALS,
        config={"num_labels": 1, "problem_type": "regression"}, start=regression.start,
    ),
    "tokens": Task(
        AutoModelForTokenClassification, tokens.examine, tokens.encode, collate.token_labels,
        loss.cross_entropy, loss.items, metrics.tag_accuracy, "TOKEN_CLS",
        best="f1", read=tokens.read, figures=tokens.figures, intervals=tokens.INTERVALS,
        takes=WEIGHTED | {"stride"}, bind=tokens.bind, baselines=tokens.baselines,
    ),
    "spans": Task(
        AutoModelForQuestionAnswering, spans.examine, spans.encode, collate.sequences,
        loss.cross_entropy, loss.items, metrics.window_figures, "QUESTION_ANS",
        best="f1", forward=spans.forward, keep=loss.time_first, read=spans.read, figures=spans.figures,
        intervals=spans.INTERVALS, bind=spans.bind,
        takes=SHAPED | {"stride", "n_best", "max_answer_length", "no_answer_threshold"},
    ),
    "seq2seq": Task(
        AutoModelForSeq2SeqLM, seq2seq.examine, seq2seq.encode_targets, collate.token_labels,
        loss.cross_entropy, loss.items, metrics.token_figures, "SEQ_2_SEQ_LM",
        best="rougeL", forward=seq2seq.forward, keep=loss.hits, figures=written.written_figures,
        intervals=seq2seq.INTERVALS, takes=CONTINUATIONS.takes, bind=seq2seq.bind_targets,
        decoder_only=CONTINUATIONS,
    ),
    "sft": Task(
        AutoModelForCausalLM, sft.examine, sft.encode, collate.continuations,
        loss.cross_entropy, loss.items, metrics.token_figures, "CAUSAL_LM",
        best="token_accuracy", keep=loss.hits, figures=sft.figures, intervals=sft.INTERVALS,
        takes=SHAPED | WRITTEN, recall=sft.recall,
    ),
    "choice": Task(
        AutoModelForSequenceClassification, choice.examine, choice.encode, choice.collate,
        loss.cross_entropy, loss.items, metrics.choice_figures, "SEQ_CLS",
        pooled=True, forward=choice.forward, read=choice.read, intervals=classification.ACCURACY,
        config={"num_labels": 1}, takes=SHAPED,
    ),
    "image": Task(
        AutoModelForImageClassification, image.examine, image.encode, image.collate,
        loss.cross_entropy, loss.items, metrics.class_figures, NO_TOKENS,
        pooled=True, read=classification.read, details=classification.details,
        intervals=classification.ACCURACY, takes=WEIGHTED, reads="image", show=image.show,
        baselines=image.baselines,
    ),
    "audio": Task(
        AutoModelForAudioClassification, audio.examine, audio.encode, audio.collate,
        loss.cross_entropy, loss.items, metrics.class_figures, NO_TOKENS,
        pooled=True, forward=audio.forward, read=classification.read, details=classification.details,
        intervals=classification.ACCURACY, takes=WEIGHTED, reads="audio", show=audio.show,
        baselines=audio.baselines, config={"apply_spec_augment": False},
    ),
    "forecast": Task(
        AutoModelForForecast, forecast.examine, forecast.encode, forecast.collate,
        forecast.squared_errors, forecast.values_of, forecast.figures_of_sums, NO_TOKENS,
        best="mse", forward=forecasters.forecast, keep=forecast.error_sums, keep_labels=forecast.no_labels,
        read=forecast.read, details=forecast.details, intervals=forecast.INTERVALS, start=forecast.start,
        takes=TIMED, bind=forecast.bind, reads="series", show=forecast.show,
    ),
    "series": Task(
        AutoModelForSeriesClassification, series.examine, series.encode, series.collate,
        loss.cross_entropy, loss.items, metrics.class_figures, NO_TOKENS,
        pooled=True, forward=series.forward, read=classification.read, details=classification.details,
        intervals=classification.ACCURACY, start=series.start, takes=WEIGHTED | {"context_length"},
        bind=series.bind, reads="series", show=series.show, baselines=series.baselines,
    ),
}  # fmt: skip


def find_task(name: str) -> Task:
    """The row of that name.

    Raises:
        InputError: there is none.
    """
    if name not in TASKS:
        raise InputError(f"Unknown task '{name}'; wanted one of: {', '.join(TASKS)}. Set --task")
    return TASKS[name]


def settle(options: TaskArguments, architecture: str) -> Task:
    """The row of `options.task` for a kind of model, with the options in its functions.

    Args:
        architecture: of the model: encoder, decoder or encoder-decoder.

    Raises:
        InputError: no such task, a model that can't do it, or an option set that the task has no use for.
    """
    # the kind of model first: it decides which row's options count
    row = for_model(find_task(options.task), options.task, architecture)
    check_options(options)
    # an option that nothing reads would be believed to work
    idle = sorted(given(options) - ALWAYS - row.takes)
    if idle:
        raise InputError(
            f"The task '{options.task}' has no use for --{idle[0]}; leave it out or set another --task"
        )
    return row.bound(options)


def for_model(row: Task, name: str, architecture: str) -> Task:
    """The row for a kind of model: where a model has no encoder, it may be another.

    Raises:
        InputError: such a model can't do the task.
    """
    # a decoder writes source and target as one text, by another row
    if row.decoder_only is not None and architecture != "encoder-decoder":
        if architecture == "encoder":
            raise InputError(
                f"The task '{name}' wants a model that writes; this one reads. Set --model_name_or_path"
            )
        row = row.decoder_only
    if row.model is AutoModelForCausalLM and architecture != "decoder":
        raise InputError(
            f"The task '{name}' wants a decoder, not an {architecture}. Set --model_name_or_path"
        )
    return row


def recalled(arguments: Mapping[str, Any], architecture: str) -> tuple[Task, TaskArguments]:
    """The row of a finished run as it was trained, and its options.

    Args:
        arguments: what its arguments.yaml holds.
        architecture: of its model.
    """
    options, changes = find_task(arguments["task"]).recall(arguments)
    # entries as they were trained come on top of the options' own
    return replace(settle(options, architecture), **changes), options
