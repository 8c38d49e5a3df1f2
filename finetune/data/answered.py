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

from finetune.data.columns import Columns, named_columns, pick_columns, settle_columns
from finetune.data.labelled import as_read
from finetune.data.layouts import first_of
from finetune.data.places import columns_of, place_of, unreadable
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
    r"answer_?([a-e])",
    r"op_?([a-e])",
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
    "cop",
)
# what is read before the question: RACE, CosmosQA, SocialIQA, COPA
BEFORE = ("article", "context", "passage", "premise")


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
        # SQuAD's own form needs no pass over the rows
        laid = as_read(rows, columns)
        return Laid(rows, columns, laid.used, laid.texts, aside=aside)
    # starts in a column of their own, beside answers that are bare texts
    start = first_of(("answer_start", "start", "answer_starts"), columns_of(rows))
    kinds = (ValueError, KeyError, TypeError, IndexError)

    def placed(row: dict[str, Any]) -> dict[str, list]:
        context = row[columns.pair or ""] or ""
        return places_of_answers(row[columns.label], context, row[start] if start else None)

    made = []
    for index, row in enumerate(rows):
        try:
            made.append(placed(row))
        except kinds as error:
            said = unreadable(rows, index, f", column '{columns.label}': {error}", placed, kinds)
            raise InputError(f"{said}. Mend what stands there, or leave it out") from error
    kept = rows.remove_columns(columns.label).add_column(columns.label, made, feature=PLACES)
    used = {"text": [columns.text, str(columns.pair)], "label": [columns.label, *([start] if start else [])]}
    return Laid(kept, columns, used, as_read(rows, columns).texts, aside=aside)


def places_of_answers(given: Any, context: str, start: Any = None) -> dict[str, list]:
    """Answers and where they stand in the context.

    Raises:
        ValueError: an answer that stands nowhere in it.
    """
    # no answer is an answer (SQuAD 2.0), not a fault
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
        # without a place the first occurrence is taken: who publishes bare texts doesn't say which
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
    # one column of lists, or a column for each choice
    offers = [column] if column in there else columns_of_choices(there) if column is None else []
    if not offers:
        first, second, mark = named_columns(data)
        settle_columns((first.of(STEMS), second.of(OFFERS), mark.of(RIGHT)), there, data.name)
    # without the choices: `answer_a` must not be taken for the column with the answer
    rest = rows.select_columns([name for name in there if name not in offers])
    picked = pick_columns(rest, replace(data, text_pair_column=None), text=STEMS, label=RIGHT)
    # a text that the user named is the whole question
    before = [] if data.text_column else _read_before(rest, picked.text)
    if (
        column
        and not before
        and isinstance(rows.features[column], List)
        and _is_numbers(rows, picked.label)
        and rows.features[column].feature == Value("string")
    ):
        used = {"text": [picked.text], "choices": [column], "label": [picked.label]}
        return replace(as_read(rows, Columns(picked.text, column, picked.label)), used=used)
    # SWAG's second sentence is begun in a column of its own, and the endings go on from it
    goes_on = "sent2" if picked.text == "sent1" and "sent2" in there else None
    parts = [*before, picked.text, *([goes_on] if goes_on else [])]
    # told from the whole column: one row's `1` may be a place from 0, from 1, or a name
    how = _how_answered(rows, picked.label, offers)

    def read(row: dict[str, Any]) -> tuple[Any, int | None]:
        names, offered = offered_in(row, offers)
        # nobody said which: counted and named later
        given = row[picked.label]
        return offered, None if given is None else place_of_answer(given, names, offered, how)

    choices, answers = [], []
    for index, row in enumerate(rows):
        try:
            offered, answer = read(row)
        except (ValueError, TypeError) as error:
            said = unreadable(rows, index, f": {error}", read, (ValueError, TypeError))
            raise InputError(f"{said}. Mend what stands there, or set --label_column") from error
        choices.append(offered)
        answers.append(answer)
    # `id` names rows in predictions, `__...` their places in messages
    kept = [name for name in rows.column_names if name == "id" or name.startswith("__")]
    made = Dataset.from_dict(
        {
            "text": [" ".join(str(row[name]) for name in parts if row[name] is not None) for row in rows],
            "choices": choices,
            "answer": answers,
            **{name: rows[name][:] for name in kept},
        }
    )
    return Laid(
        made,
        Columns("text", "choices", "answer"),
        {"text": parts, "choices": offers, "label": [picked.label]},
        lambda row: "\x00".join([*(str(row[name]) for name in parts), *offered_in(row, offers)[1]]),
    )


