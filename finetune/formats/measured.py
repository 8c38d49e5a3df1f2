"""A run → files of several formats, each answering the same rows in a process of its own: what it costs.

Knows artefacts, formats and processes; trains nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from finetune.adapters.assess import evaluation_rows, rows_as_trained, trained_as
from finetune.adapters.classifier import load_network
from finetune.adapters.export import merge_into_base
from finetune.artefacts.folder import Artefact, read_artefact
from finetune.artefacts.hashes import hash_file
from finetune.artefacts.trained_rows import unseen_rows
from finetune.data.sources import Rows
from finetune.errors import InputError
from finetune.formats.finished import Export, Failed, Finished
from finetune.formats.options import ExportArguments, ExportRowsArguments
from finetune.formats.table import FORMATS, WHOLE, Exportable, FileFormat, find_formats
from finetune.loss import IGNORED
from finetune.metrics.bootstrap import mean_figure
from finetune.metrics.measure import Measure, mean_of
from finetune.models.processors import TEXT
from finetune.tasks.task import Examined, Task

logger = logging.getLogger(__name__)
COUNTED = ("classification", "pairs", "sft", "image", "audio", "series")
UNREAD = {"labels", "row", "attention_mask", "samples"}  # of a batch of one, by models
LEAST = 2  # tokens of a row: a program for any length is not one for length 1


@dataclass(frozen=True)
class Questions:
    """Rows as models take them, ready for any runtime, and what is right at each labelled place.

    Attributes:
        inputs: by the model's own names, an array (or list of ids) a row, [time], [channels, height, width],
            ...; a mask of padding is left out, as rows are asked one at a time.
        left_out: rows that are not among these, as a run was trained on them.
    """

    inputs: dict[str, Sequence[Any]]
    labels: list[list[int]]
    left_out: int = 0

    @property
    def longest(self) -> int:
        return max(map(len, next(iter(self.inputs.values()))))

    @property
    def gold(self) -> np.ndarray:
        """Labels that count, all rows' in one line."""
        flat = np.concatenate([np.asarray(one) for one in self.labels])
        # prompts and padding have no label that counts
        return flat[flat != IGNORED]

    @property
    def example(self) -> dict[str, torch.Tensor]:
        """The first row by itself, [1, ...] each."""
        return {name: torch.tensor(np.asarray(rows[0]))[None] for name, rows in self.inputs.items()}

    @property
    def digest(self) -> str:
        """What tells these rows, as they are read, from others."""
        found = hashlib.sha256()
        for rows in (*self.inputs.values(), self.labels):
            for one in map(np.asarray, rows):
                # the shape too: cut elsewhere, the same numbers are other rows
                found.update(f"{one.shape}".encode() + one.tobytes())
        return found.hexdigest()

    def save(self, file: Path) -> None:
        """As `runtimes.read_rows` takes them."""
        # rows of unlike lengths in one line, as NumPy's files hold no ragged arrays without pickle
        held = {f"of {name}": rows for name, rows in self.inputs.items()} | {"labels": self.labels}
        np.savez(
            file,
            **{name: np.concatenate([np.asarray(one) for one in rows]) for name, rows in held.items()},
            **{f"{name} start": np.cumsum([0, *map(len, rows)]) for name, rows in held.items()},
        )


def export_all(export: ExportArguments, data: ExportRowsArguments) -> Iterator[Export | Failed]:
    """Each format's file in a folder of its name, with what it costs; float32 comes first. Formats that were
    done when an earlier call ended are read back; one that the model can't be written in, or whose runtime
    ends, is told, and the others go on.

    Raises:
        InputError: no artefact, a task without classes or tokens to count, a folder that holds something
            else, a format by name that the installation can't have, float32 that fails, runs beside it of
            other classes.
    """
    if export.artefact is None:
        raise InputError("No artefact; set --artefact to the --output_dir of a training script")
    formats, artefact = find_formats(export.to), read_artefact(export.artefact)
    row = counted_task(artefact)
    others = [read_artefact(folder) for folder in export.beside]
    found, left_out = _rows(artefact, row, others, data)
    processor, network = whole_network(artefact, row, export.allow_mismatch)
    asked = replace(questions(artefact, row, found, processor), left_out=left_out)
    folder = Path(export.output_dir or Path(export.artefact) / "exports")
    what = exportable(network, processor, row, asked)
    # refused if it holds something else
    finished = Finished.begin(folder, _compared(artefact, asked))
    try:
        for name in formats:
            # float32 is always measured, but written only where it was asked for
            keep = name in export.to or "all" in export.to or name != WHOLE
            one: Export | Failed | None = finished.read(name, keep)
            if one is None:
                one = _tried(name, what, folder / name if keep else None, row, asked)
                if isinstance(one, Export):
                    finished.write(one)
            yield one
        for other in others:
            yield _beside(other, artefact, found, asked, export.allow_mismatch)
    finally:
        # what was refused leaves no folder that the next run would take for somebody's
        finished.remove_if_empty()


