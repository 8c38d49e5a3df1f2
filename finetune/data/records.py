"""JSON in the shapes that rows are published in → columns. Knows shapes; knows no columns by name but
SQuAD's and messages'.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from finetune.data.tables import ending
from finetune.errors import InputError

logger = logging.getLogger(__name__)

TURN = {"role", "from", "speaker"}  # what a message has and a row has not
KEYS = ("data", "rows", "examples", "instances", "items", "records")  # under which rows stand beside lists
TWICE = "stands twice in one record"
Columns = dict[str, list[Any]]


def read_records(text: str, file: Path) -> tuple[Columns, list[int] | None]:
    """Columns, and the line of each record where the file has one a line.

    JSON lines, a list of records, columns, records under `data` or another key, pandas' ways, SQuAD's own
    file.

    Raises:
        InputError: text that is no JSON, with its lines, or that holds no records.
    """
    stripped = text.lstrip()
    # a list under the name of lines is read as a list
    if ending(file) in ("jsonl", "ndjson") and stripped[:1] != "[":
        return _json_lines(text, file)
    try:
        whole = strict_json(stripped) if stripped[:1] in ("[", "{") else None
    except json.JSONDecodeError as error:
        # one record a line, whatever the name says; a list that breaks off is no line
        if stripped[:1] == "[" or not stripped or TWICE in error.msg:
            said = error.msg if TWICE in error.msg else error
            raise InputError(f"Cannot read {file}: {said}. Mend it or name others by --data_files") from error
        return _json_lines(text, file)
    if whole is None:
        return _json_lines(text, file)
    # a mapping is columns already; a list is records
    records = whole if isinstance(whole, list) else _records(whole, file)
    if isinstance(records, dict):
        return records, None
    # articles with paragraphs, of which every question is a row
    if records and _is_squad(records[0]):
        records = _squad(records)
    strange = next((place for place, record in enumerate(records) if not isinstance(record, dict)), None)
    if strange is not None:
        raise InputError(
            f"{file} holds {records[strange]!r:.60} as row {strange}; wanted a record with named columns"
        )
    return _columns(records), None


def strict_json(text: str) -> Any:
    """JSON whose objects name each key once.

    Raises:
        JSONDecodeError: it is none, or a key stands twice, of which Python would keep the last.
    """
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise json.JSONDecodeError(f"the key {twice!r} {TWICE}", "", 0)
    return made


def _json_lines(text: str, file: Path) -> tuple[Columns, list[int]]:
    records, lines, faults = [], [], []
    # not splitlines(): JSON texts may hold separators that it parts at
    # line ends of old Macs, which no JSON text holds as such
    parts = text.split("\n") if "\n" in text else text.split("\r")
    for number, line in enumerate(parts, start=1):
        if not line.strip():
            continue
        try:
            record = strict_json(line)
        except json.JSONDecodeError as error:
            comma = " (a comma at its end)" if line.rstrip().endswith("},") else ""
            # all faults are gathered: a user mends them in one go
            faults.append(f"line {number}: {error.msg}{comma}")
            continue
        if not isinstance(record, dict):
            faults.append(f"line {number} holds {record!r:.40}; wanted a record with named columns")
        records.append(record)
        lines.append(number)
    if faults:
        said = "; ".join(faults[:5]) + ("; ..." if len(faults) > 5 else "")
        raise InputError(f"Cannot read {file}: {said}. Mend it or name others by --data_files")
    return _columns(records), lines


def shape_of(whole: dict[str, Any]) -> tuple[str, str]:
    """How one JSON object holds rows, and the key where that is under one; `row` where it is a row itself."""
    # pandas' orient="split"
    if set(whole) >= {"columns", "data"}:
        return "split", ""
    # keys that hold rows, messages of one chat aside
    inner = [
        key
        for key, value in whole.items()
        if isinstance(value, list) and value and isinstance(value[0], dict) and not _is_chat(value)
    ]
    values = list(whole.values())
    # one record with a chat is a row, though its chat is a list of mappings
    if any(_is_chat(value) for value in values):
        return "row", ""
    lists = [value for value in values if isinstance(value, list)]
    named = next((key for key in inner if key in KEYS), None)
    if named is not None or (len(inner) == 1 and len(lists) == 1):
        return "under", named or inner[0]
    if len(inner) > 1 and len(inner) == len(values):
        return "several", ", ".join(inner)
    if values and len(lists) == len(values) and len({len(value) for value in values}) == 1:
        return "columns", ""
    # pandas' "columns" (column → number → cell) and "index" (number → row)
    if values and all(isinstance(value, dict) for value in values):
        keys = {str(key) for value in values for key in value}
        if all(key.isdigit() for key in keys):
            return "numbered", ""
        return ("rows", "") if all(k.isdigit() for k in whole) else ("row", "")
    return "row", ""


def _is_chat(value: Any) -> bool:
    return (
        isinstance(value, list) and bool(value) and isinstance(value[0], dict) and bool(TURN & set(value[0]))
    )


def _records(whole: dict[str, Any], file: Path) -> list[Any] | Columns:
    shape, key = shape_of(whole)
    if shape == "row":
        return [whole]
    if shape == "several":
        raise InputError(
            f"{file} holds rows under {key}; wanted one list. Write each into a file of its own "
            "(train.jsonl, "
            "test.jsonl) and name their folder"
        )
    if shape == "split":
        return [dict(zip(whole["columns"], row, strict=True)) for row in whole["data"]]
    if shape == "columns":
        return whole
    if shape == "numbered":
        # by the numbers, since a column may lack some
        order = list(next(iter(whole.values())))
        return {column: [values.get(number) for number in order] for column, values in whole.items()}
    if shape == "rows":
        return list(whole.values())
    others = [name for name in whole if name != key]
    if others:
        logger.warning("%s: rows are read from '%s'; not used: %s", file, key, ", ".join(others))
    found = list(whole[key])
    # the hub's own answers: each row beside its number
    if all(isinstance(one, dict) and isinstance(one.get("row"), dict) and "row_idx" in one for one in found):
        return [one["row"] for one in found]
    return found


def _columns(records: Sequence[dict[str, Any]]) -> Columns:
    """Records as columns; what a record doesn't have is missing there."""
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [record.get(name) for record in records] for name in names}


def _is_squad(record: Any) -> bool:
    return isinstance(record, dict) and isinstance(record.get("paragraphs"), list)


def _squad(articles: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """SQuAD's own articles → a row a question (Rajpurkar et al. 2016, 2018)."""
    rows = []
    for article in articles:
        for paragraph in article["paragraphs"]:
            for asked in paragraph.get("qas", []):
                answers = asked.get("answers") or []
                rows.append(
                    {"id": asked.get("id"), "title": article.get("title"), "context": paragraph["context"],
                    "question": asked["question"],
                     "answers": {"text": [a["text"] for a in answers],
                     "answer_start": [a["answer_start"] for a in answers]}}
                )  # fmt: skip
    return rows
