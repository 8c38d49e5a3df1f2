"""What `scripts/adapter.py` can do with adapters. One row an action; each gives back the lines to print."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch

from finetune.adapters import probe
from finetune.adapters.classifier import load_classifier
from finetune.adapters.loading import base_of, labels_of, load_base, mount
from finetune.adapters.merge import MergeArguments, combine, save_merged
from finetune.adapters.weights import read_adapter
from finetune.artefacts.files import ARGUMENTS, PRIVACY
from finetune.artefacts.folder import read_artefact
from finetune.artefacts.passport import check_passport, read_passport, write_passport
from finetune.artefacts.trained_rows import save_trained_rows
from finetune.data.columns import class_ids
from finetune.data.narrowed import OwnRowsArguments
from finetune.errors import InputError
from finetune.models.processors import TEXT
from finetune.tasks.table import TASKS
from finetune.tasks.task import shown_texts

# of adapters on pictures, sounds and series too; the other formats are of texts
ASKING = ("check", "stamp", "merge", "into_base")


@dataclass
class ActionArguments:
    """What is done, to which adapters."""

    action: str = field(
        default="check", metadata={"help": ("check, stamp, import, merge, into_base, onnx, int8 or gguf.")}
    )
    adapters: list[str] = field(default_factory=list, metadata={"help": "Folders of adapters, in order."})
    output_dir: str | None = field(default=None, metadata={"help": "A new folder for the result."})
    base: str | None = field(
        default=None, metadata={"help": "Another base than the one that the adapter's passport names."}
    )
    allow_mismatch: bool = field(
        default=False, metadata={"help": "Go on where an adapter doesn't belong on the base."}
    )
    full: bool = field(
        default=False,
        metadata={"help": "check: compare every weight, where the passport holds hashes of all."},
    )
    limit: float | None = field(
        default=None,
        metadata={
            "help": (
                "Largest logit difference allowed on the probe texts (default: 1e-3 of the largest logit "
                "where it should be exact)."
            )
        },
    )
    gguf_type: str = field(default="q8_0", metadata={"help": "gguf: type of the weights, f32, f16 or q8_0."})
    probe_texts: str | None = field(
        default=None, metadata={"help": "A file, one probe text a line (default: twelve built-in ones)."}
    )


def act(
    action: ActionArguments, merge: MergeArguments, data: OwnRowsArguments | None = None
) -> Iterator[str]:
    """Lines that say what was done.

    Raises:
        InputError: an unknown action, no adapters, or what the action refuses.
    """
    if action.action not in ACTIONS:
        raise InputError(
            f"Unknown action '{action.action}'; wanted one of: {', '.join(ACTIONS)}. Set --action"
        )
    if not action.adapters:
        raise InputError("No adapters; name their folders by --adapters")
    # All of them before the first: half of a list done helps nobody.
    for folder in action.adapters:
        _want_asked(folder, action.action)
    # The one action that reads rows; the others have no use for their options.
    if action.action == "int8":
        yield from to_onnx(action, merge)
        yield accuracy_lost(action, data or OwnRowsArguments())
    else:
        yield from ACTIONS[action.action](action, merge)


def _want_asked(folder: str, action: str) -> None:
    """Actions ask a model on probe texts, those in ASKING on made-up pictures, sounds and series too.

    Raises:
        InputError: the folder's model reads something else.
    """
    if not (Path(folder) / ARGUMENTS).is_file():
        return  # of plain PEFT, or no folder, which the action says
    task = read_artefact(folder).options.get("task")
    # Alignment's runs name their trainer there: they read texts.
    reads = TASKS[task].reads if task in TASKS else TEXT
    if reads != TEXT and action not in ASKING:
        raise InputError(
            f"The run in {folder} reads {reads}, and --action {action} tries models on texts. Use it by "
            "finetune.adapters.load, write it as ONNX by `finetune export`, or read its folder as it stands "
            "by transformers and PEFT"
        )


def check(action: ActionArguments, merge: MergeArguments) -> Iterator[str]:
    """Hold each adapter to its passport on the base."""
    for folder in action.adapters:
        processor, network = load_base(folder, action.base)
        check_passport(folder, network, processor, action.allow_mismatch, full=action.full)
        # `check_passport` has let a folder without one pass, with a word in the log.
        passport = read_passport(folder) or {}
        known = ", ".join(f"{key} {passport[key]}" for key in ("task", "method") if key in passport)
        yield f"{folder} belongs on '{action.base or base_of(folder)}'" + (
            f" ({known})" if known else " as far as its files tell"
        )


def stamp(action: ActionArguments, merge: MergeArguments) -> Iterator[str]:
    """Give folders of plain PEFT a passport, after trying each on its base."""
    for folder in action.adapters:
        if read_passport(folder) is not None:
            raise InputError(f"{folder} has a passport already; --action check holds it to its base")
        processor, network = mount(folder, action.base)
        logits, counted = probe.logits_of(network, processor, texts_of(action))
        # Not-a-number on the base it is said to be of: the passport would vouch for a wrong pair.
        if not torch.isfinite(logits[counted]).all():
            raise InputError(
                f"{folder} gives values that are no numbers on its base; no passport was written"
            )
        # The bare base, so that the line tells whether the adapter does anything at all.
        with network.disable_adapter():
            plain = probe.logits_of(network, processor, texts_of(action))
        found = probe.compare_models((logits, counted), plain)
        config = network.active_peft_config
        write_passport(
            folder, network, processor, base=action.base or base_of(folder),
            method=str(config.peft_type.value).lower(),
            method_kwargs=None, task="", labels=labels_of(folder), data_fingerprint=None, metrics=None,
            full=action.full,
        )  # fmt: skip
        yield (
            f"{folder} has a passport for '{action.base or base_of(folder)}'; against the bare base: {found}"
        )


def take_in(action: ActionArguments, merge: MergeArguments) -> Iterator[str]:
    """One checkpoint of AdapterHub's library, or a fusion with its adapters → a folder of this project."""
    # Late: reading AdapterHub's format is rarely wanted.
    from finetune.adapters.adapterhub import convert
    from finetune.adapters.adapterhub_fusion import convert_fusion, is_fusion
    from finetune.adapters.export import claimed

    folder = output_of(action)
    fused = any(is_fusion(one) for one in action.adapters)
    with claimed(folder):
        if fused:
            yield from convert_fusion(action.adapters, folder, action.base)
        else:
            yield from convert(one_of(action), folder, action.base)
    # A fusion's passport is written by training alone.
    yield str(folder) if fused else f"{folder}; --action stamp gives it a passport once its base is at hand"


