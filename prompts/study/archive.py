"""Rows, prompts and answers of a run ↔ rows.parquet, from which it can be audited and judged again. Asks no
model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from finetune.errors import InputError
from prompts.scoring.score import Request
from prompts.study.asking import Cell
from prompts.study.findings import Findings
from prompts.study.outcomes import AnyAnswers, in_words
from prompts.study.rows import StudyRow
from prompts.study.weighed import ChoiceAnswers, StoredAnswers, said
from prompts.study.written import TextPrompt, Written
from prompts.templates.entries import Entry
from prompts.templates.template import SLOT
from prompts.templates.verbalizer import probabilities

OWN = (
    "kind",
    "part",
    *Cell.__dataclass_fields__,
    "row",
    "id",
    "prompt",
    "prompt_hash",
    "template_hash",
    "gold",
    "prediction",
)
FILE = "rows.parquet"


def write_rows(found: Findings, path: Path) -> None:
    """One row a prompt and example, of unseen and training rows.

    Which prompt, the row's place in its file and its id, its columns, the rendered prompt and its hash, the
    gold answer, what was said, and every score before and after calibration.
    """
    columns: dict[str, list[Any]] = {}
    hashes = {name: template.hash for name, template in found.templates.items()}
    lines = [
        line
        for answers in found.answers
        for part in ("unseen", "training")
        for line in _lines(found, answers, part, hashes)
    ]
    keys = list(dict.fromkeys(key for line in lines for key in line))
    for key in keys:
        columns[key] = [line.get(key) for line in lines]
    pq.write_table(
        pa.table({key: _of_one_type(values) for key, values in columns.items()}), path, compression="zstd"
    )


def _of_one_type(values: list[Any]) -> list[Any]:
    """A column that parquet can hold: values of several types, and nested ones, as JSON."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} or (len(kinds) == 1 and not kinds & {dict, list}):
        return values
    if kinds == {list} and all(
        isinstance(part, (str, float, int)) or part is None for value in values for part in value or ()
    ):
        return values
    return [None if value is None else json.dumps(value, ensure_ascii=False, default=str) for value in values]


def _lines(
    found: Findings, answers: AnyAnswers, part: str, hashes: dict[str, str]
) -> Iterable[dict[str, Any]]:
    rows, places = found.parts[part], answers.rows(part)
    words = {how: in_words_of(found, answers, how, part) for how in answers.hows}
    for index, place in enumerate(places):
        row = rows[place]
        line: dict[str, Any] = {
            "kind": found.kind,
            "part": part,
            **asdict(answers.cell),
            "row": row.place,
            "id": row.id,
        }
        line["template_hash"] = hashes.get(answers.cell.template, "")
        if part == "unseen":
            request = answers.requests[index]
            text = request.context + (SLOT + request.rest if request.rest else "")
            line |= {"prompt": text, "prompt_hash": sha256(text.encode()).hexdigest()}
        line["identity"] = row.identity
        line["prediction"] = words[answers.hows[0]][index]
        line |= _values(found, answers, part, index, row)
        for how, texts in words.items():
            line[f"prediction_{how}"] = texts[index]
        for name, value in row.columns.items():
            line[f"column_{name}" if name in line else name] = value
        yield line


def in_words_of(found: Findings, answers: AnyAnswers, how: str, part: str) -> list[str]:
    """What was said of each row of a part."""
    if part == "unseen":
        return in_words(answers, how, found.labels)
    if isinstance(answers, Written):
        return [" | ".join(row) for row in answers.answers(how, part)]
    chosen = said(answers.scores(how, part))
    if isinstance(answers, ChoiceAnswers):
        return ["" if one < 0 else texts[one] for one, texts in zip(chosen, answers.texts[part], strict=True)]
    return ["" if one < 0 else found.labels[one] for one in chosen]


def _values(found: Findings, answers: AnyAnswers, part: str, index: int, row: StudyRow) -> dict[str, Any]:
    if isinstance(answers, Written):
        return {
            "gold": answers.wanted[part][index][0],
            "wanted": answers.wanted[part][index],
            "written": ["" if text is None else text for text in answers.texts[part][index]],
            "answered": all(text is not None for text in answers.texts[part][index]),
        }
    scores = {f"scores_{how}": [float(v) for v in answers.scores(how, part)[index]] for how in answers.hows}
    raw = answers.scores(answers.hows[0], part)[index]
    line: dict[str, Any] = {"scores": [float(v) for v in raw], **scores}
    if not np.isnan(raw).any():
        chances = probabilities(raw[None])[0]
        line["probability"] = float(chances.max())
    if isinstance(answers, ChoiceAnswers):
        gold, texts = int(answers.gold[part][index]), answers.texts[part][index]
        return {**line, "gold": texts[gold], "gold_place": gold, "choices": texts}
    return {**line, "gold": found.labels[row.label]}


