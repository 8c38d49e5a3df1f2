"""Questions and answers in any layout → messages, or one text and its answer. Knows layouts; knows no
tokenizer.

Whatever the layout, there is one question (messages that were said before, or a text) and one answer, so that
the same chat has the same tokens in each of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from datasets import Dataset, Features, Json, List, Value

from finetune.data.accounting import Used
from finetune.data.cells import with_cells, with_json
from finetune.data.columns import Columns
from finetune.data.conversations import (
    Message,
    MessageError,
    as_chat,
    as_dialogue,
    is_chat,
    is_dialogue,
    is_message,
    last_learnt,
    not_learnt,
    said_in,
)
from finetune.data.encode import code, fingerprint
from finetune.data.layouts import (
    ANSWERS,
    ASKED,
    BESIDE,
    CHATS,
    HISTORY,
    SYSTEM,
    Fields,
    find_fields,
    first_of,
    holds,
)
from finetune.data.places import PLACE, columns_of, unreadable
from finetune.data.sources import DataArguments
from finetune.errors import InputError

BREAK = "\n\n"  # between the parts of a question


def asked_messages(
    row: dict[str, Any], fields: Fields, strange: dict[str, list[Any]] | None = None
) -> list[Message]:
    """All that is said before the answer, and of chats the answers too: system, history, question.

    Raises:
        MessageError: what can't be read as messages.
    """
    earlier = as_dialogue(row[fields.history], strange) if fields.history else []
    # a history is what was said before: given, unless the user wants all of it learnt
    earlier = earlier if fields.turns == "all" else not_learnt(earlier)
    if fields.chat:
        said = as_dialogue(row[fields.chat], strange)
    # decided row by row: a prompt may be a text in one and messages, or JSON that says them, in another
    elif isinstance(_worded(row[fields.asked or ""]), (str, type(None))) and not is_chat(
        row[fields.asked or ""]
    ):
        text = asked_text(row, fields)
        said = [{"role": "user", "content": text}] if text else []
    else:
        said = as_chat(row[fields.asked or ""], strange)
        said = said if fields.turns == "all" else not_learnt(said)
        beside = BREAK.join(str(row[name]) for name in fields.beside if row[name])
        # a context beside a prompt of messages has no message of its own to join
        said += [{"role": "user", "content": beside}] if beside else []
    system = row[fields.system] if fields.system else None
    if system:
        # templates take one system message: the column's words and the chat's own become one
        own = [message for message in said[:1] if message["role"] == "system"]
        text = BREAK.join([str(system), *(m["content"] for m in own if m["content"] != system)])
        said = [{"role": "system", "content": text}, *earlier, *said[len(own) :]]
        # the history stands behind the system's words, before the question
        return said
    return [*earlier, *said]


def asked_text(row: dict[str, Any], fields: Fields) -> str:
    """The question's parts as one text; one that is empty adds nothing.

    Raises:
        MessageError: a part that is no text.
    """
    # the instruction first, then what it is about
    parts = [row[name] for name in (fields.asked, *fields.beside) if name]
    strange = next(
        (part for part in parts if part is not None and not isinstance(part, (str, int, float))), None
    )
    if strange is not None:
        raise MessageError(f"{strange!r:.60} in its question; wanted a text")
    texts = [
        part if isinstance(part, str) else str(part) for part in parts if part is not None and part != ""
    ]
    return BREAK.join(texts)


def _worded(value: Any) -> Any:
    """A whole number as its text: a table can't say whether the answer 42 is one. Decimals stay, as 4.50 and
    4.5 are no longer told apart.
    """
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def conversation(
    row: dict[str, Any], fields: Fields, strange: dict[str, list[Any]] | None = None
) -> list[Message]:
    """A whole chat, its answer too."""
    messages = asked_messages(row, fields, strange)
    if fields.answer:
        messages += as_chat(_worded(row[fields.answer]), strange, role="assistant")
    return last_learnt(messages) if fields.turns == "last" else messages


@dataclass(frozen=True)
class Laid:
    """Rows in the form that a verb reads, and what was made of their columns.

    Attributes:
        texts: what is read of a raw row, parted by NUL.
        hint: what else a text that nothing reads may be wanted for.
        aside: columns that are known to be about what is read, as parts of speech are.
        strange: values under keys of messages that nobody reads, by their dotted names.
        turns: columns that hold what somebody says, as a text or as messages, and whose role a text is
        said in.
        further: columns beside those that are read, which rows keep where several data sets become one.
    """

    rows: Dataset
    columns: Columns
    used: Used
    texts: Callable[[dict[str, Any]], str]
    layout: str = ""
    hint: str = ""
    aside: tuple[str, ...] = ()
    strange: dict[str, list[Any]] = field(default_factory=dict)
    turns: dict[str, str] = field(default_factory=dict)
    further: tuple[str, ...] = ()


def lay_out_chats(rows: Dataset, data: DataArguments) -> Laid:
    """Rows for sft: `prompt` and `completion`, `text` alone, or `messages` and `tools`.

    Raises:
        InputError: columns that are missing, or a row that can't be read, with its place.
    """
    fields = find_fields(rows, data)
    if fields.layout == "text":
        return Laid(rows, Columns("text", None, "text"), fields.used(), lambda row: str(row["text"]), "text")
    # texts alone stay texts: whether they go into a template is then the user's choice
    if fields.plain and not any(
        holds(rows, str(name), lambda v: not isinstance(_worded(v), str))
        for name in (fields.asked, fields.answer)
    ):
        features = {"prompt": Value("string"), "completion": Value("string")}
        made = mapped_rows(
            rows,
            fields,
            lambda row: {"prompt": asked_text(row, fields), "completion": _answer_text(row, fields)},
            features,
        )
        return Laid(
            made,
            Columns("prompt", None, "completion"),
            fields.used(),
            lambda row: f"{asked_text(row, fields)}\x00{row[str(fields.answer)]}",
            fields.layout,
        )
    # JSON, since structs would give every message the keys of all
    features = {"messages": List(Json()), "tools": Json()} if fields.tools else {"messages": List(Json())}

    def read(row: dict[str, Any]) -> dict[str, Any]:
        tools = {"tools": as_tools(row[fields.tools])} if fields.tools else {}
        return {"messages": conversation(row, fields), **tools}

    made = mapped_rows(rows, fields, read, features)
    return Laid(
        made, Columns("messages", None, "messages"), fields.used(),
        lambda row: said_in(conversation(row, fields)),
        fields.layout, strange=strange_keys(rows, fields),
    )  # fmt: skip


def lay_out_prompts(rows: Dataset, data: DataArguments, texts: Sequence[str] = ()) -> Laid:
    """What a model is to answer → `prompt`, a text or messages; the answers that rows hold, and all other
    columns, stay for rewards.

    Args:
        texts: usual names of columns that are prompts where no question's are there.

    Raises:
        InputError: columns that are missing, or a row that can't be read, with its place.
    """
    there = columns_of(rows)
    asked = data.text_column or first_of((*CHATS, *ASKED), there)
    # bare texts are prompts only if no question's column is there
    if asked is None and data.layout is None:
        asked = first_of(texts, there)
    try:
        fields = find_fields(
            rows,
            replace(data, text_column=asked) if asked and not first_of((*CHATS, *ASKED), there) else data,
            answer=False,
        )
    # a named column that no layout knows is a text to begin from
    except InputError:
        if asked is None:
            raise
        fields = Fields("text", asked=asked)
    plain = fields.plain and not holds(rows, str(fields.asked), lambda value: not isinstance(value, str))

    def asked_of(row: dict[str, Any]) -> tuple[Any, Any]:
        own = as_tools(row[fields.tools]) if fields.tools else None
        return asked_text(row, fields) if plain else unanswered(asked_messages(row, fields)), own

    made, tools = [], []
    for index, row in enumerate(rows):
        try:
            one, own = asked_of(row)
        except MessageError as error:
            said = unreadable(rows, index, f" stands {error}", asked_of, MessageError)
            raise InputError(f"{said}. Mend what stands there, or set --text_column") from error
        made.append(one)
        tools.append(own)
    kept = rows.remove_columns([name for name in rows.column_names if name in ("prompt", fields.tools)])
    kept = with_json(kept, "tools", tools) if fields.tools else kept
    laid = with_cells(kept, "prompt", made)
    used = {role: columns for role, columns in fields.used().items() if role != "label"}
    rest = [name for name in there if name not in fields.columns()]
    return Laid(
        laid, Columns("prompt", None, ""), used | {"rewards see": rest}, lambda row: "", fields.layout,
        strange={} if plain else strange_keys(rows, fields), turns={"prompt": "user"},
        further=tuple(n for n in laid.column_names if not n.startswith("__")),
    )  # fmt: skip


def unanswered(messages: Sequence[Message]) -> list[Message]:
    """A chat up to the answer that is to be given."""
    bare = [
        {key: value for key, value in message.items() if key not in ("train", "weight")}
        for message in messages
    ]
    # the answer that the rows hold is not to be told to the model
    return bare[:-1] if bare and bare[-1]["role"] == "assistant" else bare


def lay_out_questions(
    rows: Dataset, data: DataArguments, sources: Sequence[str], targets: Sequence[str]
) -> Laid:
    """Rows for models that read a source and write a target: columns with the usual names as they are, else
    `text` and `label`.

    Raises:
        InputError: columns that are missing, or a chat of several turns.
    """
    there = columns_of(rows)
    one, other = data.text_column or first_of(sources, there), data.label_column or first_of(targets, there)
    named = data.text_column is not None and data.label_column is not None
    # taken as they are only if no system, history or context would be lost by it
    asked = first_of(ASKED, there)
    if (
        one is not None
        and other is not None
        and (named or (asked in (None, one) and not first_of((*SYSTEM, *HISTORY), there)))
    ) and (named or not [name for name in there if name.lower() in BESIDE and name != one]):
        for name in (one, other):
            # whole numbers are answers as their texts are
            if name in there and str(getattr(rows.features[name], "dtype", "")).startswith(("int", "uint")):
                rows = rows.cast_column(name, Value("string"))
        return Laid(
            rows,
            Columns(one, None, other),
            {"text": [one], "label": [other]},
            lambda row: f"{row.get(one)}\x00{row.get(other)}",
        )
    # a chat beside a question and its answer says the same once more
    chats = [name for name in there if name.lower() in CHATS] if asked and first_of(ANSWERS, there) else []
    fields = find_fields(rows.remove_columns(chats), data)
    # bare texts are learnt whole by sft; here they lack what is to be written
    if fields.layout == "text":
        raise InputError(
            f"No column with an answer to '{fields.asked}' in {data.name}; it has {', '.join(there)}; wanted "
            f"one of: {', '.join(dict.fromkeys((*targets, *ANSWERS)))}. Set --label_column"
        )
    # one source and one target can't hold several turns
    if fields.chat or fields.tools:
        raise InputError(
            f"The rows of {data.name} are chats ({fields.chat or fields.tools}), which this task doesn't "
            "read; wanted one text and its "
            "answer. Use scripts/sft.py, or set --text_column and --label_column"
        )

    def read(row: dict[str, Any]) -> dict[str, Any]:
        return {
            "text": BREAK.join(message["content"] for message in asked_messages(row, fields)),
            "label": _answer_text(row, fields),
        }

    made = mapped_rows(rows, fields, read, {"text": Value("string"), "label": Value("string")})
    return Laid(
        made,
        Columns("text", None, "label"),
        fields.used(),
        lambda row: "\x00".join(read(row).values()),
        fields.layout,
    )


def _answer_text(row: dict[str, Any], fields: Fields) -> str:
    answer = row[fields.answer or ""]
    if answer is not None and not isinstance(answer, (str, int, float)):
        raise MessageError(f"the answer {answer!r:.60}; wanted a text")
    return "" if answer is None else str(answer)


def as_tools(given: Any) -> Any:
    """Descriptions of tools, from the JSON that they may be; None where there are none.

    Raises:
        MessageError: a text that is no JSON.
    """
    if not isinstance(given, str):
        return given or None
    try:
        return json.loads(given) if given.strip() else None
    except json.JSONDecodeError as error:
        raise MessageError(f"tools that are no JSON ({error}): {given!r:.60}") from error


def strange_keys(rows: Dataset, fields: Fields | None, answers: Sequence[str] = ()) -> dict[str, list[Any]]:
    """What messages hold under keys that nobody reads, by dotted names.

    Args:
        answers: further columns that may hold messages.
    """
    found: dict[str, list[Any]] = {}
    # under these names pairs and texts in turn are chats too
    chats = (fields.chat, fields.history) if fields else ()
    for column in dict.fromkeys((*chats, *((fields.asked, fields.answer) if fields else ()), *answers)):
        loose = column in chats
        if column is None or not holds(
            rows, column, is_dialogue if loose else lambda value: is_chat(value) or is_message(value)
        ):
            continue
        inner: dict[str, list[Any]] = {}
        for value in rows[column]:
            (as_dialogue if loose else as_chat)(value, inner)
        found |= {f"{column}.{key}": values for key, values in inner.items()}
    return found


def mapped_rows(
    rows: Dataset, fields: Fields, read: Callable[[dict[str, Any]], dict[str, Any]], features: dict[str, Any]
) -> Dataset:
    """Rows through `read`, with their place and `id`; kept in the cache where content, fields and code are
    old ones.

    Raises:
        InputError: a row that can't be read, with its place.
    """

    def at(row: dict[str, Any], index: int) -> dict[str, Any]:
        try:
            return read(row)
        except MessageError as error:
            said = unreadable(rows, index, f" stands {error}", read, MessageError)
            raise InputError(f"{said}. Mend what stands there, or leave it out") from error

    kept = {name: rows.features[name] for name in ("id", PLACE) if name in rows.column_names}
    # `datasets` would hash the closure by its pickle, which differs from process to process
    told = [
        code(),
        repr(fields),
        sorted(features),
        fingerprint(rows, Columns("", None, ""), *fields.columns(), *kept),
    ]
    return rows.map(
        at, with_indices=True, remove_columns=[name for name in rows.column_names if name not in kept],
        features=Features(kept | features),
        new_fingerprint=hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32], desc="Reading rows",
    )  # fmt: skip
