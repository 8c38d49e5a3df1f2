"""What an adapter belongs to: `passport.json` beside its weights, written by training, checked by whatever
loads the folder.

Knows a base's weights, its tokenizer and the adapter's own files; knows no task's rows and no training. An
adapter's own configuration holds no trace of the base's weights: on another base of the same shape it loads
without a word, and is wrong.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from finetune.artefacts.bounds import check_bounds, read_json
from finetune.artefacts.files import write_atomically
from finetune.artefacts.hashes import (
    SAMPLES,
    architecture_of,
    bare_base,
    hash_file,
    hash_processor,
    hash_weights,
)
from finetune.errors import InputError
from finetune.methods import HEAD_TASKS, head_names
from finetune.models.pruned import KEPT

logger = logging.getLogger(__name__)

PASSPORT, CONFIG, WEIGHTS = "passport.json", "adapter_config.json", "adapter_model.safetensors"
STACK = ("torch", "transformers", "peft")


def write_passport(
    folder: str | Path,
    network: Any,
    processor: Any,
    *,
    base: str,
    method: str,
    method_kwargs: dict[str, Any] | None,
    task: str,
    labels: Sequence[str] | None,
    data_fingerprint: str | None,
    metrics: dict[str, Any] | None,
    full: bool = False,
) -> dict[str, Any]:
    """Write `passport.json` into the folder that the adapter was saved in, and give it back.

    Args:
        network: the trained model, still with its adapter on the base (or a fully tuned model).
        base: the base's name, as `--model_name_or_path` takes it; of an adapter over another one, the
            folder of that one.
        data_fingerprint: of the training rows.
        full: hash every weight of the base, not a sample of each tensor (seconds for each billion of
            weights).
    """
    tuned_whole = not isinstance(network, PeftModel)
    passport = {
        "base": base,
        # what stands on an adapter can be told to do so without that one merged into its base
        **({"below": hash_file(Path(base).expanduser() / WEIGHTS)} if is_adapter(base) else {}),
        # a fully tuned model is its own base: what it started from isn't there any more
        "weights": None if tuned_whole else hash_weights(network),
        "all_weights": hash_weights(network, samples=None) if full and not tuned_whole else None,
        "architecture": architecture_of(network),
        "dtype": str(bare_base(network).dtype).removeprefix("torch."),
        **hash_processor(processor),
        "method": method,
        "method_kwargs": method_kwargs or {},
        "task": task,
        "labels": None if labels is None else list(labels),
        "heads": [] if tuned_whole else _trained_heads(network),
        "data": data_fingerprint,
        "metrics": metrics or {},
        "versions": {name: version(name) for name in STACK},
        **({KEPT: kept} if (kept := bare_base(network).config.to_dict().get(KEPT)) else {}),
    }
    passport = json.loads(json.dumps(passport, default=str))
    write_atomically(Path(folder) / PASSPORT, json.dumps(passport, indent=1, ensure_ascii=False))
    return passport


def read_passport(folder: str | Path) -> dict[str, Any] | None:
    """The passport in a folder, or None where there is none (plain PEFT wrote it).

    Raises:
        InputError: it can't be read.
    """
    path = Path(folder) / PASSPORT
    if not path.is_file():
        return None
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}; wanted what training wrote")
    return content


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter, and not a whole model."""
    return (Path(folder).expanduser() / CONFIG).is_file()


def base_named(folder: str | Path) -> str | None:
    """Name of the base that an adapter belongs on: the passport's word, else PEFT's own."""
    # PEFT's own word is a path of the training machine where none was given.
    name = (read_passport(folder) or {}).get("base") or check_files(folder).get("base_model_name_or_path")
    return str(name) if name else None