def _compared(artefact: Artefact, asked: Questions) -> dict[str, Any]:
    """What must be the same for figures to stand in one table."""
    weights = [hash_file(one) for one in sorted(artefact.folder.glob("*.safetensors"))]
    return {"weights": weights, "rows": asked.digest, "threads": torch.get_num_threads()}


def counted_task(artefact: Artefact) -> Task:
    """The row of a run whose answers can be counted place by place, whatever computes the logits.

    Raises:
        InputError: another task.
    """
    row, _ = trained_as(artefact)
    if artefact.options["task"] not in COUNTED:
        raise InputError(
            f"{artefact.folder} holds the task '{artefact.options['task']}'; exports are measured for one "
            "class a row (classification, pairs, image, audio, series) and for language models (sft)"
        )
    return row


def whole_network(artefact: Artefact, row: Task, allow_mismatch: bool = False) -> tuple[Any, Any]:
    """Tokenizer and network of a run, its adapter merged into the base."""
    processor, network = load_network(artefact, allow_mismatch, row)
    if artefact.is_fusion:
        raise InputError(f"{artefact.folder} is a fusion of adapters, which no weight of the base can hold")
    return processor, (merge_into_base(network) if artefact.is_adapter else network.eval())


def _rows(
    artefact: Artefact, row: Task, others: list[Artefact], data: ExportRowsArguments
) -> tuple[Examined, int]:
    found, left_out = evaluation_rows(artefact, row, rows_as_trained(artefact, data))
    kept = found.rows.eval
    for other in others:
        if other.labels != artefact.labels:
            raise InputError(
                f"{other.folder} tells {other.labels} apart and {artefact.folder} {artefact.labels}; wanted "
                "the same classes in --beside"
            )
        # rows that any of the runs was trained on would favour it
        kept, count = unseen_rows(other.folder, kept, found.columns)
        left_out += count
    return found._replace(rows=Rows(kept, kept, found.rows.name)), left_out


def exportable(network: Any, processor: Any, row: Task, asked: Questions) -> Exportable:
    """What is written, for rows such as these."""
    example = None if row.reads == TEXT else asked.example
    return Exportable(network, processor, asked.longest, "token_type_ids" in asked.inputs, example)


def questions(artefact: Artefact, row: Task, found: Examined, processor: Any) -> Questions:
    """The rows as the run's tokenizer or processor reads them."""
    _, options = trained_as(artefact)
    features: Dataset = row.encode(
        found.rows.eval, found.columns, processor, options.max_length, found.labels
    )
    # in the order of rows, whichever way a task makes features
    features = features.select(np.argsort(features["row"][:], kind="stable"))
    if row.reads != TEXT:
        return _of_batches(features, row, processor)
    ids = features["input_ids"][:]
    long = [place for place, one in enumerate(ids) if len(one) >= LEAST]
    if len(long) < len(ids):
        logger.warning("%d of %d rows have one token and are left out", len(ids) - len(long), len(ids))
        features = features.select(long)
    labels = features["labels"][:]
    inputs = {
        name: features[name][:] for name in ("input_ids", "token_type_ids") if name in features.column_names
    }
    return Questions(inputs, [one if isinstance(one, list) else [one] for one in labels])


def _of_batches(features: Dataset, row: Task, processor: Any) -> Questions:
    """Pictures, sounds and series as a batch of one holds each, without what tells padding apart."""
    collate = row.collate(processor)
    inputs: dict[str, list[np.ndarray]] = {}
    labels = []
    for one in features:
        batch = collate([one])
        labels.append(batch["labels"].tolist())
        for name in batch.keys() - UNREAD:
            inputs.setdefault(name, []).append(batch[name][0].numpy())
    return Questions(inputs, labels)


def want_kind(name: str, what: Exportable, row: Task) -> None:
    """The format holds models of this kind of input.

    Raises:
        InputError: it holds models of texts alone.
    """
    if FORMATS[name].texts and what.example is not None:
        raise InputError(
            f"'{name}' holds models of texts; one that reads {row.reads} goes into float32, bf16, int8, int4 "
            "or onnx. Set --to"
        )


def _tried(name: str, what: Exportable, folder: Path | None, row: Task, asked: Questions) -> Export | Failed:
    try:
        return _exported(name, what, folder, row, asked)
    # whatever a writer or a runtime says of a model that it doesn't take: the other formats go on
    except Exception as error:
        # the others are compared with it
        if name == WHOLE:
            raise
        said = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        return Failed(name, said.strip().splitlines()[0])


