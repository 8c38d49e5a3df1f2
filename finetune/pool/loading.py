"""What a pool reads from the disk: its base, and what the folder of an adapter says. Knows files; knows no
batches."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from finetune.artefacts.files import ARGUMENTS
from finetune.artefacts.passport import WEIGHTS
from finetune.errors import InputError
from finetune.models.load import ModelArguments, load_model, resolve

WRITING = {
    "ForCausalLM": AutoModelForCausalLM,
    "LMHeadModel": AutoModelForCausalLM,
    "ForConditionalGeneration": AutoModelForSeq2SeqLM,
}

# what reading damaged or hostile files raises, somewhere below
DAMAGED = (
    ArithmeticError, AttributeError, LookupError, RecursionError, RuntimeError, TypeError, ValueError
)  # fmt: skip


def context_of(network: Any, processor: Any) -> int:
    """Most tokens that a base takes; RoBERTa numbers two positions that no text reaches, its tokenizer
    knows."""
    sizes = network.config.to_dict()
    return min(
        int(sizes.get("max_position_embeddings") or sizes.get("n_positions", 2048)),
        processor.model_max_length,
    )


def load_base(base: Any) -> tuple[Any, Any]:
    """Processor and model of a base by its name, with its language-model head where it has one.

    Raises:
        InputError: a base that is no name, or a name that is nothing.
    """
    if not isinstance(base, str):
        raise InputError(
            f"A base given as a {type(base).__name__} needs its processor; wanted AdapterPool(network, "
            "processor)"
        )
    source, further = resolve(base)
    try:
        names = AutoConfig.from_pretrained(source, **further).architectures or []
    except (OSError, ValueError):
        names = []  # load_model says what is wrong
    model = next(
        (kind for ending, kind in WRITING.items() if any(name.endswith(ending) for name in names)), AutoModel
    )
    return load_model(ModelArguments(model_name_or_path=base), model)


def digest(folder: Path) -> str:
    """Hash of an adapter's weights as they stand on the disk."""
    with (folder / WEIGHTS).open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def max_length(folder: Path) -> int | None:
    """Longest input, in tokens, that the adapter was trained on; None where its folder doesn't say."""
    file = folder / ARGUMENTS
    return yaml.safe_load(file.read_text(encoding="utf-8")).get("max_length") if file.is_file() else None
