"""LAYOUTS: how questions and answers are laid out in rows, and which columns are which. Knows columns; knows
no tokenizer.

A layout is told from a row's columns, or named by --layout. `finetune.data.questions` reads all of them
alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset

from finetune.data.accounting import Used
from finetune.data.conversations import ROLE_KEYS, as_chat, is_chat, is_dialogue, unpacked
from finetune.data.places import columns_of
from finetune.data.sources import DataArguments
from finetune.errors import InputError

CHATS = ("messages", "conversations", "conversation", "chat", "dialog", "turns")
ASKED = ("prompt", "instruction", "question", "query", "problem", "user", "human", "input")
BESIDE = ("input", "context", "passage", "knowledge")
SYSTEM, TOOLS, HISTORY = ("system", "system_prompt", "system_message"), ("tools", "functions"), ("history",)
ANSWERS = ("completion", "output", "response", "answer", "solution", "assistant", "bot", "reply", "target")


@dataclass(frozen=True)
class Layout:
    """One way to lay out rows: the verbs that read it, the columns that tell it, and a row."""

    verbs: str
    columns: tuple[str, ...]
    example: dict[str, Any]


def _said(
    *texts: str, role: str = "role", content: str = "content", names: Sequence[str] = ("user", "assistant")
) -> list[dict[str, str]]:
    return [{role: name, content: text} for name, text in zip(names, texts, strict=False)]


ASK, SAY = "Name the capital.", "Oslo"
LAYOUTS: dict[str, Layout] = {
    "messages": Layout("sft, ppo, grpo, prefer", CHATS, {"messages": _said(ASK, SAY)}),
    "sharegpt": Layout(
        "sft, ppo, grpo, prefer", CHATS,
        {"conversations": _said(ASK, SAY, role="from", content="value", names=("human", "gpt"))}
    ),
    "alpaca": Layout(
        "sft, seq2seq, ppo, grpo, prefer, dpo, reward", ("instruction",),
        {"instruction": "Name the capital.", "input": "Norway", "output": "Oslo", "system": "Be brief.",
        "history": [["Hello.", "Hello!"]]},
    ),
    "dolly": Layout(
        "sft, seq2seq, ppo, grpo, prefer, dpo, reward", ("instruction", "context"),
        {"instruction": "Name the capital.", "context": "Norway lies in the north.", "response": "Oslo",
        "category": "closed_qa"},
    ),
    "prompt_completion": Layout("sft, seq2seq, ppo, grpo, prefer, dpo, reward", ("prompt",),
    {"prompt": ASK, "completion": SAY, "system": "Be brief."}),
    "question_answer": Layout("sft, seq2seq, ppo, grpo, prefer, dpo, reward", ("question",),
    {"question": ASK, "answer": SAY, "context": "Norway."}),
    "query_response": Layout("sft, seq2seq, ppo, grpo, prefer, dpo, reward", ("query",),
    {"query": ASK, "response": SAY}),
    "input_output": Layout("sft, seq2seq, ppo, grpo, prefer, dpo, reward", ("input",),
    {"input": ASK, "output": SAY}),
    "text": Layout("sft, pretrain", ("text",), {"text": "Oslo is the capital of Norway."}),
}  # fmt: skip


@dataclass(frozen=True)
class Fields:
    """Which columns a question and its answer are made of; None or nothing where there is none."""

    layout: str
    chat: str | None = None
    asked: str | None = None
    beside: tuple[str, ...] = ()
    system: str | None = None
    tools: str | None = None
    history: str | None = None
    answer: str | None = None
    turns: str | None = None

    def used(self) -> Used:
        """Columns by what they are for."""
        question = [name for name in (self.chat, self.asked, *self.beside) if name]
        label = [self.answer or self.chat or self.asked or ""] if self.answer or self.layout != "text" else []
        one = {"system": self.system, "history": self.history, "tools": self.tools}
        return {"text": question, "label": label} | {role: [name] for role, name in one.items() if name}

    def columns(self) -> list[str]:
        """All of them."""
        return list(dict.fromkeys(name for names in self.used().values() for name in names))

    @property
    def plain(self) -> bool:
        """Whether nothing but texts is there, asked and answered once."""
        return not (self.chat or self.system or self.tools or self.history)


def first_of(names: Iterable[str], there: Sequence[str]) -> str | None:
    """The first of some names that a column has, capitals aside."""
    # reversed, so that of `Text` and `text` the first in the file wins
    known = {column.lower(): column for column in reversed(there)}
    return next((known[name] for name in names if name in known), None)


def find_fields(rows: Dataset, data: DataArguments, answer: bool = True) -> Fields:
    """The columns of a question and, where `answer`, of its answer.

    Raises:
        InputError: no such columns, or none of the layout that was named.
    """
    there = columns_of(rows)
    for flag, named in ((data.text_option, data.text_column), ("--label_column", data.label_column)):
        if named is not None and named not in there:
            raise InputError(f"No column '{named}' in {data.name}; it has {', '.join(there)}. Set {flag}")
    found = _question(rows, data, there, answer)
    # the question's own column can't be its answer as well: `input` beside `output`, `query` beside `reply`
    rest = [column for column in there if column not in (found.chat, found.asked)]
    label = data.label_column or (first_of(ANSWERS, rest) if answer and found.chat is None else None)
    # a chat holds its answers, and a bare text is learnt whole
    if found.layout != "text" and found.chat is None and answer and label is None:
        raise InputError(
            f"No column with an answer to '{found.asked}' in {data.name}; it has {', '.join(there)}; wanted "
            "one of: "
            f"{', '.join(ANSWERS)}. Set --label_column"
        )
    rest = [column for column in rest if column != label]
    asks = found.chat is None and found.layout != "text"
    # in BESIDE's order, not the file's: the same rows give the same question whatever order their columns
    # have
    beside = tuple(
        name
        for name in sorted((n for n in rest if n.lower() in BESIDE), key=lambda n: BESIDE.index(n.lower()))
        if asks and not _stands_in(rows, name, str(found.asked))
    )
    # both begin with `instruction`; the context tells them apart
    dolly = found.layout == "alpaca" and "context" in map(str.lower, beside) and data.layout is None
    return replace(
        found, layout="dolly" if dolly else found.layout, beside=beside, answer=label, system=first_of(SYSTEM,
        rest), tools=first_of(TOOLS, rest),
        history=first_of(HISTORY, rest), turns=data.learn_turns,
    )  # fmt: skip


def _question(rows: Dataset, data: DataArguments, there: list[str], answer: bool) -> Fields:
    if data.layout is not None and data.layout not in LAYOUTS:
        raise InputError(f"Unknown layout '{data.layout}'; wanted one of: {', '.join(LAYOUTS)}. Set --layout")
    wanted = LAYOUTS[data.layout].columns if data.layout else None
    # dolly's second column is no question: only its first is looked for
    column = data.text_column or (
        first_of(wanted or (*CHATS, *ASKED), there)
        if wanted is None or "context" not in wanted
        else first_of(wanted[:1], there)
    )
    # under a chat's name looser forms count (pairs, texts in turn), which elsewhere are lists of anything
    named = column is not None and _name(column) in CHATS and data.label_column is None
    if column is not None and holds(rows, column, is_dialogue if named else is_chat):
        # the first filled cell: an empty chat has no keys to tell the style by
        style = _style(next(v for v in rows[column] if v))
        # a prompt that is a chat has its answer in a column of its own
        # (a chat under another name holds its own where it ends with one)
        whole = _name(column) in CHATS or (
            column == data.text_column
            and not first_of(ANSWERS, [name for name in there if name != column])
            and holds(rows, column, lambda chat: as_chat(chat)[-1]["role"] == "assistant")
        )
        if whole and data.label_column is None:
            return Fields(data.layout or style, chat=column)
        return Fields("prompt_completion", asked=column)
    # `conversation` may hold an id or a title: a question's column is then looked for before giving up
    strange = column if named and data.text_column is None and data.layout is None else None
    column = first_of(ASKED, there) if strange else column
    # `text` comes last: a file with both a question and `text` (Alpaca) repeats the question there
    if column is None and data.layout is None and {"role", "parent_id"} <= {one.lower() for one in there}:
        raise InputError(
            f"{data.name} has a message a row ({', '.join(there)}); wanted a chat a row. Join the messages "
            "by their parents into a column 'messages' of role and content, or set --layout text to learn "
            "each message as a bare text"
        )
    if column is None and data.layout in (None, "text") and "text" in there:
        return Fields("text", asked="text")
    if column is None:
        names = ", ".join(wanted or (*CHATS, *ASKED, "text"))
        if strange is not None:
            first = next((value for value in rows[strange] if value), None)
            raise InputError(
                f"The column '{strange}' of {data.name} holds {first!r:.80}; wanted a list of messages with "
                "role "
                "and content, of pairs of question and answer, or of texts said in turn. Mend it, or set "
                f"{data.text_option}"
            )
        # both at once, where the answer would be asked for next
        no_answer = answer and not (data.label_column or first_of(ANSWERS, there))
        answers = f"; and one of: {', '.join(ANSWERS)}" if no_answer else ""
        raise InputError(
            f"No column with a question{' or an answer' if no_answer else ''} in {data.name}; it has "
            f"{', '.join(there)}; wanted one of: {names}{answers}. "
            f"Set {data.text_option}{' and --label_column' if no_answer else ''}"
        )
    # the two chats' layouts are told by their cells, above
    told = next(
        (
            name
            for name, layout in LAYOUTS.items()
            if layout.columns[0] == column.lower() and name not in ("messages", "sharegpt")
        ),
        "question_answer",
    )
    return Fields(data.layout or told, asked=column)


def _name(column: str) -> str:
    """A column's own name, without those of the records that it stands in."""
    return column.rpartition(".")[2].lower()


def _style(chat: Any) -> str:
    """The layout's name for a chat, by the keys of its first turn."""
    first = unpacked(chat)[0]
    # `role` decides where both stand, as in data sets converted from one style to the other
    keys = {key.lower() for key in first} if isinstance(first, dict) else set()
    return "sharegpt" if keys & set(ROLE_KEYS[1:]) and "role" not in keys else "messages"


def _stands_in(rows: Dataset, column: str, asked: str) -> bool:
    """Whether a column's texts are parts of the questions already, in every row that has one."""
    # rows without the part say nothing on whether it is repeated
    pairs = [(one, other) for one, other in zip(rows[column], rows[asked], strict=True) if one]
    return all(
        isinstance(one, str) and isinstance(other, str) and one.strip() in other for one, other in pairs
    )


def holds(rows: Dataset, column: str, what: Callable[[Any], bool]) -> bool:
    return next((what(value) for value in rows[column] if value), False)
