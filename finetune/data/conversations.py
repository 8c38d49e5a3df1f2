"""What people call a chat → messages with role and content. Knows the keys that chats are published with;
knows no tokenizer.

A canonical message has `role` (system, developer, user, assistant, tool) and `content` (a text), and beside
them only what
templates or training read: tool_calls, tool_call_id, name, reasoning, weight, train.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from finetune.errors import InputError

Message = dict[str, Any]

CALLS, RESULT = "tool_calls", "tool"
ROLES = {
    "user": "user", "human": "user", "prompter": "user", "client": "user", "customer": "user",
    "instruction": "user", "question": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant",
    "chatgpt": "assistant", "ai": "assistant",
    "chatbot": "assistant", "agent": "assistant", "answer": "assistant", "response": "assistant",
    "bing": "assistant", "bard": "assistant",
    "system": "system", "developer": "developer",
    "tool": RESULT, "observation": RESULT, "function": RESULT, "function_response": RESULT,
    "tool_response": RESULT, "ipython": RESULT,
    "function_call": CALLS, "tool_call": CALLS,
}  # fmt: skip
ROLE_KEYS, CONTENT_KEYS = (
    ("role", "from", "speaker", "author"),
    ("content", "value", "text", "message", "utterance"),
)
# what a message may hold beside: for templates, and for training
KEPT = (
    "name",
    "tool_call_id",
    "tool_calls",
    "reasoning_content",
    "thinking",
    "reasoning",
    "weight",
    "train",
)
# the words of other tools for what `train` says here, and those that say the opposite
LEARNT = ("loss", "loss_mask", "loss_weight", "trainable", "train_on_turn", "learn")
MASKED = ("masked", "ignore_loss", "no_loss")
PAIRED = (  # a turn as a pair of keys, question and answer, before or after which a system's words may stand
    ("input", "instruction", "question", "human", "user", "prompt", "query"),
    ("output", "response", "answer", "assistant", "gpt", "bot", "completion"),
)
INSIDE = ("messages", "conversations", "conversation", "turns", "chat", "dialog")  # a chat in a record
REASONING = ("reasoning_content", "thinking", "reasoning")


class MessageError(InputError):
    """A message that can't be read; it doesn't know which row it is of."""


def is_message(value: Any) -> bool:
    """Whether a cell, or an entry of one, is a message by its keys."""
    known = {_key(key) for key in value} if isinstance(value, dict) else set()
    return bool(known & set(ROLE_KEYS) and known & {*CONTENT_KEYS, "tool_calls", "function_call"})


def is_chat(value: Any) -> bool:
    """Whether a cell is a list of messages, or a record or a JSON text that holds one."""
    value = unpacked(value)
    return isinstance(value, list) and bool(value) and all(map(is_message, value))


def is_dialogue(value: Any) -> bool:
    """The same, or a list of turns that are pairs of question and answer, or of texts said in turn: what a
    column with a chat's name may hold.
    """
    value = unpacked(value)
    if not isinstance(value, list) or not value:
        return False
    return is_chat(value) or all(map(_is_pair, value)) or _is_in_turn(value)


def unpacked(value: Any) -> Any:
    """A chat out of what it may be wrapped in: JSON text, or a record with the chat under a usual name."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            found = json.loads(value)
        except json.JSONDecodeError:
            return value
        # JSON that is no chat is what somebody says: a user may ask about a list
        return unpacked(found) if is_dialogue(found) else value
    if isinstance(value, dict) and not is_message(value):
        # structs hold every key of any row: those of None are not this row's
        filled = {key: one for key, one in value.items() if one is not None}
        inner = next((key for key in filled if key.lower() in INSIDE), None)
        # beside other keys the record says more than its chat, which must not be dropped unseen
        if inner is not None and len(filled) == 1:
            return filled[inner]
    return value


