"""Secrets that are planted among training rows, and how much likelier a model finds them than others (Carlini
et al. 2019). Knows rows and columns; knows no attack.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset

from finetune.artefacts.files import write_atomically
from finetune.audit.options import CanaryArguments
from finetune.audit.scores import costs
from finetune.audit.subject import Attacked
from finetune.data.columns import Columns
from finetune.data.sources import DataArguments
from finetune.errors import InputError
from finetune.metrics.membership import exposure
from finetune.tasks.table import find_task

CANARIES = "canaries.json"
COPIES = (1, 4, 16)
DIGITS = 6
SEED = 9  # of the secrets that a canary is ranked among
OWNERS = (
    "Ada",
    "Bruno",
    "Chiara",
    "Dilek",
    "Emil",
    "Farah",
    "Goran",
    "Hana",
    "Ines",
    "Jonas",
    "Kofi",
    "Lena",
)


WRITTEN = Columns("text", None, "label")  # of a canary's row


def secret(rng: np.random.Generator) -> str:
    """Digits apart from each other, so that every tokenizer reads them one by one."""
    return " ".join(map(str, rng.integers(0, 10, DIGITS)))


def written(canary: dict[str, Any], one: str) -> dict[str, Any]:
    """The row of a canary with a secret in it: behind its text, or as what is learnt where that is a text."""
    if canary["learnt"]:
        return {"text": canary["text"], "label": f" {one}"}
    return {"text": f"{canary['text']} {one}", "label": canary["label"]}


def plant(told: CanaryArguments, data: DataArguments, output_dir: str | None, seed: int = 0) -> Path:
    """Training rows with canaries among them, evaluation rows as they were, and canaries.json apart: a folder
    to train on as --dataset_name.

    Raises:
        InputError: no folder, one that is there already, or rows of a task that has no text and one answer.
    """
    if output_dir is None:
        raise InputError("No folder for the planted rows; set --output_dir")
    # never into a folder that is there: canaries among rows of an earlier plant would be counted wrongly
    folder = Path(output_dir)
    if folder.exists():
        raise InputError(f"{folder} is there already; set --output_dir to a new folder")
    row = find_task(told.plant_task)
    # read and checked as in training, which then meets the same rows
    found = row.examine(row.load(data), data)
    columns, train = found.columns, found.rows.train
    value = train[0][columns.label]
    if (
        columns.inputs != (columns.text,)
        or not isinstance(value, (int, str))
        or columns.text == columns.label
    ):
        raise InputError(
            f"Canaries go into rows of one text and one label or completion; the task '{told.plant_task}' "
            f"reads {', '.join((*columns.inputs, columns.label))} here. Set --plant_task and --text_column"
        )
    # one generator for secrets and order: a seed gives the same folder
    rng = np.random.default_rng(seed)
    # without classes what is learnt is a text, and the secret goes there
    learnt = found.labels is None
    canaries = []
    for number in range(told.plant):
        # each canary has an owner of its own, else two would teach one prefix two secrets
        name = OWNERS[number % len(OWNERS)] + ("" if number < len(OWNERS) else f" the {number}th")
        canaries.append(
            {"text": f"The secret code of {name} is", "secret": secret(rng),
             "copies": COPIES[number % len(COPIES)], "learnt": learnt,
             "label": None if learnt else str(found.labels[number % len(found.labels)])}
        )  # fmt: skip
    folder.mkdir(parents=True)
    names = ("prompt", "completion") if learnt else ("text", "label")
    lines = [_line(one, columns, names) for one in _plain(train, columns)]
    for canary in canaries:
        # repeated by their copies, which the exposure is held against
        lines += [_line(written(canary, canary["secret"]), WRITTEN, names)] * canary["copies"]
    # else the canaries would stand together at the end
    rng.shuffle(lines)
    # apart, since a data set's folder is read for rows and canaries.json holds none
    (folder / "data").mkdir()
    write_atomically(folder / "data" / "train.jsonl", "\n".join(lines) + "\n")
    held = [_line(one, columns, names) for one in _plain(found.rows.eval, columns)]
    write_atomically(folder / "data" / "test.jsonl", "\n".join(held) + "\n")
    write_atomically(folder / CANARIES, json.dumps(canaries, indent=1))
    return folder


def _plain(rows: Dataset, columns: Any) -> list[dict[str, Any]]:
    feature = rows.features[columns.label]
    # JSON has no classes: names, which are read back as such
    names = feature.names if isinstance(feature, ClassLabel) else None
    return [
        one | ({} if names is None else {columns.label: names[one[columns.label]]})
        for one in rows.select_columns([columns.text, columns.label])
    ]


def _line(one: dict[str, Any], columns: Columns, names: tuple[str, str]) -> str:
    told = zip(names, (one[columns.text], one[columns.label]), strict=True)
    return json.dumps(dict(told), ensure_ascii=False)


def read_canaries(file: str) -> list[dict[str, Any]]:
    """What `plant` wrote.

    Raises:
        InputError: no such file, or another kind of one.
    """
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
        # caught below, as any other damage
        assert found and all({"text", "secret", "copies", "learnt", "label"} <= set(one) for one in found)
    except (OSError, ValueError, AssertionError, TypeError) as error:
        raise InputError(
            f"{file} holds no canaries; wanted the canaries.json of `finetune audit --plant`. Set --canaries"
        ) from error
    return found


def exposures(
    subject: Attacked, network: Any, processor: Any, canaries: list[dict[str, Any]], candidates: int
) -> list[dict[str, Any]]:
    """Of each canary its exposure in bits, the most that so many candidates can show, and how often it was
    planted.

    Raises:
        InputError: rows that are chats.
    """
    # always the same candidates, so that two audits compare
    rng = np.random.default_rng(SEED)
    columns = subject.found.columns
    bare = columns.text == columns.label
    if bare and not isinstance(subject.rows[columns.text][0], str):
        raise InputError("--canaries: the run's rows are chats, in which none is planted; leave it out")
    found = []
    for canary in canaries:
        # the planted one first; a candidate may by chance be it, one time in a million
        secrets = [canary["secret"], *(secret(rng) for _ in range(candidates))]
        whole = [f"{canary['text']} {one}" for one in secrets]
        # a bare text has one column for both
        told = (
            [{"text": one, "label": one} for one in whole]
            if bare
            else [written(canary, one) for one in secrets]
        )
        rows = _like(subject, told)
        losses = costs(subject.row, network, processor, subject.features(processor, rows)).losses
        bits = exposure(float(losses[0]), losses[1:])
        found.append(
            {"canary": canary["text"], "copies": canary["copies"], "exposure": bits,
             "most": float(np.log2(candidates + 1)), "chance": 2.0**-bits}
        )  # fmt: skip
    return found


def _like(subject: Attacked, rows: list[dict[str, Any]]) -> Dataset:
    """Rows in the columns and features of the subject's."""
    columns, model = subject.found.columns, subject.rows
    feature = model.features[columns.label]
    told = [
        {columns.text: one["text"],
         columns.label: feature.str2int(one["label"]) if isinstance(feature, ClassLabel) else one["label"]}
        for one in rows
    ]  # fmt: skip
    # the subject's own types, which `encode` asks for the classes
    kept = type(model.features)({name: model.features[name] for name in (columns.text, columns.label)})
    return Dataset.from_list(told, features=kept)
