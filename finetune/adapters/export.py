"""Adapters → models that other programs read. Knows formats; knows no rows and no training."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from finetune.artefacts.folder import LABELS_FILE
from finetune.errors import InputError


def merge_into_base(network: PeftModel) -> Any:
    """The base with the adapter's changes in its own weights, and no adapter left.

    Raises:
        InputError: the method can't be merged, or the sum holds values that are no numbers.
    """
    if network.active_peft_config.is_prompt_learning:
        raise InputError(
            f"{network.active_peft_config.peft_type} adds tokens, not weights: it can't be merged into the "
            "base"
        )
    # Before the merge, in which the shared weight would be changed for both.
    untie(network)
    try:
        # `safe_merge` checks each sum for values that are no numbers before it takes the place of the weight.
        return network.merge_and_unload(safe_merge=True).eval()
    except (ValueError, NotImplementedError, AttributeError) as error:
        raise InputError(f"This adapter can't be merged into the base: {error}") from error


def untie(network: PeftModel) -> None:
    """Give embeddings and head a weight each, where they share one and an adapter changes either: a change
    merged into the shared weight would change both."""
    whole = network.get_base_model()
    head = whole.get_output_embeddings()
    # First, since models of sounds and series have no table to ask for either.
    if head is None:
        return
    table = whole.get_input_embeddings()
    if not any(isinstance(one, BaseTunerLayer) for one in (table, head)):
        return
    # Under LoRA the weight is the wrapped layer's.
    inner: list[Any] = [
        one.get_base_layer() if isinstance(one, BaseTunerLayer) else one for one in (table, head)
    ]
    if inner[0].weight is inner[1].weight:
        inner[1].weight = nn.Parameter(inner[1].weight.detach().clone(), requires_grad=False)
        # In both, since transformers ties again on loading by either.
        for config in (whole.config, whole.config.get_text_config()):
            config.tie_word_embeddings = False


def save_whole(network: Any, processor: Any, source: str | Path, folder: Path) -> Path:
    """A merged model as safetensors with its tokenizer and label names.

    Raises:
        InputError: the folder holds something already.
    """
    claim(folder)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    if (Path(source) / LABELS_FILE).is_file():
        shutil.copy2(Path(source) / LABELS_FILE, folder / LABELS_FILE)
    return folder


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """A folder for a result, gone again where none came of it.

    Raises:
        InputError: it holds something already.
    """
    claim(folder)
    try:
        # What was refused, broke or was interrupted leaves no half folder, which the next run would take for
        # somebody's. Nothing else is lost: it was empty when it was claimed.
        yield
    except BaseException:
        shutil.rmtree(folder)
        raise


def claim(folder: Path) -> None:
    """Make a folder for a result.

    Raises:
        InputError: it holds something already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"The folder {folder} is not empty; set --output_dir to a new one")
    folder.mkdir(parents=True, exist_ok=True)
