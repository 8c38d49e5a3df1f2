"""What a pool reads from the disk: its base, and what the folder of an adapter says. Knows files; knows no
batches."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from finetune.adapters.export import merge_into_base
from finetune.adapters.input_reader import reads_of
from finetune.adapters.loading import mount
from finetune.artefacts.files import ARGUMENTS
from finetune.artefacts.hashes import hash_file
from finetune.artefacts.passport import WEIGHTS, adapters_below, is_adapter
from finetune.errors import InputError
from finetune.methods import head_names
from finetune.models.load import ModelArguments, load_model, resolve
from finetune.models.own_families import WITHOUT_ADAPTERS
from finetune.models.processors import TEXT
from finetune.tasks.table import TASKS
from finetune.tasks.task import Task

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
    # Tokenizers without a limit of their own say 10^30, so that the model's always counts.
    return min(
        int(sizes.get("max_position_embeddings") or sizes.get("n_positions", 2048)),
        processor.model_max_length,
    )


def load_named_base(base: Any) -> tuple[Any, Any]:
    """Processor and model of a base by its name, with its language-model head where it has one; an adapter's
    folder is its base with the adapter merged in.

    Raises:
        InputError: a base that is no name, a name that is nothing, or a model that can't be a base.
    """
    if not isinstance(base, str):
        raise InputError(
            f"A base given as a {type(base).__name__} needs its processor; wanted AdapterPool(network, "
            "processor)"
        )
    if is_adapter(base):
        processor, tuned = mount(base)
        whole = merge_into_base(tuned)
        if reads_of(whole.config) != TEXT:
            return processor, trunk_of(base, whole)
        # A head for classes stays behind: each adapter on this base brings its own.
        return processor, whole if whole.can_generate() else whole.base_model
    source, further = resolve(base)
    try:
        settings = AutoConfig.from_pretrained(source, **further)
    except (OSError, ValueError):
        settings = None  # load_model says what is wrong
    if settings is not None and settings.model_type in WITHOUT_ADAPTERS:
        raise InputError(
            f"'{base}' is a {settings.model_type} model, which no adapter goes onto and whose states can't "
            "join a "
            "batch half-way: no base for a pool or a server. Use it by finetune.adapters.load"
        )
    if type(settings) in TASKS["forecast"].model._model_mapping and reads_of(settings) == TEXT:
        raise InputError(
            f"'{base}' is a {settings.model_type} model; of those that forecast a pool takes patchtst alone, "
            "whose head can be told from its base. Serve finished runs of it by --runs"
        )
    names = (settings.architectures if settings is not None else None) or []
    if settings is not None and (reads := reads_of(settings)) != TEXT:
        return load_trunk(base, TASKS[reads])
    # By the checkpoint's own class: as a causal model BERT would get a head of chance.
    model = next(
        (kind for ending, kind in WRITING.items() if any(name.endswith(ending) for name in names)), AutoModel
    )
    return load_model(ModelArguments(model_name_or_path=base), model)


def load_trunk(base: str, row: Task) -> tuple[Any, Any]:
    """Processor and model of a base that reads pictures, sounds or series, without a head.

    Raises:
        InputError: a model whose head can't be told from its base.
    """
    # As the task's model: an AutoModel of the same weights may have been made otherwise inside.
    processor, network = load_model(
        ModelArguments(model_name_or_path=base), row.model, reads=row.reads, trains=False, **row.config
    )
    return processor, trunk_of(base, network)


def trunk_of(base: Any, network: Any) -> Any:
    """A model that gives pictures, sounds or series a class, without its head.

    Raises:
        InputError: its head can't be told from its base.
    """
    if network.base_model is network and head_names(network):
        raise InputError(
            f"'{base}' is a {type(network).__name__}, whose base can't be run without its head: no base for "
            "a pool. Serve finished runs of it by --runs"
        )
    return network.base_model


def folders_within(base: Any) -> set[Path]:
    """The adapters' folders that a base named so holds merged: its own, and those below it."""
    if not isinstance(base, str) or not is_adapter(base):
        return set()
    return {Path(base).resolve(), *adapters_below(base)}


def figures_in(passport: dict[str, Any]) -> dict[str, list[float]]:
    """What a passport says that its adapter is worth: name → value, and the bounds of its interval. Figures
    without an interval are times and sizes.
    """
    said = passport.get("metrics")
    bounds = said.get("intervals") if isinstance(said, dict) else None
    # the file may be anybody's: what is no number is left out
    rows = {
        name: [said.get(name), *pair]
        for name, pair in (bounds.items() if isinstance(bounds, dict) else ())
        if isinstance(pair, list) and len(pair) == 2 and name != "loss"
    }
    return {
        name: row
        for name, row in rows.items()
        if all(isinstance(value, (int, float)) and math.isfinite(value) for value in row)
    }


def digest(folder: Path) -> str:
    """Hash of an adapter's weights as they stand on the disk."""
    # By content: a copy or a checkout changes the time, and a rewrite within a second may keep the size.
    return hash_file(folder / WEIGHTS)


def stamp_of(folder: Path) -> tuple[int, int]:
    """Time of change and size of an adapter's weights, zeros where there are none."""
    file = folder / WEIGHTS
    if not file.is_file():
        return 0, 0
    stat = file.stat()
    return stat.st_mtime_ns, stat.st_size


def max_length(folder: Path) -> int | None:
    """Longest input, in tokens, that the adapter was trained on; None where its folder doesn't say."""
    file = folder / ARGUMENTS
    return yaml.safe_load(file.read_text(encoding="utf-8")).get("max_length") if file.is_file() else None


def fetched(entry: str) -> tuple[str, Path]:
    """Name and folder of `name=folder`, or of `name=hub:OWNER/REPOSITORY@COMMIT`, which is fetched.

    Raises:
        InputError: neither of the two, or a hub's adapter without its commit: a branch may be another
            tomorrow.
    """
    name, _, folder = entry.partition("=")
    if not folder:
        raise InputError(f"--adapters {entry}; wanted name=folder, or name=hub:OWNER/REPOSITORY@COMMIT")
    if not folder.startswith("hub:"):
        return name, Path(folder).resolve()  # whole, so that messages to clients can leave it out
    repository, _, commit = folder.removeprefix("hub:").partition("@")
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise InputError(
            f"--adapters {entry} names no commit; wanted hub:OWNER/REPOSITORY@ and 40 hex digits"
        )
    from huggingface_hub import snapshot_download

    # No `*.bin` and no code: pickles and modules would be run on reading.
    kept = ["adapter_config.json", "*.safetensors", "*.json", "*.yaml", "*.jinja", "*.model", "*.txt"]
    try:
        return name, Path(snapshot_download(repository, revision=commit, allow_patterns=kept))
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot fetch {repository} at {commit} from the hub: {error}") from error