def add_up(action: ActionArguments, merge: MergeArguments) -> Iterator[str]:
    """Several adapters → one, probed against the sum of their changes."""
    adapters = [read_adapter(folder) for folder in action.adapters]
    merged = combine(adapters, merge)
    processor, network = load_base(merged.adapter.folder, action.base)
    for given in action.adapters:
        # Each against the bare base, before anything is put on it.
        check_passport(given, network, None, action.allow_mismatch)
    texts = texts_of(action)
    # A copy, since the sum goes into the weights themselves.
    wanted = copy.deepcopy(network)
    probe.asked_for(wanted, adapters, merge)
    folder = save_merged(merged, output_of(action))
    found = probe.compare_models(
        probe.logits_of(wanted, processor, texts),
        # Read back from its folder: what is compared is what was written.
        probe.logits_of(peft.PeftModel.from_pretrained(network, str(folder)).eval(), processor, texts),
    )
    # A sum of factors is exact; a chosen rank, TIES and DARE lose something by intent.
    exact = merge.how == "sum" and merge.rank is None
    yield f"{merge.how} of {len(adapters)} adapters: {found}"
    if not exact:
        yield f"approximate: largest relative error of a module {merged.worst:.3g}"
    _hold_or_remove(found, action, folder, exact)
    # what any of them was trained on, the sum was
    save_trained_rows(folder, of=action.adapters)
    yield str(folder)


def into_base(action: ActionArguments, merge: MergeArguments) -> Iterator[str]:
    """One adapter → a whole model without it, probed against the model with it."""
    from finetune.adapters.export import merge_into_base, save_whole

    processor, network = mount(one_of(action), action.base, action.allow_mismatch)
    texts = texts_of(action)
    # Before merging, which takes the adapter out of this very model.
    before = probe.logits_of(network, processor, texts)
    whole = merge_into_base(network)
    found = probe.compare_models(before, probe.logits_of(whole, processor, texts))
    yield f"merged into the base: {found}"
    probe.hold(
        found,
        found.exact if action.limit is None else action.limit,
        "The merged model differs from the adapter",
    )
    folder = save_whole(whole, processor, one_of(action), output_of(action))
    # a later run may start here, or prompts may be asked of it
    save_trained_rows(folder, of=[one_of(action)])
    # what a private run spent is spent in whatever is made of it
    if (spent := Path(one_of(action)) / PRIVACY).is_file():
        shutil.copy(spent, folder / PRIVACY)
    yield str(folder)


def to_onnx(action: ActionArguments, merge: MergeArguments) -> Iterator[str]:
    """One adapter merged into its base → an ONNX file, for int8 also a quantised one, checked on the probe
    texts."""
    from finetune.adapters.export import claimed, merge_into_base
    from finetune.adapters.onnx import INT8, export_onnx

    processor, network = mount(one_of(action), action.base, action.allow_mismatch)
    folder = output_of(action)
    with claimed(folder):
        for file, found in export_onnx(
            merge_into_base(network), processor, folder, action.action == "int8"
        ).items():
            yield f"{folder / file}: {found}"
            # int8 differs by intent; it says by how much, and only --limit refuses it.
            limit = float("inf") if file == INT8 else found.exact
            probe.hold(
                found, limit if action.limit is None else action.limit, f"{file} differs from the model"
            )