def adapters_below(folder: str | Path) -> list[Path]:
    """The adapters that a folder's adapter stands on, nearest first: its base is named and is an adapter's
    folder itself.

    PEFT's folders say so where training began from a mounted adapter (DPO over a chat model's LoRA).

    Raises:
        InputError: they go round in a circle.
    """
    found: list[Path] = []
    here = Path(folder)
    while name := base_named(here):
        # As it stands first, then beside the adapter: both folders may have been moved together.
        places = [Path(name).expanduser(), here / name]
        # Only where it is known to stand on one: a run is often called as the base that its neighbours name.
        if "below" in (read_passport(here) or {}):
            places.append(here.resolve().parent / Path(name).name)
        below = next((place.resolve() for place in places if is_adapter(place)), None)
        if below is None:
            break
        if below in (*found, Path(folder).resolve()):
            raise InputError(f"{folder} stands on {below}, which stands on itself: no base comes first")
        found.append(below)
        here = below
    return found


def check_passport(
    folder: str | Path,
    network: Any,
    processor: Any,
    allow_mismatch: bool | None = None,
    *,
    full: bool = False,
    required: bool = False,
    below: Path | None = None,
) -> None:
    """Refuse an adapter that doesn't belong on this base, with this tokenizer, or that lost its head.

    Args:
        network: the base with or without adapters on it, none of them merged.
        processor: its tokenizer; None leaves that check out.
        allow_mismatch: say what differs in the log, and go on; None: there is no such option where this is
            called.
        full: compare every weight, where the passport holds hashes of all.
        required: refuse a folder without passport.
        below: the adapter that it stands on, where that one isn't merged into `network`: its file is
            compared in place of the base's weights, on which it is checked itself.

    Raises:
        InputError: names what differs.
    """
    check_files(folder)
    passport = read_passport(folder)
    if passport is None and required:
        raise InputError(
            f"{folder} has no {PASSPORT}, and --require_passport is set; give it one by scripts/adapter.py "
            "--action "
            "stamp"
        )
    if passport is None:
        logger.warning("%s has no %s: nothing tells whether it belongs on this base", folder, PASSPORT)
        faults = _missing_heads(Path(folder), {})
    else:
        faults = differences(passport, network, processor, full, below)
        faults += _missing_heads(Path(folder), passport)
    if not faults:
        return
    belongs = f" It was trained on '{passport.get('base')}'." if passport else ""
    message = f"The adapter in {folder} does not fit: {'; '.join(faults)}.{belongs}"
    if not allow_mismatch:
        insist = "" if allow_mismatch is None else "; --allow_mismatch insists"
        raise InputError(f"{message} Load it on what it belongs to{insist}")
    logger.warning("%s Loaded all the same (--allow_mismatch)", message)


def differences(
    passport: dict[str, Any], network: Any, processor: Any, full: bool = False, below: Path | None = None
) -> list[str]:
    """What differs between a passport and a base with its tokenizer, each in words; empty where all is as in
    training."""
    found = []
    here, there = architecture_of(network), passport.get("architecture") or {}
    changed = [
        f"{key} {there[key]} in training, {here.get(key)} here"
        for key in there
        if here.get(key) != there[key]
    ]
    if changed:
        found.append("another architecture (" + ", ".join(changed) + ")")
    if below is None or "below" not in passport:
        found += _different_weights(passport, network, full)
    elif passport["below"] != hash_file(below / WEIGHTS):
        found.append(f"the adapter in {below}, on which it stands, has changed since")
    if processor is not None:
        names = {"tokenizer": "another tokenizer", "chat_template": "another chat template"}
        now = hash_processor(processor)
        found += [words for key, words in names.items() if key in passport and passport[key] != now.get(key)]
    config = bare_base(network).config
    labels = passport.get("labels")
    if labels and type(bare_base(network)).__name__.endswith("Classification"):
        mine = [config.id2label[i] for i in sorted(config.id2label)]
        if mine != labels:
            found.append(f"other labels ({', '.join(labels)} in training, {', '.join(map(str, mine))} here)")
    return found


