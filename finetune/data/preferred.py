"""Preferences in the ways that they are published → a question and two answers, or an answer and a
verdict. Knows columns alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from datasets import Dataset, concatenate_datasets

from finetune.data.accounting import cell_texts
from finetune.data.cells import with_json
from finetune.data.columns import Columns, listed
from finetune.data.compared import better_and_worse, is_compared
from finetune.data.conversations import Message, MessageError, as_chat, is_chat, said_in
from finetune.data.layouts import ASKED, CHATS, Fields, find_fields, first_of, holds
from finetune.data.narrowed import AskedArguments, PreferenceArguments
from finetune.data.places import columns_of, unreadable
from finetune.data.questions import Laid, as_tools, asked_messages, asked_text, strange_keys
from finetune.data.sources import DataArguments
from finetune.errors import InputError

BETTER = ("chosen", "preferred", "accepted", "better", "response_chosen", "chosen_response",
          "response_j")  # fmt: skip
WORSE = ("rejected", "dispreferred", "non_preferred", "worse", "response_rejected",
         "rejected_response", "response_k")  # fmt: skip
SAID, VERDICTS = (
    ("completion", "response", "output", "answer"),
    ("label", "desirable", "kto_tag", "liked", "good"),
)
# numbers and words about a pair, which no answer is made of
ABOUT = (
    "margin",
    "chosen_score",
    "rejected_score",
    "score_chosen",
    "score_rejected",
    "chosen_ended",
    "rejected_ended",
)
SIDES = {"chosen": "assistant", "rejected": "assistant"}
TRUE, FALSE = (
    ("true", "1", "1.0", "yes", "good", "desirable"),
    ("false", "0", "0.0", "no", "bad", "undesirable"),
)


def are_pairs(rows: Dataset, data: DataArguments) -> bool:
    """Whether rows hold a better and a worse answer, and not answers with a verdict each."""
    there = columns_of(rows)
    if named_answer(data, there):
        return False
    return any(named_sides(data, there)) or first_of(BETTER, there) is not None or is_compared(there)


def named_sides(data: DataArguments, there: Sequence[str]) -> tuple[str | None, str | None]:
    """The columns of the better and the worse answer, where the user named them.

    Raises:
        InputError: one that isn't there, the prompt's too.
    """
    if not isinstance(data, PreferenceArguments):
        return None, None
    for flag, named in (
        ("prompt_column", data.prompt_column), ("chosen_column", data.chosen_column),
        ("rejected_column", data.rejected_column),
    ):  # fmt: skip
        if named is not None and named not in there:
            raise InputError(f"No column '{named}' in {data.name}; it has {', '.join(there)}. Set --{flag}")
    return data.chosen_column, data.rejected_column


def named_answer(data: DataArguments, there: Sequence[str]) -> str | None:
    """The column of a row's only answer, where the user named it.

    Raises:
        InputError: it isn't there.
    """
    named = data.completion_column if isinstance(data, AskedArguments) else None
    if named is not None and named not in there:
        raise InputError(
            f"No column '{named}' in {data.name}; it has {', '.join(there)}. Set --completion_column"
        )
    return named


def of_questions(data: DataArguments) -> DataArguments:
    """What a question is read by: preferences call its column --prompt_column."""
    return data.of_questions() if isinstance(data, AskedArguments) else data


def lay_out_pairs(rows: Dataset, data: DataArguments) -> Laid:
    """A question with a better and a worse answer → prompt, chosen, rejected, and tools, margins and scores
    where there are any.

    Texts stay texts where a question is nothing else; with a system's words, a history or tools all become
    messages. Without a question's column the two answers hold it themselves.

    Raises:
        InputError: columns that are missing, or rows that can't be read, with their place.
    """
    there = columns_of(rows)
    if named_answer(data, there):
        raise InputError(
            f"--completion_column names an answer alone, and {data.name} is read as pairs here. Set "
            "--chosen_column and --rejected_column"
        )
    better, worse = named_sides(data, there)
    # before the usual names: other columns may have those too
    better, worse = better or first_of(BETTER, there), worse or first_of(WORSE, there)
    compared = better_and_worse(rows, data) if better is None and worse is None else None
    if compared is not None:
        laid = lay_out_pairs(compared.rows, replace(data, label_column=None))
        used = compared.used({role: columns for role, columns in laid.used.items() if role not in SIDES})
        named = [name for columns in used.values() for name in columns]
        # read of the file's own columns, which the laid rows no longer have
        return replace(
            laid, used=used, texts=lambda row: "\x00".join(cell_texts([row[name] for name in named])),
            strange=strange_keys(rows, None, named),
        )  # fmt: skip
    if better is None or worse is None:
        raise InputError(
            f"No column '{'chosen' if better is None else 'rejected'}' in {data.name}; it has "
            f"{', '.join(there)}; wanted a better answer as one of: {', '.join(BETTER)}; and a worse one as "
            "one of: "
            f"{', '.join(WORSE)}; or two answers and a verdict (response_0, response_1, better_response_id). "
            "Set --chosen_column and --rejected_column (and --prompt_column where the question has one), or "
            "--dataset_name to preference pairs"
        )
    # None where both answers are whole chats that hold the question
    fields = question_of(rows, of_questions(data), (better, worse))
    kept = [name for name in (*ABOUT, "id") if name in there]
    # the first row tells a column's kind, as Arrow has one for all
    texts = (fields is None or fields.plain) and all(
        (isinstance(value, str) and not is_chat(value)) or value is None  # a chat may come as JSON
        for name in filter(None, (better, worse, fields and fields.asked)) for value in rows[name][:1]
    )  # fmt: skip
    read = _texts if texts else _chats
    made = as_made(rows, ("chosen", "rejected"), lambda row: read(row, fields, (better, worse)))
    rest = rows.select_columns([name for name in rows.column_names if name in kept or name.startswith("__")])
    used = {**(fields.used() if fields else {}), "chosen": [better], "rejected": [worse]}
    # without an answer's column `used` names the question's again, as its label
    used.pop("label", None)
    return Laid(
        with_columns(rest, made), Columns("prompt", None, "chosen"), used, lambda row: _read(row, fields,
        (better, worse)),
        fields.layout if fields else "", aside=tuple(kept), turns={"prompt": "user", **SIDES},
        strange={} if texts else strange_keys(rows, fields, (better, worse)), further=(*kept, "tools"),
    )  # fmt: skip


def as_made(
    rows: Dataset, names: Sequence[str], read: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, list[Any]]:
    """What each row becomes, as columns: those of `names`, and further ones that its readings have.

    Raises:
        InputError: a row that can't be read, with its place.
    """
    made: dict[str, list[Any]] = {name: [] for name in names}
    for index, row in enumerate(rows):
        try:
            one = read(row)
        except MessageError as error:
            said = unreadable(rows, index, f" stands {error}", read, MessageError)
            raise InputError(f"{said}. Mend what stands there, or leave it out") from error
        for name, value in one.items():
            made.setdefault(name, []).append(value)
    return made


def question_of(rows: Dataset, data: DataArguments, answers: Sequence[str]) -> Fields | None:
    """The question's columns; a list of messages beside a prompt says what the better answer says."""
    # without the answers: `chosen` may be a list of messages and would pass for the chat
    rest = rows.select_columns([name for name in columns_of(rows) if name not in answers])
    asked = data.text_column or first_of(
        (*ASKED[:1], "conversations", "conversation", *ASKED[1:]), columns_of(rest)
    )
    # a chat column is a question only if its chats end with one; else it repeats the answer
    if asked is None:
        asked = next((name for name in columns_of(rest) if name.lower() in CHATS and _asks(rest, name)), None)
    if asked is None and data.layout is None:
        return None
    if asked is not None:
        rest = rest.remove_columns(
            [name for name in columns_of(rest) if name.lower() in CHATS and name != asked]
        )
    # the answers are the two sides, whatever else could be one
    return replace(find_fields(rest, data, answer=False), answer=None)