def read_study(
    folder: Path, entry: Entry
) -> tuple[str, dict[str, list[StudyRow]], tuple[str, ...], list[AnyAnswers]]:
    """(kind, rows by part, labels, answers) of a run, as its folder holds them.

    Raises:
        InputError: no such run, or one of another kind of prompts.
    """
    table = read_table(folder)
    kind = table[0]["kind"]
    labels = tuple(json.loads((folder / "findings.json").read_text(encoding="utf-8")).get("labels") or ())
    parts: dict[str, list[StudyRow]] = {"unseen": [], "training": []}
    numbers: dict[tuple[str, int, str], int] = {}
    for line in table:
        key = (line["part"], line["row"], line["identity"])
        if key not in numbers:
            numbers[key] = len(parts[line["part"]])
            columns = json.loads(line["identity"])
            columns = columns if isinstance(columns, dict) else {}
            label = labels.index(line["gold"]) if kind == "labels" else -1
            parts[line["part"]].append(StudyRow(columns, label, line["identity"], line["row"], line["id"]))
    cells: dict[Cell, list[dict[str, Any]]] = {}
    for line in table:
        cell = Cell(*(line[name] for name in Cell.__dataclass_fields__))
        cells.setdefault(cell, []).append(line)
    answers = [_read_cell(cell, lines, numbers, kind, entry) for cell, lines in cells.items()]
    return kind, parts, labels, answers


def read_table(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's rows.parquet.

    Raises:
        InputError: there are none.
    """
    path = folder / FILE
    if not path.is_file():
        raise InputError(f"No {FILE} in {folder}: wanted the folder of a run of prompts")
    table = pq.read_table(path).to_pylist()
    if not table or "part" not in table[0]:
        raise InputError(f"{path} holds no rows, or is of an older kind; run it again")
    return table


def _read_cell(
    cell: Cell, lines: list[dict[str, Any]], numbers: dict[tuple[str, int, str], int], kind: str, entry: Entry
) -> AnyAnswers:
    by_part = {part: [line for line in lines if line["part"] == part] for part in ("unseen", "training")}
    places = {
        part: np.array([numbers[part, line["row"], line["identity"]] for line in own], dtype=int)
        for part, own in by_part.items()
    }
    requests = [_request(line) for line in by_part["unseen"]]
    if kind == "text":
        return _read_text(cell, by_part, places, requests, entry)
    hows = [key.removeprefix("scores_") for key in lines[0] if key.startswith("scores_")]
    by_how = {
        how: {
            part: np.array([_numbers(line[f"scores_{how}"]) for line in own], dtype=float)
            for part, own in by_part.items()
        }
        for how in hows
    }
    if kind == "choices":
        gold = {
            part: np.array([line["gold_place"] for line in own], dtype=int) for part, own in by_part.items()
        }
        texts = {part: [_texts(line["choices"]) for line in own] for part, own in by_part.items()}
        return ChoiceAnswers(cell, by_how, requests, places, gold, texts)
    return StoredAnswers(cell, by_how, requests, places)  # type: ignore[return-value]


def _numbers(values: Any) -> list[float]:
    values = json.loads(values) if isinstance(values, str) else values
    return [float("nan") if value is None else value for value in values]


def _texts(values: Any) -> list[str]:
    return json.loads(values) if isinstance(values, str) else list(values)


def _request(line: dict[str, Any]) -> Request:
    context, _, rest = line["prompt"].partition(SLOT)
    return Request(context, (), rest)


def _read_text(
    cell: Cell,
    by_part: dict[str, list[dict[str, Any]]],
    places: dict[str, np.ndarray],
    requests: list[Request],
    entry: Entry,
) -> Written:
    short = cell.template.removeprefix(f"{entry.name}/")
    ending = entry.endings.get(cell.verbalizer) or next(iter(entry.endings.values()))
    prompt = TextPrompt(entry.template(short), entry.targets[short], ending)
    texts: dict[str, list[list[str | None]]] = {
        part: [[text if line["answered"] else None for text in _texts(line["written"])] for line in own]
        for part, own in by_part.items()
    }
    wanted = {part: [_texts(line["wanted"]) for line in own] for part, own in by_part.items()}
    return Written(cell, prompt, texts, wanted, requests, places, entry, entry.metric_of("text"))