def _exported(name: str, what: Exportable, folder: Path | None, row: Task, asked: Questions) -> Export:
    """Write one format and ask its file."""
    format_ = FORMATS[name]
    if not format_.is_installed:
        raise InputError(
            f"{format_.needs} is not installed (pip install 'finetune-and-prompt[{format_.extra}]')"
        )
    want_kind(name, what, row)
    with tempfile.TemporaryDirectory() as scratch:
        place = folder or Path(scratch) / name
        # half of one whose process was killed
        if place.exists():
            _remove(place)
        place.mkdir(parents=True)
        try:
            file = format_.write(what, place)
            found = ask_file(format_, file, row, asked)
        # also on Ctrl-C: half a file must not pass for one
        except BaseException:
            _remove(place)
            raise
        # weights alone: a tokenizer weighs the same in every format
        size = sum(one.stat().st_size for one in place.rglob("*") if _is_weight(one)) / 2**20
        if folder is not None:
            what.processor.save_pretrained(folder)
    return _counted(name, file if folder else None, size, found, asked)


def _is_weight(file: Path) -> bool:
    return file.suffix in (".safetensors", ".onnx", ".data", ".gguf", ".pte")


def _remove(folder: Path) -> None:
    # deepest first, as a folder must be empty to go
    for one in sorted(folder.rglob("*"), reverse=True):
        one.rmdir() if one.is_dir() else one.unlink()
    folder.rmdir()


def ask_file(format_: FileFormat, file: Path, row: Task, asked: Questions) -> Mapping[str, np.ndarray]:
    """What a file's own runtime answers to rows, in a process of its own: `said`, `nats`, `milliseconds`,
    `processor`, `memory`.

    Raises:
        InputError: the runtime doesn't read the file.
    """
    with tempfile.TemporaryDirectory() as scratch:
        rows, answers, spec = (Path(scratch) / one for one in ("rows.npz", "answers.npz", "spec.json"))
        asked.save(rows)
        settled = {
            "runtime": format_.runtime, "file": str(file), "rows": str(rows), "answers": str(answers),
            "model": row.model.__name__, "longest": asked.longest,
            "threads": torch.get_num_threads(),
        }  # fmt: skip
        spec.write_text(json.dumps(settled), encoding="utf-8")
        command = [sys.executable, "-m", "finetune.formats.runtimes", str(spec)]
        # a process of its own: its peak memory is the runtime's, and its crash is not ours
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not answers.is_file():
            # a runtime that crashes says nothing: the signal is all that there is to tell
            ended = signal.Signals(-done.returncode).name if done.returncode < 0 else None
            said = f"ended by {ended}" if ended else f"status {done.returncode}"
            if ended is None and done.stderr.strip():
                said = done.stderr.strip().splitlines()[-1]
            raise InputError(f"{format_.runtime} does not read {file.name}: {said}")
        with np.load(answers, allow_pickle=False) as held:
            return dict(held)


def _counted(
    name: str, file: Path | None, size: float, found: Mapping[str, np.ndarray], asked: Questions
) -> Export:
    hits = (found["said"] == asked.gold).astype(np.float64)
    items = np.array([sum(label != IGNORED for label in one) for one in asked.labels])
    # one label a row: hits are rows
    if (items == 1).all():
        right = mean_of(hits)
    else:
        # hits by row, which the interval resamples: tokens of a text depend on each other
        sums = np.add.reduceat(hits, np.cumsum([0, *items[:-1]]))
        right = Measure(np.stack([sums, items], axis=1), mean_figure)
    return Export(
        name, file, size, float(np.median(found["milliseconds"])), float(np.median(found["processor"])),
        float(found["memory"]), found["said"], right, float(found["nats"].sum() / items.sum()),
        asked.left_out,
    )  # fmt: skip


def _beside(
    other: Artefact, first: Artefact, found: Examined, asked: Questions, allow_mismatch: bool
) -> Export:
    """Another run on the same rows, in float32.

    Raises:
        InputError: its tokenizer makes other labels of them.
    """
    row = counted_task(other)
    processor, network = whole_network(other, row, allow_mismatch)
    own = replace(questions(other, row, found, processor), left_out=asked.left_out)
    # accuracies of other labels don't compare
    if own.labels != asked.labels:
        raise InputError(
            f"{other.folder} reads the rows as other tokens than {first.folder}, so that they can't be "
            "counted together; wanted the same tokenizer and --max_length"
        )
    what = exportable(network, processor, row, own)
    return replace(_exported(WHOLE, what, None, row, own), name=other.folder.name)
