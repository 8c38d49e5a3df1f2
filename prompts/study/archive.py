"""Rows, prompts and answers of a run ↔ rows.parquet, from which it can be audited and judged again. Asks no
model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
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
from prompts.study.weighed import Answers, ChoiceAnswers, StoredAnswers, said
from prompts.study.written import TextPrompt, Written
from prompts.templates.entries import Ending, Entry
from prompts.templates.template import SLOT, Template
from prompts.templates.verbalizer import probabilities

OWN = (
    # the cell's own names, so that what is read back is a cell
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
    # cells differ in what they hold (choices, several ways), and a table needs all of it
    keys = list(dict.fromkeys(key for line in lines for key in line))
    for key in keys:
        columns[key] = [line.get(key) for line in lines]
    # compressed: prompts repeat
    pq.write_table(
        pa.table({key: _of_one_type(values) for key, values in columns.items()}), path, compression="zstd"
    )


def _of_one_type(values: list[Any]) -> list[Any]:
    """A column that parquet can hold: values of several types, and nested ones, as JSON."""
    kinds = {type(value) for value in values if value is not None}
    # numbers of two kinds are one column of floats
    if kinds <= {int, float} or (len(kinds) == 1 and not kinds & {dict, list}):
        return values
    # lists of plain values are parquet's own
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
    # once a cell: a calibration looks at all of its rows
    scores = {} if isinstance(answers, Written) else {how: answers.scores(how, part) for how in answers.hows}
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
            # the slot is marked: text may follow it
            text = request.context + (SLOT + request.rest if request.rest else "")
            # found again and compared without the text
            line |= {"prompt": text, "prompt_hash": sha256(text.encode()).hexdigest()}
        line["identity"] = row.identity
        # the first way heads the row; the others stand beside it
        line["prediction"] = words[answers.hows[0]][index]
        if isinstance(answers, Written):
            line |= _written(answers, part, index)
        else:
            line |= _scored(scores[answers.hows[0]][index], {how: of[index] for how, of in scores.items()})
            line |= _gold(found, answers, part, index, row)
        for how, texts in words.items():
            line[f"prediction_{how}"] = texts[index]
        for name, value in row.columns.items():
            # a column of the data may have the name of one of ours
            line[f"column_{name}" if name in line else name] = value
        yield line


def in_words_of(found: Findings, answers: AnyAnswers, how: str, part: str) -> list[str]:
    """What was said of each row of a part."""
    if part == "unseen":
        return in_words(answers, how, found.labels)
    if isinstance(answers, Written):
        # several drawn answers in one cell of the table
        return [" | ".join(row) for row in answers.answers(how, part)]
    chosen = said(answers.scores(how, part))
    if isinstance(answers, ChoiceAnswers):
        return ["" if one < 0 else texts[one] for one, texts in zip(chosen, answers.texts[part], strict=True)]
    return ["" if one < 0 else found.labels[one] for one in chosen]


def _written(answers: Written, part: str, index: int) -> dict[str, Any]:
    return {
        "gold": answers.wanted[part][index][0],
        "wanted": answers.wanted[part][index],
        "written": ["" if text is None else text for text in answers.texts[part][index]],
        "answered": all(text is not None for text in answers.texts[part][index]),
        # a judge isn't asked again when a run is judged by another figure
        **{f"judged_{how}": given[index].tolist() for how, given in answers.judged.get(part, {}).items()},
    }


def _scored(raw: np.ndarray, scores: dict[str, np.ndarray]) -> dict[str, Any]:
    """Scores of one row, the first way's under a name of their own too."""
    line: dict[str, Any] = {"scores": raw.tolist()}
    line |= {f"scores_{how}": of.tolist() for how, of in scores.items()}
    # without an answer there is no probability
    if not np.isnan(raw).any():
        line["probability"] = float(probabilities(raw[None])[0].max())
    return line


def _gold(
    found: Findings, answers: Answers | ChoiceAnswers, part: str, index: int, row: StudyRow
) -> dict[str, Any]:
    if isinstance(answers, ChoiceAnswers):
        gold, texts = int(answers.gold[part][index]), answers.texts[part][index]
        return {"gold": texts[gold], "gold_place": gold, "choices": texts}
    return {"gold": found.labels[row.label]}


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
        # a row stands once for each cell, and is one row all the same
        key = (line["part"], line["row"], line["identity"])
        if key not in numbers:
            numbers[key] = len(parts[line["part"]])
            # the identity holds all columns as JSON (see `rows._identity`)
            columns = json.loads(line["identity"])
            columns = columns if isinstance(columns, dict) else {}
            # labels are numbered as the run had them
            label = labels.index(line["gold"]) if kind == "labels" else -1
            parts[line["part"]].append(StudyRow(columns, label, line["identity"], line["row"], line["id"]))
    cells: dict[Cell, list[dict[str, Any]]] = {}
    for line in table:
        # all lines that agree in these are one prompt asked one way
        cell = Cell(*(line[name] for name in Cell.__dataclass_fields__))
        cells.setdefault(cell, []).append(line)
    answers = [_read_cell(cell, lines, numbers, kind, entry) for cell, lines in cells.items()]
    return kind, parts, labels, answers


def read_table(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's rows.parquet.

    Raises:
        InputError: there are none.
    """
    # an older file is said, and not half understood
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
    # the ways that were kept, which may be fewer than there are now
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
    # nested ones were written as JSON
    values = json.loads(values) if isinstance(values, str) else values
    # parquet keeps nan as it is, JSON as null
    return [float("nan") if value is None else value for value in values]


def _texts(values: Any) -> list[str]:
    return json.loads(values) if isinstance(values, str) else list(values)


def _request(line: dict[str, Any]) -> Request:
    # the slot's mark was put there by `_lines`
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
    # what the entry no longer has, or never had (an instruction that was found), isn't needed: all is written
    ending = entry.endings.get(cell.verbalizer) or Ending(cell.verbalizer, (), 0)
    prompt = TextPrompt(
        entry.templates.get(short) or Template(cell.template, ""),
        entry.targets.get(short) or Template(cell.template, ""),
        ending,
    )
    texts: dict[str, list[list[str | None]]] = {
        # a missing text was written as an empty one
        part: [[text if line["answered"] else None for text in _texts(line["written"])] for line in own]
        for part, own in by_part.items()
    }
    wanted = {part: [_texts(line["wanted"]) for line in own] for part, own in by_part.items()}
    made = Written(cell, prompt, texts, wanted, requests, places, entry, entry.metric_of("text"))
    return replace(made, judged={part: _judged(made, part, own) for part, own in by_part.items() if own})


def _judged(written: Written, part: str, lines: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """A judge's scores of the answers that it saw: where a filter takes out something else now, there are
    none."""
    found = {}
    for how in written.hows:
        kept = [line.get(f"judged_{how}") for line in lines]
        seen = [line.get(f"prediction_{how}") for line in lines]
        now = [" | ".join(row) for row in written.answers(how, part)]
        if seen == now and not any(scores is None for scores in kept):
            found[how] = np.array([_numbers(scores) for scores in kept], dtype=float)
    return found