def _asks(rows: Dataset, column: str) -> bool:
    """Whether a column's chats end with a question."""
    return holds(rows, column, lambda chat: is_chat(chat) and as_chat(chat)[-1]["role"] != "assistant")


def _texts(row: dict[str, Any], fields: Fields | None, answers: Sequence[str]) -> dict[str, Any]:
    sides = dict(zip(("chosen", "rejected"), (row[name] for name in answers), strict=True))
    return sides if fields is None else {"prompt": asked_text(row, fields), **sides}


def _chats(row: dict[str, Any], fields: Fields | None, answers: Sequence[str]) -> dict[str, Any]:
    # a bare text is what the assistant says
    sides = [as_chat(row[name], role="assistant") for name in answers]
    if fields is None:
        return {"chosen": sides[0], "rejected": sides[1]}
    prompt = [_bare(message) for message in asked_messages(row, fields)]
    # compared without marks on learning, which one side may have and the prompt not
    told = (
        [_bare(message) for message in sides[0][: len(prompt)]],
        [_bare(message) for message in sides[1][: len(prompt)]],
    )
    if all(one == prompt for one in told) or all(
        len(side) > 1 and side[0]["role"] in ("user", "system") for side in sides
    ):
        # answers that hold the question: what both begin with is the question, whatever the prompt's column
        # says of it
        shared = next(
            (i for i, (a, b) in enumerate(zip(*sides, strict=False)) if a != b), min(map(len, sides)) - 1
        )
        prompt, sides = [_bare(message) for message in sides[0][:shared]], [side[shared:] for side in sides]
    tools = {"tools": as_tools(row[fields.tools])} if fields.tools else {}
    return {"prompt": prompt, "chosen": sides[0], "rejected": sides[1], **tools}