def _read_before(rows: Dataset, question: str) -> list[str]:
    """The column with what a question is about: a passage or a premise; none where the question holds it."""
    found = first_of(BEFORE, [name for name in columns_of(rows) if name != question])
    feature = rows.features[found] if found else None
    if found is None or not (isinstance(feature, Value) and "string" in str(feature.dtype)):
        return []
    # a column that the question repeats in every row would be read twice
    inside = all((one or "") in (other or "") for one, other in zip(rows[found], rows[question], strict=True))
    return [] if inside else [found]


def columns_of_choices(there: Sequence[str]) -> list[str]:
    """Columns that hold a choice each, in order."""
    for pattern in APART:
        found = sorted(
            (m.group(1).lower(), name) for name in there if (m := re.fullmatch(pattern, name, re.IGNORECASE))
        )
        # a single match is a column of another kind that happens to be called so
        if len(found) > 1:
            return [name for _, name in found]
    return []


def _is_numbers(rows: Dataset, column: str) -> bool:
    feature = rows.features[column]
    return not isinstance(feature, Value) or str(feature.dtype).startswith(("int", "uint", "float"))


def _how_answered(rows: Dataset, column: str, offers: Sequence[str]) -> str:
    """How a column says which choice is right: `text`, `name` (its letter or number), or by its place from
    0 or
    from 1: `zero`, `one`.

    Raises:
        InputError: two of these fit all rows and mean different choices.
    """
    # a row without an answer says nothing on how the others are written; it is named by itself
    told = (row for row in rows if row[column] is not None and str(row[column]).strip())
    every = [(offered_in(row, offers), row[column]) for row in told]
    # a way counts only if it reads every row
    fit = [how for how in ("name", "text") if all(_place(said, *one, how) is not None for one, said in every)]
    # two ways may fit as long as they mean the same choices
    if len(fit) == 2:
        unlike = [
            n for n, (one, said) in enumerate(every) if len({_place(said, *one, how) for how in fit}) > 1
        ]
        if unlike:
            (names, offered), said = every[unlike[0]]
            raise InputError(
                f"'{column}' says {said!r} in {place_of(rows, unlike[0])}, the name of "
                f"{offered[names.index(said)]!r} "
                f"and the text of another choice. Write places counted from 0 as numbers, or set "
                "--label_column"
            )
    if fit:
        return fit[0]
    values = {str(said).strip() for _, said in every if said is not None}
    # counted from 1 only if no 0 stands there and the last place does
    most = str(max((len(offered) for (_, offered), _ in every), default=0))
    return (
        "one"
        if values and all(v.isdigit() for v in values) and "0" not in values and most in values
        else "zero"
    )


def _place(given: Any, names: Sequence[str], offered: Sequence[Any], how: str) -> int | None:
    """The place that an answer means, read in one way."""
    said = str(given).strip() if given is not None else ""
    if how == "text":
        # a number is never matched as a text: choices `3, 4, 5` with answer 1 mean a place
        return list(offered).index(given) if isinstance(given, str) and given in offered else None
    if how == "name":
        # `a` for A
        name = said if said in names else said.upper()
        return list(names).index(name) if isinstance(given, str) and name in names else None
    # a column with gaps comes as floats: 2.0
    if not re.fullmatch(r"\d+(\.0)?", said):
        return None
    place = int(float(said)) - (how == "one")
    return place if 0 <= place < len(offered) else None


def offered_in(row: dict[str, Any], offers: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names (letters, numbers) and texts of the choices of a row."""
    given = [row[name] for name in offers] if len(offers) > 1 else row[offers[0]]
    if isinstance(given, dict) and {"text", "label"} <= set(given):  # ARC, CommonsenseQA
        return [str(name) for name in given["label"]], list(given["text"])
    if isinstance(given, dict):  # MedQA: a letter → its text
        filled = {str(name): one for name, one in given.items() if one is not None}
        return list(filled), list(filled.values())
    if given and all(isinstance(one, dict) for one in given):
        named = [str(one.get("label", one.get("key", chr(65 + place)))) for place, one in enumerate(given)]
        if not all(isinstance(one.get("text", one.get("value")), str) for one in given):
            raise ValueError(f"the choices {given!r:.80}; wanted a text in each")
        return named, [one.get("text", one.get("value")) for one in given]
    # tables pad rows of fewer choices with nothing
    kept = [one for one in given or () if one is not None]
    return [chr(65 + place) for place in range(len(kept))], kept


def place_of_answer(given: Any, names: Sequence[str], offered: Sequence[str], how: str) -> int:
    """The right choice's place, from 0.

    Args:
        how: what `_how_answered` says of the column; a row of another way is read as it can be.

    Raises:
        ValueError: none of them.
    """
    # the column's own way first; dict.fromkeys drops the repetition
    for way in dict.fromkeys((how, "name", "text", "zero" if how != "one" else "one")):
        place = _place(given, names, offered, way)
        if place is not None:
            return place
    raise ValueError(f"the answer {given!r} is none of the {len(offered)} choices {', '.join(names)}")