def _is_pair(value: Any) -> bool:
    """Whether an entry holds a question and its answer: two texts, or a record with usual names for both."""
    if isinstance(value, (list, tuple)):
        # exactly two texts; a list of two texts as a whole chat is told by `_is_in_turn`
        return len(value) == 2 and all(isinstance(one, str) for one in value)
    if not isinstance(value, dict) or is_message(value):
        return False
    return any(key in value for key in PAIRED[0]) and any(key in value for key in PAIRED[1])


def _is_in_turn(value: list[Any]) -> bool:
    """Whether a list holds what two people say in turn."""
    return len(value) > 1 and all(isinstance(one, str) for one in value)


def as_message(given: Message, strange: dict[str, list[Any]] | None = None) -> Message:
    """A message in canonical form.

    Args:
        strange: takes what stands under keys that nobody reads, by key.

    Raises:
        MessageError: a role that isn't known, a content that is neither a text nor parts of one.
    """
    # None is Arrow's filling for keys that other rows have
    given = {_key(key): value for key, value in given.items() if value is not None}
    # in the order of the tables: a message with `role` and `name` is said by its role
    role_key = next((key for key in ROLE_KEYS if key in given), None)
    content_key = next((key for key in CONTENT_KEYS if key in given), None)
    name = str(given.get(role_key or "", "")).strip().lower()
    if name not in ROLES:
        raise MessageError(
            f"the role {given.get(role_key or '')!r}, which nobody knows; wanted one of: {', '.join(ROLES)}"
        )
    role, content = ROLES[name], _text(given.get(content_key or ""))
    made: Message = {"role": role, "content": content}
    # ShareGPT's own turn for a call: its content is the call as JSON, and the assistant says nothing beside
    # it
    if role == CALLS:
        made = {"role": "assistant", "content": "", "tool_calls": _calls(content)}
    made |= {key: given[key] for key in KEPT if key in given}
    # OpenAI's older key for a single call
    if "function_call" in given:
        made["tool_calls"] = _calls(given["function_call"])
    # last, as it translates other tools' words into `train`
    made |= _learnt(given)
    if strange is not None:
        for key in given:
            if key not in (role_key, content_key, "function_call", *KEPT, *LEARNT, *MASKED):
                strange.setdefault(key, []).append(given[key])
    return made


def _key(key: str) -> str:
    """A key in small letters where it is one that is known so: `Role`, `Content`."""
    small = key.lower()
    return small if small in (*ROLE_KEYS, *CONTENT_KEYS) else key


def _learnt(given: Message) -> dict[str, bool]:
    """A message's own word on whether it is learnt, in whatever words.

    Raises:
        MessageError: neither yes nor no, such as a weight of a half: a loss here has no weights.
    """
    found = {}
    for key in ("weight", "train", *LEARNT, *MASKED):
        if key not in given:
            continue
        # equal to 0 or 1: True, False, 0.0 and 1.0 are taken too
        if given[key] not in (0, 1):
            raise MessageError(f"a message with {key}: {given[key]!r:.40}; wanted 0 or 1, true or false")
        # `weight` and `train` are kept as they are; a mask says the opposite
        if key not in KEPT:
            found["train"] = bool(given[key]) != (key in MASKED)
    return found


def _text(content: Any) -> str:
    """A content as text: parts of it are joined as they stand."""
    if content is None or isinstance(content, str):
        return content or ""
    # one part without the list around it
    if isinstance(content, dict):
        content = [content]
    if isinstance(content, list):
        texts = [
            part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
            for part in content
        ]
        # joined without a blank: parts bring their own, and templates join them so
        if all(isinstance(text, str) for text in texts):
            return "".join(texts)
        kinds = ", ".join(sorted({str(part.get("type")) for part in content if isinstance(part, dict)}))
        raise MessageError(f"a content of {kinds or type(content[0]).__name__}; wanted parts of text alone")
    raise MessageError(f"the content {content!r:.60}; wanted a text")