def _bare(message: Message) -> Message:
    """A message that is not learnt in any case, without its word on it."""
    return {key: value for key, value in message.items() if key not in ("train", "weight")}


def _read(row: dict[str, Any], fields: Fields | None, answers: Sequence[str]) -> str:
    asked = said_in(asked_messages(row, fields)) if fields else ""
    return "\x00".join([asked, *(said_in(as_chat(row[name], role="assistant")) for name in answers)])


def with_columns(rows: Dataset, made: dict[str, list[Any]]) -> Dataset:
    """The rows with further columns: messages with role and content alone as records, others as JSON,
    which keeps their keys.
    """
    for name, values in made.items():
        filled = [value for value in values if value is not None]
        plain = all(isinstance(v, list) and all(set(m) == {"role", "content"} for m in v) for v in filled)
        if plain or isinstance(filled[0], (str, bool)):
            # Arrow keeps such records as they are; with other keys it would fill them up with None
            added = Dataset.from_dict({name: values})
            rows = concatenate_datasets([rows, added], axis=1) if rows.column_names else added
        else:
            rows = with_json(rows, name, values)
    return rows


def lay_out_unpaired(rows: Dataset, data: DataArguments) -> Laid:
    """A question, an answer and whether it is a good one → prompt, completion, label (true or false), and
    tools where there are any. Of a chat the last turn is the answer.

    Raises:
        InputError: columns that are missing, or verdicts that are neither yes nor no, with their place.
    """
    there = columns_of(rows)
    verdict = data.label_column or first_of(VERDICTS, there)
    said = named_answer(data, there) or first_of(SAID, there)
    chat = first_of(CHATS, there) if said is None else None
    if verdict is None or (said is None and chat is None):
        mends = [
            *(["--label_column"] if verdict is None else []),
            *(["--completion_column"] if said is None else []),
        ]
        raise InputError(
            f"No columns with an answer and its verdict in {data.name}; it has {', '.join(there)}; wanted "
            f"prompt, completion and label, or messages and label. Set {listed(mends)}"
        )
    # --label_column names the verdict here, not an answer
    asked = of_questions(data)
    bare = replace(asked, label_column=None, text_column=chat or asked.text_column)
    fields = question_of(rows, bare, (verdict, *([said] if said else [])))
    if fields is None:
        raise InputError(
            f"No column with a question in {data.name}; it has {', '.join(there)}. Set {asked.text_option}"
        )
    plain = fields.plain and all(
        isinstance(rows[0][name], str) and not is_chat(rows[0][name]) for name in (said, fields.asked)
    )

    def judged(row: dict[str, Any]) -> dict[str, Any]:
        one = answered(row, fields, said, plain) | {"label": as_verdict(row[verdict])}
        return one | ({"tools": as_tools(row[fields.tools])} if fields.tools else {})

    made = as_made(rows, ("prompt", "completion", "label"), judged)
    rest = rows.select_columns([name for name in rows.column_names if name == "id" or name.startswith("__")])
    used = {**fields.used(), "completion": [said or str(chat)], "label": [verdict]}
    return Laid(
        with_columns(rest, made), Columns("prompt", None, "completion"), used, lambda row: _read(row, fields,
        (said,) if said else ()), fields.layout, strange=strange_keys(rows, fields, (said,) if said else ()),
        turns={"prompt": "user", "completion": "assistant"}, further=("label", "tools"),
    )  # fmt: skip


def answered(row: dict[str, Any], fields: Fields, said: str | None, plain: bool) -> dict[str, Any]:
    """Prompt and completion of a row: texts where they are `plain`; of a chat without a column for its
    answer the last turn.
    """
    if plain:
        return {"prompt": asked_text(row, fields), "completion": row[said]}
    prompt = [_bare(message) for message in asked_messages(row, fields)]
    if said:
        return {"prompt": prompt, "completion": as_chat(row[said], role="assistant")}
    # a question and an answer at least
    if len(prompt) < 2 or prompt[-1]["role"] != "assistant":
        raise MessageError("a chat that does not end with an answer")
    return {"prompt": prompt[:-1], "completion": prompt[-1:]}


def as_verdict(value: Any) -> bool:
    """Whether an answer is a good one.

    Raises:
        MessageError: a value that says neither.
    """
    # True, 1, 1.0 and "yes" in one form
    said = str(value).strip().lower()
    if said in (*TRUE, *FALSE):
        return said in TRUE
    raise MessageError(f"the verdict {value!r}; wanted true or false")
