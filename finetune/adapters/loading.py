"""An adapter's folder → its base with the adapter on it. Knows names, files and models; knows no rows and no
training."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.utils import logging

import finetune.tuners  # noqa: F401  (registers the methods that PEFT lacks, so that their folders load)
from finetune.adapters.export import merge_into_base
from finetune.adapters.input_reader import reads_of
from finetune.artefacts.folder import LABELS_FILE
from finetune.artefacts.passport import (
    CONFIG,
    WEIGHTS,
    adapters_below,
    base_named,
    check_files,
    check_passport,
    read_passport,
)
from finetune.errors import InputError
from finetune.models.load import ModelArguments, fit_embeddings, load_model, load_processor, resolve
from finetune.models.processors import TEXT
from finetune.models.pruned import KEPT
from finetune.tasks.table import TASKS
from finetune.tasks.task import Task

MODELS: dict[str | None, Any] = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
    "CAUSAL_LM": AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM,
    "FEATURE_EXTRACTION": AutoModel,
    None: AutoModel,
}
HEAD_ENDS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")
TOKENIZER, READER = "tokenizer_config.json", "preprocessor_config.json"


@contextmanager
def quietly() -> Iterator[None]:
    """Loading without transformers' report on heads that a checkpoint lacks (an adapter brings its own) and
    without PEFT's notice about transformers; a script has both off anyway.
    """
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            yield
    finally:
        logging.set_verbosity(before)


def base_of(folder: str | Path) -> str:
    """Name of the base that an adapter belongs on: the passport's word, else PEFT's own."""
    name = base_named(folder)
    if not name:
        raise InputError(
            f"{folder} does not say which base it belongs on: its {CONFIG} lacks base_model_name_or_path. "
            "Name it there, or by --base where the command has that"
        )
    return name


def labels_of(folder: str | Path) -> list[str] | None:
    """Names of an adapter's classes, or None where it has none."""
    file = Path(folder) / LABELS_FILE
    # Folders from before `labels.json` have them in the passport.
    labels = (
        json.loads(file.read_text(encoding="utf-8"))
        if file.is_file()
        else (read_passport(folder) or {}).get("labels")
    )
    return None if labels is None else [str(label) for label in labels]


def tokenizer_of(folder: str | Path) -> Any:
    """The tokenizer that lies beside an adapter, or None where there is none.

    Raises:
        InputError: it can't be read.
    """
    if not (Path(folder) / TOKENIZER).is_file():
        return None
    try:
        return load_processor(str(folder))
    except InputError:
        raise
    except BaseException as error:  # a panic of the tokenizers' Rust is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise InputError(
            f"The tokenizer in {folder} can't be read: {type(error).__name__}: {error}"
        ) from error


def field_of(folder: str | Path, base: str) -> Task | None:
    """The row of TASKS of an adapter that reads pictures, sounds or series, None of one that reads texts: by
    its passport, else by what its base is.

    Args:
        base: name of the base.
    """
    task = (read_passport(folder) or {}).get("task")
    if task in TASKS:
        return TASKS[task] if TASKS[task].reads != TEXT else None
    return row_of_base(base)


def row_of_base(base: str) -> Task | None:
    """The row of TASKS by which a base gives pictures, sounds or series a class, or forecasts, as it was
    saved; None where it reads texts, or is nothing (which loading it says)."""
    source, further = resolve(base)
    try:
        config = AutoConfig.from_pretrained(source, **further)
    except (OSError, ValueError):
        return None
    # a family may forecast and give classes: which one, the checkpoint says
    mapping = TASKS["forecast"].model._model_mapping
    if type(config) in mapping and mapping[type(config)].__name__ in (config.architectures or ()):
        return TASKS["forecast"]
    reads = reads_of(config)
    return None if reads == TEXT else TASKS[reads]


def own_processor(folder: str | Path, processor: Any, reads: str) -> Any:
    """The processor that lies beside an adapter: a run on series has its own scale. Else the base's."""
    return load_processor(str(folder), reads=reads) if (Path(folder) / READER).is_file() else processor