def check_files(folder: str | Path) -> dict[str, Any]:
    """The adapter's configuration, after refusing a folder that could run code or that PEFT would take for
    something else.

    Raises:
        InputError: no adapter, a pickle in place of safetensors, damaged files, or a configuration that names
            foreign code.
    """
    path = Path(folder)
    if not is_adapter(path):
        state = "holds no adapter_config.json" if path.is_dir() else "does not exist"
        raise InputError(f"{path} is no adapter: it {state}. Wanted an output folder of training, or of PEFT")
    config = read_json(path / CONFIG)
    if not isinstance(config, dict) or "peft_type" not in config:
        raise InputError(f"{path / CONFIG} names no peft_type; wanted the configuration that PEFT saved")
    mapping = config.get("auto_mapping")
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    # This project's own families, as DLinear, lie in one of its rooms.
    ours = isinstance(library, str) and library.startswith("finetune.models.")
    if mapping and not (ours or (isinstance(library, str) and library.split(".")[0] == "transformers")):
        raise InputError(
            f"{path / CONFIG} has an auto_mapping to '{library}'; wanted one of transformers' models or of "
            "finetune's own"
        )
    if config.get("megatron_config"):
        raise InputError(
            f"{path / CONFIG} has a megatron_config, which names a module to import; wanted null"
        )
    if not (path / WEIGHTS).is_file():
        raise InputError(
            f"{path} has no {WEIGHTS}; pickled weights (.bin, .pt) are not opened. Save the adapter again "
            "by PEFT"
        )
    check_bounds(path / CONFIG, config)
    _names(path)
    return config


def _different_weights(passport: dict[str, Any], network: Any, full: bool) -> list[str]:
    key, samples = ("all_weights", None) if full and passport.get("all_weights") else ("weights", SAMPLES)
    if full and samples:
        logger.warning(
            "The passport has no hashes of all weights (written without `full`); comparing a sample of each "
            "tensor"
        )
    there = passport.get(key)
    if not there:
        return []
    here = hash_weights(network, samples)
    if not set(here) & set(there):
        return [f"another base (none of its {len(there)} weights is here)"]
    missing = sorted(set(there) - set(here)) if len(here) < len(there) else []
    changed = sorted(name for name in set(there) & set(here) if there[name] != here[name])
    if not changed:
        return [f"another base ({len(missing)} weights are missing, as {missing[0]})"] if missing else []
    dtypes = passport.get("dtype"), str(bare_base(network).dtype).removeprefix("torch.")
    hint = (
        f"; trained in {dtypes[0]}, loaded in {dtypes[1]}"
        # Half precision rounds weights on loading, which alone may make hashes differ.
        if "float16" in dtypes and dtypes[0] != dtypes[1]
        else ""
    )
    return [f"other base weights ({len(changed)} of {len(there)} tensors differ, as {changed[0]}{hint})"]


def _trained_heads(network: PeftModel) -> list[str]:
    """Heads that were trained along with the adapter and must come with it."""
    wanted = (
        set(head_names(network.get_base_model()))
        if isinstance(network.get_base_model(), PreTrainedModel)
        else set()
    )
    saved = (
        vars(network.peft_config[network.active_adapter])["modules_to_save"]
        if _keeps_modules(network)
        else None
    )
    return sorted(wanted & set(saved or ()))


def _keeps_modules(network: PeftModel) -> bool:
    return "modules_to_save" in network.peft_config[network.active_adapter].to_dict()


def _names(folder: Path) -> list[str]:
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(f"Cannot read {folder / WEIGHTS}: {error}. Save the adapter again") from error


def _missing_heads(folder: Path, passport: dict[str, Any]) -> list[str]:
    """Heads that the adapter's weights lack: a fresh one would be made up in its place."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    kept = (
        passport.get("heads")
        or (config.get("modules_to_save") if config.get("task_type") in HEAD_TASKS else None)
        or []
    )
    parts = {part for name in _names(folder) for part in name.split(".")}
    if passport.get("heads"):
        return [f"its head '{head}' is missing from {WEIGHTS}" for head in kept if head not in parts]
    # PEFT names every head that any family may have: one of them is enough
    return (
        [f"its head (one of {', '.join(kept)}) is missing from {WEIGHTS}"]
        if kept and not parts & set(kept)
        else []
    )
