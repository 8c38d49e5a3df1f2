"""Questions whose answer stands in a context, or among choices, in the ways that they are published → one of
each.

Knows columns alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from datasets import Dataset, List, Value

from finetune.data.columns import Columns, pick_columns
from finetune.data.labelled import as_read
from finetune.data.layouts import first_of
from finetune.data.places import columns_of, place_of
from finetune.data.questions import Laid
from finetune.data.sources import DataArguments
from finetune.errors import InputError

logger = logging.getLogger(__name__)

PLACES = {"text": List(Value("string")), "answer_start": List(Value("int64"))}
CONTEXTS, FOUND = ("context", "passage", "paragraph", "document"), ("answers", "answer", "answer_text")
STEMS = (
    "text",
    "question",
    "prompt",
    "question_stem",
    "sentence",
    "query",
    "goal",
    "premise",
    "startphrase",
    "ctx",
    "sent1",
)
OFFERS = ("choices", "options", "endings")
# choices in columns of their own: SWAG, PIQA, COPA, WinoGrande, and tables with a column a letter
APART = (
    r"ending_?(\d)",
    r"sol(\d)",
    r"choice_?(\d)",
    r"option_?(\d)",
    r"answer_?(\d)",
    r"([a-e])",
    r"option_?([a-e])",
    r"choice_?([a-e])",
)
RIGHT = (
    "answer",
    "label",
    "gold",
    "answerkey",
    "answer_key",
    "correct",
    "answer_idx",
    "correct_answer",
    "target",
)


def lay_out_spans(rows: Dataset, data: DataArguments) -> Laid:
    """Question, context and answers {text: [...], answer_start: [...]} (SQuAD's columns).

    Answers may also be records, or texts that are looked for in the context.

    Raises:
        InputError: columns that are missing, or answers in another form, with their row.
    """
    columns = pick_columns(rows, data, text=("question", "query"), pair=CONTEXTS, label=FOUND)
    aside = tuple(
        name for name in ("title", "is_impossible", "plausible_answers") if name in columns_of(rows)
    )
    feature = rows.features[columns.label]
    if (
        isinstance(feature, dict)
        and {"text", "answer_start"} <= set(feature)
        and all(isinstance(feature[n], List) for n in PLACES)
    ):
        laid = as_read(rows, columns)
        return Laid(rows, columns, laid.used, laid.texts, aside=aside)
    start = first_of(("answer_start", "start", "answer_starts"), columns_of(rows))
    made = []
    for index, row in enumerate(rows):
        try:
            made.append(
                places_of_answers(
                    row[columns.label], row[columns.pair or ""] or "", row[start] if start else None
                )
            )
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"In {place_of(rows, index)}, column '{columns.label}': {error}. Mend the row or leave it out"
            ) from error
    kept = rows.remove_columns(columns.label).add_column(columns.label, made, feature=PLACES)
    used = {"text": [columns.text, str(columns.pair)], "label": [columns.label, *([start] if start else [])]}
    return Laid(kept, columns, used, as_read(rows, columns).texts, aside=aside)


def places_of_answers(given: Any, context: str, start: Any = None) -> dict[str, list]:
    """Answers and where they stand in the context.

    Raises:
        ValueError: an answer that stands nowhere in it.
    """
    if given is None or given == "" or given == []:
        return {"text": [], "answer_start": []}
    if isinstance(given, dict):
        texts, starts = given.get("text"), given.get("answer_start", given.get("start"))
        given = [
            {"text": t, "start": s}
            for t, s in zip(_listed(texts), _listed(starts) or [None] * len(_listed(texts)), strict=True)
        ]
    found: dict[str, list] = {"text": [], "answer_start": []}
    for place, one in enumerate(_listed(given)):
        text = one.get("text") if isinstance(one, dict) else one
        own = (
            one.get("answer_start", one.get("start"))
            if isinstance(one, dict)
            else (_listed(start)[place] if start is not None else None)
        )
        if not isinstance(text, str):
            raise ValueError(f"the answer {one!r:.60}; wanted a text, or a record with text and answer_start")
        own = context.find(text) if own is None else int(own)
        if own < 0:
            raise ValueError(f"the answer {text!r:.60} stands nowhere in its context")
        found["text"].append(text)
        found["answer_start"].append(own)
    return found


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def lay_out_choices(rows: Dataset, data: DataArguments) -> Laid:
    """A text, two or more choices, and the place of the right one, counted from 0.

    Choices may be a list, texts with their letters (ARC), records, or columns (SWAG); the right one a place,
    a letter or a text.

    Raises:
        InputError: columns that are missing, or an answer that is none of the choices, with its row.
    """
    there = columns_of(rows)
    column = data.text_pair_column or first_of(OFFERS, there)
    if column is not None and column not in there:
        raise InputError(
            f"No column '{column}' in {data.name}; it has {', '.join(there)}. Set --text_pair_column"
        )
    offers = [column] if column else columns_of_choices(there)
    if not offers:
        raise InputError(
            f"No column 'choices' in {data.name}; it has {', '.join(there)}; wanted a list of choices, or a "
            "column for each. Set --text_pair_column"
        )
    rest = rows.select_columns([name for name in there if name not in offers])
    picked = pick_columns(rest, replace(data, text_pair_column=None), text=STEMS, label=RIGHT)
    if (
        column
        and isinstance(rows.features[column], List)
        and _is_numbers(rows, picked.label)
        and rows.features[column].feature == Value("string")
    ):
        return as_read(rows, Columns(picked.text, column, picked.label))
    goes_on = "sent2" if picked.text == "sent1" and "sent2" in there else None
    texts, choices, answers = [], [], []
    from_one = _counts_from_one(rows, picked.label, offers)
    for index, row in enumerate(rows):
        try:
            names, offered = offered_in(row, offers)
            answers.append(place_of_answer(row[picked.label], names, offered, from_one))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"In {place_of(rows, index)}: {error}. Mend the row, or set --label_column"
            ) from error
        texts.append(" ".join(str(row[name]) for name in (picked.text, goes_on) if name))
        choices.append(offered)
    kept = rows.select_columns([name for name in rows.column_names if name == "id" or name.startswith("__")])
    made = Dataset.from_dict(
        {
            "text": texts,
            "choices": choices,
            "answer": answers,
            **{name: rows[name][:] for name in kept.column_names},
        }
    )
    used = {
        "text": [name for name in (picked.text, goes_on) if name],
        "choices": offers,
        "label": [picked.label],
    }
    return Laid(
        made,
        Columns("text", "choices", "answer"),
        used,
        lambda row: "\x00".join([str(row[picked.text]), *offered_in(row, offers)[1]]),
    )


def columns_of_choices(there: Sequence[str]) -> list[str]:
    """Columns that hold a choice each, in order."""
    for pattern in APART:
        found = sorted(
            (m.group(1).lower(), name) for name in there if (m := re.fullmatch(pattern, name, re.IGNORECASE))
        )
        if len(found) > 1:
            return [name for _, name in found]
    return []


def _is_numbers(rows: Dataset, column: str) -> bool:
    feature = rows.features[column]
    return not isinstance(feature, Value) or str(feature.dtype).startswith(("int", "uint", "float"))


def _counts_from_one(rows: Dataset, column: str, offers: Sequence[str]) -> bool:
    """Whether places count from 1: the numbers of the choices stand there, 0 never does."""
    values = {str(value).strip() for value in rows[column] if value is not None}
    if not values or not all(value.isdigit() for value in values) or "0" in values:
        return False
    most = (
        len(offers) if len(offers) > 1 else max((len(offered_in(row, offers)[1]) for row in rows), default=0)
    )
    return str(most) in values


def offered_in(row: dict[str, Any], offers: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names (letters, numbers) and texts of the choices of a row."""
    given = [row[name] for name in offers] if len(offers) > 1 else row[offers[0]]
    if isinstance(given, dict):  # ARC, CommonsenseQA
        return [str(name) for name in given["label"]], list(given["text"])
    if given and all(isinstance(one, dict) for one in given):
        named = [str(one.get("label", one.get("key", chr(65 + place)))) for place, one in enumerate(given)]
        return named, [one["text"] for one in given]
    filled = [one for one in given or () if one is not None]
    return [chr(65 + place) for place in range(len(filled))], filled


def place_of_answer(given: Any, names: Sequence[str], offered: Sequence[str], from_one: bool) -> int:
    """The right choice's place, from 0.

    Raises:
        ValueError: none of them.
    """
    said = str(given).strip() if given is not None else ""
    if isinstance(given, str):
        if said in names:
            return list(names).index(said)
        if said.upper() in names:
            return list(names).index(said.upper())
        if given in offered:
            return list(offered).index(given)
    if re.fullmatch(r"\d+(\.0)?", said):
        place = int(float(said)) - from_one
        if 0 <= place < len(offered):
            return place
    raise ValueError(f"the answer {given!r} is none of the {len(offered)} choices {', '.join(names)}")