def load_base(
    folder: str | Path,
    base: str | None = None,
    *,
    model_class: Any = None,
    dtype: str = "float32",
    allow_mismatch: bool | None = None,
) -> tuple[Any, Any]:
    """Tokenizer and base of an adapter, with a head of the right size where its task has one; adapters
    that it stands on are merged into the base.

    Args:
        model_class: the AutoModelFor... that is asked for; None takes that of the adapter's task.
        dtype: of the base's weights, as `--dtype` takes it; sums with adapters below are rounded once.
        allow_mismatch: of the adapters below; see `check_passport`.
    """
    path, config = Path(folder).expanduser(), check_files(Path(folder).expanduser())
    task = config.get("task_type")
    if task not in MODELS:
        raise InputError(
            f"{path} is an adapter for the task '{task}'; wanted one of: {', '.join(str(t) for t in MODELS)}"
        )
    below = [] if base else adapters_below(path)
    name = base or base_of(below[-1] if below else path)
    field = field_of(path, name)
    labels = labels_of(path) if field or task in ("SEQ_CLS", "TOKEN_CLS") else None
    # an adapter belongs on what it was trained on: rounded weights are other weights
    passport = read_passport(path) or {}
    quantized = passport.get("method") == "qlora"
    model = ModelArguments(
        model_name_or_path=name, dtype="float32" if below else dtype, keep_layers=passport.get(KEPT)
    )
    if field is not None:
        processor, network = load_model(
            model, field.model, labels, reads=field.reads, trains=False, **field.config
        )
        return own_processor(path, processor, field.reads), network.eval()
    # classes without names, or scores: as many as the adapter's own head has
    width = head_width(path) if task == "SEQ_CLS" and labels is None else None
    processor, network = load_model(
        model, model_class or MODELS[task], labels, quantized=quantized, trains=False,
        **({"num_labels": width} if width else {}),
    )  # fmt: skip
    if below:
        processor, network = merged(processor, network, reversed(below), allow_mismatch)
        network = network.to(getattr(torch, dtype))
    return with_tokens(path, processor, network), network.eval()


def head_width(folder: Path) -> int | None:
    """How many numbers the head beside an adapter gives a text; None where there is none."""
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        ends = [name for name in file.keys() if name.endswith(HEAD_ENDS)]  # noqa: SIM118
        return file.get_slice(ends[0]).get_shape()[0] if ends else None


def merged(
    processor: Any, network: Any, folders: Iterable[Path], allow_mismatch: bool | None = None
) -> tuple[Any, Any]:
    """Tokenizer and model with each folder's adapter merged into it in turn, the first one on the bare base.

    Raises:
        InputError: one that doesn't belong there, or can't be merged.
    """
    for folder in folders:
        processor = with_tokens(folder, processor, network)
        check_passport(folder, network, processor, allow_mismatch)
        # Whatever the adapter was trained for, it is merged below another's head.
        config = peft.PeftConfig.from_pretrained(str(folder))
        config.task_type = None
        try:
            network = merge_into_base(peft.PeftModel.from_pretrained(network, str(folder), config=config))
        except InputError as error:
            raise InputError(f"{folder} can't be the base of another adapter: {error}") from error
    return processor, network


def with_tokens(folder: Path, processor: Any, network: Any) -> Any:
    """The tokenizer that lies beside an adapter, for which there is room in the model afterwards; the other
    one where there is none."""
    # Its own counts: tokens and a chat template may have come with training.
    own = tokenizer_of(folder)
    if own is None:
        return processor
    fit_embeddings(network, own)
    return own


def mount(
    folder: str | Path, base: str | None = None, allow_mismatch: bool = False, **asked: Any
) -> tuple[Any, peft.PeftModel]:
    """Tokenizer, and the base with the adapter on it, checked against its passport.

    Args:
        asked: `model_class` and `dtype` of `load_base`.

    Raises:
        InputError: no adapter, no base, or an adapter that doesn't belong on it.
    """
    path = Path(folder).expanduser()
    processor, network = load_base(path, base, allow_mismatch=allow_mismatch, **asked)
    check_passport(path, network, processor, allow_mismatch)
    return processor, peft.PeftModel.from_pretrained(network, str(path)).eval()