def accuracy_lost(action: ActionArguments, data: OwnRowsArguments) -> str:
    """Accuracy of a classifier in PyTorch, as ONNX and as int8, on the same labelled rows."""
    from finetune.adapters.assess import evaluation_rows, rows_as_trained
    from finetune.adapters.onnx import INT8, MODEL, onnx_predictions

    folder, source = output_of(action), one_of(action)
    # Columns, labels and length of the rows are in the run's own options.
    if not (Path(source) / ARGUMENTS).is_file():
        return (
            "the accuracy lost is unknown: the adapter's folder has no arguments.yaml, which says how to "
            "read labelled rows"
        )
    artefact = read_artefact(source)
    task = TASKS.get(artefact.options.get("task", ""))
    if task is None or not task.classes:
        return f"the accuracy lost is unknown: the task '{artefact.options['task']}' gives a text no class"
    classifier = load_classifier(source, allow_mismatch=action.allow_mismatch)
    rows_of = rows_as_trained(artefact, data)
    # The rows that the run was judged by, without those it has learnt.
    examined, _ = evaluation_rows(artefact, task, rows_of)
    rows, columns = examined.rows.eval, examined.columns
    texts, gold = (
        shown_texts(rows, columns),
        torch.tensor(class_ids(rows, columns.label, classifier.labels)),
    )
    plain = classifier.logits(texts).argmax(-1)
    found = {"PyTorch": plain} | {
        name: onnx_predictions(folder / file, classifier.processor, texts, classifier.max_length)
        for name, file in (("ONNX", MODEL), ("int8", INT8))
    }
    said = ", ".join(
        f"{name} {float((predicted == gold).double().mean()):.4f}" for name, predicted in found.items()
    )
    # Rounding may also gain by chance; a loss below nothing is told as none.
    gained = float((found["int8"] == gold).double().mean() - (plain == gold).double().mean())
    changed = int((plain != found["int8"]).sum())
    return (
        f"accuracy on {len(gold)} rows of '{rows_of.name}': {said}; int8 costs "
        f"{max(0.0, -100 * gained):.2f} points of it ({changed} predictions changed)"
    )


def to_gguf(action: ActionArguments, merge: MergeArguments) -> Iterator[str]:
    """One adapter merged into its base → a GGUF file, read back and compared on the probe texts."""
    from finetune.adapters.export import claimed, merge_into_base
    from finetune.adapters.gguf import FILE, export_gguf
    from finetune.adapters.modelfile import make_modelfile

    processor, network = mount(one_of(action), action.base, action.allow_mismatch)
    folder = output_of(action)
    with claimed(folder):
        found = export_gguf(merge_into_base(network), processor, folder, action.gguf_type)
        yield f"{folder / FILE} ({action.gguf_type}): {found}"
        # Rounded types differ by intent.
        limit = found.exact if action.gguf_type == "f32" else float("inf")
        probe.hold(
            found, limit if action.limit is None else action.limit, "The GGUF file differs from the model"
        )
    # After the folder is claimed: a model without a template for Ollama is still a model.
    try:
        (folder / "Modelfile").write_text(make_modelfile(processor, FILE), encoding="utf-8")
        yield f"{folder / 'Modelfile'}: its chats equal the tokenizer's template on every probe chat"
    except InputError as error:
        yield f"no Modelfile: {error}"


def one_of(action: ActionArguments) -> str:
    if len(action.adapters) != 1:
        raise InputError(
            f"--action {action.action} takes one adapter; got {len(action.adapters)}. Merge them first"
        )
    return action.adapters[0]


def output_of(action: ActionArguments) -> Path:
    if action.output_dir is None:
        raise InputError(f"--action {action.action} writes a folder; set --output_dir")
    return Path(action.output_dir)


def texts_of(action: ActionArguments) -> list[str]:
    if action.probe_texts is None:
        return list(probe.PROBES)
    try:
        texts = [
            line for line in Path(action.probe_texts).read_text(encoding="utf-8").splitlines() if line.strip()
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read {action.probe_texts}, named by --probe_texts: {error}") from error
    if not texts:
        raise InputError(f"{action.probe_texts} holds no text; wanted one a line")
    return texts


def _hold_or_remove(found: probe.Probe, action: ActionArguments, folder: Path, exact: bool) -> None:
    # --limit counts everywhere; what is approximate by intent has none of its own.
    limit = action.limit if action.limit is not None else found.exact if exact else float("inf")
    try:
        probe.hold(found, limit, "The merged adapter differs from the sum of the changes")
    # A folder that isn't what was asked for would be loaded all the same.
    except InputError:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        raise


ACTIONS: dict[str, Callable[[Any, Any], Iterator[str]]] = {
    "check": check, "stamp": stamp, "import": take_in, "merge": add_up, "into_base": into_base,
    "onnx": to_onnx, "int8": to_onnx,
    "gguf": to_gguf,
}  # fmt: skip
