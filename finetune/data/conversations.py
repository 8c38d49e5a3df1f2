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
    "loss",
)
REASONING = ("reasoning_content", "thinking", "reasoning")


class MessageError(InputError):
    """A message that can't be read; it doesn't know which row it is of."""


def is_message(value: Any) -> bool:
    """Whether a cell, or an entry of one, is a message by its keys."""
    return (
        isinstance(value, dict)
        and any(key in value for key in ROLE_KEYS)
        and any(key in value for key in (*CONTENT_KEYS, "tool_calls"))
    )


def is_chat(value: Any) -> bool:
    """Whether a cell is a list of messages."""
    return isinstance(value, list) and bool(value) and all(is_message(one) for one in value)


def as_message(given: Message, strange: dict[str, list[Any]] | None = None) -> Message:
    """A message in canonical form.

    Args:
        strange: takes what stands under keys that nobody reads, by key.

    Raises:
        MessageError: a role that isn't known, a content that is neither a text nor parts of one.
    """
    given = {key: value for key, value in given.items() if value is not None}
    role_key = next((key for key in ROLE_KEYS if key in given), None)
    content_key = next((key for key in CONTENT_KEYS if key in given), None)
    name = str(given.get(role_key or "", "")).strip().lower()
    if name not in ROLES:
        raise MessageError(
            f"the role {given.get(role_key or '')!r}, which nobody knows; wanted one of: {', '.join(ROLES)}"
        )
    role, content = ROLES[name], _text(given.get(content_key or ""))
    made: Message = {"role": role, "content": content}
    if role == CALLS:
        made = {"role": "assistant", "content": "", "tool_calls": _calls(content)}
    made |= {key: given[key] for key in KEPT if key in given}
    if "function_call" in given:
        made["tool_calls"] = _calls(given["function_call"])
    if "loss" in made:
        made.setdefault("train", bool(made.pop("loss")))
    if strange is not None:
        for key in given:
            if key not in (role_key, content_key, "function_call", *KEPT):
                strange.setdefault(key, []).append(given[key])
    return made


def _text(content: Any) -> str:
    """A content as text: parts of it are joined as they stand."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, dict):
        content = [content]
    if isinstance(content, list):
        texts = [
            part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
            for part in content
        ]
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
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and ("name" in call or "function" in call) for call in calls):
        raise MessageError(f"a call of a tool without a name: {given!r:.60}")
    return [call if "function" in call else {"type": "function", "function": call} for call in calls]


def as_chat(given: Any, strange: dict[str, list[Any]] | None = None, role: str = "user") -> list[Message]:
    """A cell as messages: a text is one of `role`, a message one, a list of pairs questions and answers.

    Raises:
        MessageError: none of these, or a message that can't be read.
    """
    if given is None or given == "":
        return []
    if isinstance(given, str):
        return [{"role": role, "content": given}]
    if is_message(given):
        return [as_message(given, strange)]
    if isinstance(given, list) and all(is_message(one) for one in given):
        return [as_message(one, strange) for one in given]
    if isinstance(given, list) and all(isinstance(one, (list, tuple)) and len(one) == 2 for one in given):
        return [
            {"role": name, "content": _text(text)}
            for pair in given
            for name, text in zip(("user", "assistant"), pair, strict=True)
        ]
    raise MessageError(
        f"{given!r:.60}; wanted a text, a list of messages with role and content, or a list of pairs"
    )


def not_learnt(messages: Sequence[Message]) -> list[Message]:
    """Messages that are given, not to be learnt, whatever they say of it themselves."""
    return [
        {**message, "train": False} if message["role"] == "assistant" else message for message in messages
    ]


def last_learnt(messages: Sequence[Message]) -> list[Message]:
    """Messages of which the last answer alone is learnt."""
    last = max(
        (place for place, message in enumerate(messages) if message["role"] == "assistant"), default=-1
    )
    return [*not_learnt(messages[:last]), *messages[max(last, 0) :]]


def said_in(messages: Sequence[Message]) -> str:
    """All that messages say, for finding a text again."""
    texts = [message["content"] for message in messages]
    texts += [str(message[key]) for message in messages for key in REASONING if message.get(key)]
    return "\x00".join(
        [*texts, *(json.dumps(m["tool_calls"], ensure_ascii=False) for m in messages if m.get("tool_calls"))]
    )
