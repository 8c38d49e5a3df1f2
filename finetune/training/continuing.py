"""A finished run as the start of another: its base, and its adapter to train on. Knows folders and adapters;
knows no rows."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft

import finetune.tuners  # noqa: F401  (registers the methods that PEFT lacks, so that their folders load)
from finetune.artefacts.folder import LABELS_FILE
from finetune.artefacts.passport import base_named, check_passport, is_adapter, read_passport
from finetune.errors import InputError
from finetune.methods import MethodArguments, attach, choose_layers
from finetune.models.chat_template import give_template
from finetune.models.load import ModelArguments, load_processor
from finetune.models.processors import TEXT
from finetune.models.pruned import KEPT
from finetune.models.tokens import fit_embeddings

logger = logging.getLogger(__name__)
_TOKENIZER = "tokenizer_config.json"


def foundation(model: ModelArguments) -> tuple[ModelArguments, Path | None]:
    """The model to load, and the adapter that stands on it where `model_name_or_path` is an adapter's folder.

    A run that tuned all weights is a model like any other.

    Raises:
        InputError: an adapter that doesn't say which base it belongs on, or that was trained with another
            chat template than the one that is asked for.
    """
    folder = Path(model.model_name_or_path).expanduser()
    if not is_adapter(folder):
        return model, None
    base = base_named(folder)
    if base is None:
        raise InputError(
            f"{folder} is an adapter that doesn't say which base it belongs on; set --model_name_or_path to "
            "a "
            "run of this toolkit, or merge it first"
        )
    if model.chat_template_path is not None and (folder / _TOKENIZER).is_file():
        own = load_processor(str(folder))
        template = own.chat_template
        give_template(own, model.chat_template_path)
        # its tokenizer is the one that is trained on with
        if own.chat_template != template:
            raise InputError(
                f"The adapter in {folder} was trained with another chat template than "
                f"--chat_template_path {model.chat_template_path}; leave it out, or merge the adapter first"
            )
    # an adapter fits the layers that its base had after pruning, wherever the user doesn't say them again
    kept = model.keep_layers or (read_passport(folder) or {}).get(KEPT)  # of a base that was pruned
    return replace(model, model_name_or_path=base, keep_layers=kept), folder


def tune(
    network: Any,
    processor: Any,
    method: MethodArguments,
    task: str,
    before: Path | None = None,
    *,
    labels: list[str] | None = None,
    reads: str = TEXT,
) -> tuple[Any, Any]:
    """Processor and model with a new adapter on it, or with that of a run `before`, to be trained on.

    Args:
        task: PEFT's name of it.
        labels: names of the classes that the rows have.
        reads: what the model's inputs are (see `Task.reads`).

    Raises:
        InputError: an adapter by another method, for other classes, of another base, or without a token that
            the options add.
    """
    if before is None:
        return processor, attach(network, method.method, method.method_kwargs, task)
    passport, file = read_passport(before) or {}, before / LABELS_FILE
    there = passport.get("method")
    # folders of other tools name no method, and PEFT's own checks have to do
    if there is not None and there != method.method:
        raise InputError(
            f"{before} holds an adapter by the method '{there}', which is trained on by no other. Set "
            f"--method {there}, "
            "or merge it into a model first and tune that"
        )
    # the same options said again are no contradiction: a command may be repeated with another folder
    if method.method_kwargs and method.method_kwargs != passport.get("method_kwargs"):
        raise InputError(f"The adapter in {before} has its options already; leave --method_kwargs out")
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    # in order too: the head's outputs are these classes by their places
    if known != labels:
        raise InputError(
            f"The adapter in {before} tells {', '.join(map(str, known or ['no classes']))} apart, and the "
            "rows have "
            f"{', '.join(labels or ['none'])}. Set --model_name_or_path to a base, or mend the rows"
        )
    # the adapter's own: tokens that it gained have no row in the base's embeddings yet
    if reads == TEXT and (before / _TOKENIZER).is_file():
        asked, processor = processor, load_processor(str(before))
        lacking = sorted(set(asked.get_vocab()) - set(processor.get_vocab()))
        if lacking:
            raise InputError(
                f"The adapter in {before} has no row for {', '.join(lacking[:5])} (--add_tokens, a chat "
                "template's), and gains none. Leave them out, or merge it into a model first and tune that"
            )
        fit_embeddings(network, processor)
    check_passport(before, network, processor, False)
    logger.warning("Training on with the adapter in %s", before)
    config = peft.PeftConfig.from_pretrained(str(before))
    # rounding is no part of what an adapter's files say
    if method.method == "qat_lora":
        choose_layers(config, method.method, network)
    # PEFT loads for inference unless it is told otherwise, and nothing would be trained
    return processor, peft.PeftModel.from_pretrained(network, str(before), config=config, is_trainable=True)