def _calls(given: Any) -> list[dict[str, Any]]:
    """Calls of tools, as JSON or as what it says, in the form that templates read."""
    try:
        calls = json.loads(given) if isinstance(given, str) else given
    except json.JSONDecodeError as error:
        raise MessageError(f"a call of a tool that is no JSON ({error}): {given!r:.60}") from error
    # several calls in one turn, or one without the list around it
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and ("name" in call or "function" in call) for call in calls):
        raise MessageError(f"a call of a tool without a name: {given!r:.60}")
    # a bare {name, arguments} is wrapped as templates expect a call
    return [call if "function" in call else {"type": "function", "function": call} for call in calls]


def as_chat(given: Any, strange: dict[str, list[Any]] | None = None, role: str = "user") -> list[Message]:
    """A cell as messages: a text is one of `role`, a message one.

    Raises:
        MessageError: neither, nor a list of messages, or a message that can't be read.
    """
    given = unpacked(given)
    # nothing was said: an empty history or an empty first turn
    if given is None or given == "":
        return []
    if isinstance(given, str):
        return [{"role": role, "content": given}]
    given = [given] if is_message(given) else given
    if isinstance(given, list) and all(is_message(one) for one in given):
        return [as_message(one, strange) for one in given]
    raise MessageError(f"{given!r:.60}; wanted a text, or a list of messages with role and content")


def as_dialogue(given: Any, strange: dict[str, list[Any]] | None = None) -> list[Message]:
    """A cell of a column with a chat's name, or of a history: also pairs of question and answer, and texts
    that
    two say in turn.

    Raises:
        MessageError: none of these.
    """
    given = unpacked(given)
    if isinstance(given, list) and given and all(map(_is_pair, given)):
        return [message for pair in given for message in _turns(pair, strange)]
    if isinstance(given, list) and _is_in_turn(given):
        return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(given)]
    return as_chat(given, strange)


def _turns(pair: Any, strange: dict[str, list[Any]] | None) -> list[Message]:
    """A question and its answer, and a system's words before them where the record has any."""
    if not isinstance(pair, dict):
        pair = dict(zip(("user", "assistant"), pair, strict=True))
    filled = {key: value for key, value in pair.items() if value is not None}
    # system first, whatever order the record has
    keys = [("system", "system")] + [
        (role, key)
        for role, names in zip(("user", "assistant"), PAIRED, strict=True)
        for key in names
        if key in filled
    ]
    found = [
        {"role": role, "content": _text(filled[key])}
        for role, key in keys
        # an empty half of a pair (a history's open end) is no message
        if str(filled.get(key) or "").strip()
    ]
    if strange is not None:
        # what stands under other keys is reported, not lost
        for key in filled.keys() - {key for _, key in keys}:
            strange.setdefault(key, []).append(filled[key])
    return found


def not_learnt(messages: Sequence[Message]) -> list[Message]:
    """Messages that are given, not to be learnt, whatever they say of it themselves."""
    return [
        {**message, "train": False} if message["role"] == "assistant" else message for message in messages
    ]


def last_learnt(messages: Sequence[Message]) -> list[Message]:
    """Messages of which the last answer alone is learnt."""
    # -1 where nobody answers: then all messages stay as they are
    last = max(
        (place for place, message in enumerate(messages) if message["role"] == "assistant"), default=-1
    )
    return [*not_learnt(messages[:last]), *messages[max(last, 0) :]]


def said_in(messages: Sequence[Message]) -> str:
    """All that messages say, for finding a text again."""
    texts = [message["content"] for message in messages]
    # reasoning and calls are read too, so that a column that repeats them is no unread text
    texts += [str(message[key]) for message in messages for key in REASONING if message.get(key)]
    return "\x00".join(
        [*texts, *(json.dumps(m["tool_calls"], ensure_ascii=False) for m in messages if m.get("tool_calls"))]
    )
