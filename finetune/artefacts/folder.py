"""A trained model ↔ its folder: the only interface between training and everything after it.

Holds weights (safetensors), tokenizer, `arguments.yaml` (every option as resolved), `metrics.json`,
`labels.json`. Knows files; knows no training.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedTokenizerBase

from finetune.artefacts.files import ARGUMENTS, METRICS, RUN, write_atomically
from finetune.artefacts.passport import adapters_below, base_named, is_adapter, write_passport
from finetune.errors import InputError
from finetune.packaged import hub_name
from finetune.reports.page import leave_behind

LABELS_FILE = "labels.json"


@dataclass(frozen=True)
class Artefact:
    """What a folder says of itself, without its weights."""

    folder: Path
    options: dict[str, Any]
    labels: list[str] | None
    metrics: dict[str, Any]

    @property
    def is_adapter(self) -> bool:
        return is_adapter(self.folder)

    @property
    def base(self) -> str:
        """What an adapter stands on; a run that trained on another's adapter names that."""
        named = base_named(self.folder) if self.is_adapter else None
        return named or str(self.options["model_name_or_path"])

    @property
    def source(self) -> str:
        """Where its model is loaded from: the folder itself where all weights were trained, else the base,
        which is no adapter's folder."""
        if self.is_adapter and (below := adapters_below(self.folder)):
            return base_named(below[-1]) or self.base
        return self.base if self.is_adapter or self.is_fusion else str(self.folder)

    @property
    def is_fusion(self) -> bool:
        return (self.folder / "fusion.json").is_file()


def resolved_options(*groups: Any) -> dict[str, Any]:
    """Every option of all groups as plain values, in one flat mapping that `--config` takes again."""
    options: dict[str, Any] = {}
    for group in groups:
        values = group.to_dict() if hasattr(group, "to_dict") else vars(group)
        # Computed fields would be refused by `--config`, which takes what can be set.
        names = {f.name for f in fields(group) if f.init}
        options |= {
            k: _plain(v)
            for k, v in values.items()
            # Tokens of the hub are secrets; the folder is shared.
            if k in names and v is not None and "token" not in k.split("_")
        }
    return options


def _plain(value: Any) -> Any:
    # Through JSON: enumerations, paths and the like become what YAML writes plainly.
    return json.loads(json.dumps(value, default=str))


def save_artefact(
    network: Any,
    processor: PreTrainedTokenizerBase,
    folder: Path | str,
    labels: list[str] | None,
    metrics: dict[str, Any],
    *,
    went_on: bool = False,
) -> None:
    """Write weights, tokenizer, passport, label names and figures; `metrics.json` comes last and marks the
    run as finished. Its page and card are made of these files.

    Call on the main process only, with the unwrapped model. `arguments.yaml` and `run.json` stand there since
    `open_run`.

    Args:
        went_on: whether an adapter that the run began with is the one that was trained. Otherwise it is a
            part of the base, and a new one stands on it.
    """
    folder = Path(folder)
    # A model that was tuned whole has no such thing.
    if hasattr(network, "peft_config"):
        _save_adapter(network, folder)
    else:
        network.save_pretrained(folder)
    if getattr(processor, "is_fast", False):  # what the last call asked for, which a warm cache leaves out
        processor.backend_tokenizer.no_truncation()
        processor.backend_tokenizer.no_padding()
    processor.save_pretrained(folder)
    options = yaml.safe_load((folder / ARGUMENTS).read_text(encoding="utf-8"))
    # Made from a configuration alone, it has no base.
    named = options.get("from_config") or options["model_name_or_path"]
    started = Path(named).expanduser()
    # The adapter that training went on with names the base below it.
    base = base_named(started) if went_on and is_adapter(started) else None
    write_passport(
        folder, network, processor, base=base or named,
        method=options.get("method", "full"),
        method_kwargs=options.get("method_kwargs"), task=options.get("task", ""), labels=labels,
        data_fingerprint=json.loads((folder / RUN).read_text(encoding="utf-8"))["data"], metrics=metrics,
    )  # fmt: skip
    # After the passport, which names the same base.
    _make_portable(folder, hub_name(base or named))
    if labels is not None:
        write_atomically(folder / LABELS_FILE, json.dumps(labels, ensure_ascii=False))
    write_atomically(folder / METRICS, json.dumps(metrics, indent=1))
    leave_behind(folder)


def _save_adapter(network: Any, folder: Path) -> None:
    """PEFT's files without its model card: an empty form that names the base by this machine's path."""
    card = folder / "README.md"
    before = card.read_bytes() if card.is_file() else None
    # Without the embeddings, which PEFT saves whole where the tokenizer has grown.
    network.save_pretrained(folder, save_embedding_layers=False)
    if before is None:
        card.unlink(missing_ok=True)
    else:
        # A README that stood there is put back: it may be the user's own.
        card.write_bytes(before)


def _make_portable(folder: Path, base: str) -> None:
    """A folder that another machine and another user can read: PEFT names the base by where it lay on this
    machine, and weights are written for their owner alone."""
    file = folder / "adapter_config.json"
    if file.is_file():
        config = json.loads(file.read_text(encoding="utf-8"))
        write_atomically(
            file, json.dumps(config | {"base_model_name_or_path": base}, indent=2, sort_keys=True)
        )
    # As others' files are: the run may be read by another user.
    mode = (folder / ARGUMENTS).stat().st_mode & 0o777  # as this user's files are
    for weights in folder.glob("*.safetensors"):
        weights.chmod(mode)


def read_artefact(folder: str | Path) -> Artefact:
    """What a folder says of itself.

    Raises:
        InputError: no folder, or one that no training script wrote.
    """
    path = Path(folder)
    if not (path / ARGUMENTS).is_file():
        state = "holds no arguments.yaml" if path.is_dir() else "does not exist"
        raise InputError(f"{path} is no artefact: it {state}; wanted the --output_dir of a training script")
    # Figures come last, so that a folder with them is whole.
    if not (path / METRICS).is_file():
        raise InputError(
            f"The run in {path} is unfinished (no metrics.json); start its command again to finish it"
        )
    labels = path / LABELS_FILE
    return Artefact(
        path,
        yaml.safe_load((path / ARGUMENTS).read_text(encoding="utf-8")),
        json.loads(labels.read_text(encoding="utf-8")) if labels.is_file() else None,
        json.loads((path / METRICS).read_text(encoding="utf-8")),
    )
