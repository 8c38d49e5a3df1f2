"""What a message says, in the shapes that templates take, and what of it a rendering leaves out. Knows no
tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

from finetune.templating import FAULTS

Message = dict[str, Any]
REASONING = ("reasoning_content", "thinking", "reasoning")  # a template is given all for any of them
TAGS = re.compile(r"</?think>")


def present(value: Any) -> Any:
    """Without the keys that hold nothing, at any depth: columns of structs hold every key of any row."""
    if isinstance(value, dict):
        return {name: present(one) for name, one in value.items() if one is not None}
    return [present(one) for one in value] if isinstance(value, list) else value


def plain(message: Message) -> Message:
    """With the arguments of its calls as mappings, as transformers' documentation has them, and a content, if
    an empty one."""
    made = {"content": "", **message}
    if made.get("tool_calls"):
        made["tool_calls"] = [_call(call, json_text=False) for call in made["tool_calls"]]
    else:
        made.pop("tool_calls", None)
    return made


def _call(call: Any, *, json_text: bool) -> Any:
    function = call.get("function", call) if isinstance(call, dict) else {}
    given = function.get("arguments")
    arguments: Any = given
    if json_text and not isinstance(given, str):
        arguments = json.dumps(given, ensure_ascii=False)
    elif not json_text and isinstance(given, str):
        try:
            arguments = json.loads(given)
        except json.JSONDecodeError:
            return call
    # what is no call, or whose arguments are no mapping, is shown to the template as it stands
    if not function or (not json_text and not isinstance(arguments, dict)):
        return call
    # `type` stands in most templates; a call that stands alone is one of a function
    around = {name: one for name, one in call.items() if name not in function} if "function" in call else {}
    return {"type": "function", **around, "function": function | {"arguments": arguments}}


def shapes(messages: list[Message]) -> Iterator[list[Message]]:
    """A chat in each shape that it can have, the usual one first; all say the same."""
    # without calls two of the three choices change nothing
    calls = [False, True] if any(message.get("tool_calls") for message in messages) else [False]
    seen: list[list[Message]] = []
    for parts, none, text in product([False, True], calls, calls):
        shaped = [_shaped(message, parts, none, text) for message in messages]
        if shaped not in seen:
            seen.append(shaped)
            yield shaped


def _shaped(message: Message, parts: bool, none: bool, text: bool) -> Message:
    """
    Args:
        parts: contents as a list of parts (templates of models that see), not as a text.
        none: no content beside calls instead of an empty one (DeepSeek).
        text: arguments of calls as JSON (DeepSeek V3), not as a mapping.
    """
    made = dict(message)
    if made.get("tool_calls"):
        if text:
            made["tool_calls"] = [_call(call, json_text=True) for call in made["tool_calls"]]
        # words beside a call are never dropped
        if none and not made["content"]:
            made["content"] = None
    if parts and isinstance(made["content"], str):
        # an empty content has no parts, not one empty part
        made["content"] = [{"type": "text", "text": made["content"]}] if made["content"] else []
    return made


def left_out(messages: Sequence[Message], prompt: str, said: str | None = None) -> str | None:
    """What of a chat stands neither in its prompt nor in its answer, in words; None where all does.

    Args:
        said: the answer that the last message is; None where the chat ends with a question.
    """
    whole = prompt + (said or "")
    for place, message in enumerate(messages):
        if _as_written_down(message["content"], whole):
            return (
                f"the content of message {place} ({message['role']}): {_texts(message['content'])[0]!r:.60}"
            )
    # the answer itself is looked for in what is said, not in its prompt
    before = messages if said is None else messages[:-1]
    for place, message in enumerate(before):
        # what the assistant said earlier was looked for when it was its turn, and may be written otherwise
        # here
        if message["role"] != "assistant":
            gone = _gone(_texts(message["content"]), prompt)
            if gone is not None:
                return f"the content of message {place} ({message['role']}): {gone!r:.60}"
    if said is None:
        gone_calls = (_calls_gone(place, message, prompt) for place, message in enumerate(messages))
        return next(filter(None, gone_calls), None)
    place, last = len(messages) - 1, messages[-1]
    calls = _calls_gone(place, last, said)
    if calls is not None:
        return f"{calls}, so that the model would learn to answer without"
    key = next((name for name in REASONING if last.get(name)), None)
    if key is not None and _gone([str(last[key])], said) is not None:
        return f"the {key} of message {place}"
    gone = _gone(_texts(last["content"]), said)
    return None if gone is None else f"the content of message {place} (assistant): {gone!r:.60}"


def _as_written_down(content: Any, text: str) -> bool:
    """Whether a content's parts stand in a text as Python or JSON writes a list down: a template that knows
    no parts shows them so, and the model would learn to answer in brackets.
    """
    if not isinstance(content, list) or not content:
        return False
    return any(
        form in text for form in (str(content), *(json.dumps(content, ensure_ascii=a) for a in (0, 1)))
    )


def _calls_gone(place: int, message: Message, text: str) -> str | None:
    """The calls of a message of which a text doesn't hold all, in words; None where it does."""
    if not message.get("tool_calls") or _gone(_leaves(message["tool_calls"]), text) is None:
        return None
    named = ", ".join(str(call.get("function", {}).get("name")) for call in message["tool_calls"])
    return f"the tool_calls of message {place} ({named})"


def names_gone(messages: Sequence[Message], render: Callable[[list[Message]], str]) -> str | None:
    """The first name of who speaks (OpenAI's `name`) that a template doesn't read, in words; None where it
    reads all.

    A name is not looked for in the text, where it may stand by chance: without it the text is another one.

    Args:
        render: messages → the template's text.
    """
    named = {place: message["role"] for place, message in enumerate(messages) if _speaks(messages, place)}
    # by roles, since templates write the names of some roles alone
    for role in dict.fromkeys(named.values()):
        bare = [
            {key: one for key, one in message.items() if key != "name" or named.get(place) != role}
            for place, message in enumerate(messages)
        ]
        try:
            if render(bare) != render(list(messages)):
                continue
        # a template that asks for the name reads it
        except FAULTS:
            continue
        place = next(place for place, one in named.items() if one == role)
        return (
            f"the name of message {place} ({role}): {messages[place]['name']!r:.60}, which --ignore_columns "
            "messages.name leaves out (or the name of their own column)"
        )
    return None


def _speaks(messages: Sequence[Message], place: int) -> bool:
    """Whether a message has a name that nothing else says: its role and the call that it answers do."""
    message = messages[place]
    name = str(message.get("name") or "").strip()
    called = [
        call["function"].get("name")
        for earlier in messages[:place]
        for call in earlier.get("tool_calls") or ()
        if isinstance(call, dict) and isinstance(call.get("function"), dict)
    ]
    return bool(name) and name != message["role"] and not (message["role"] == "tool" and name in called)


def reasoning_of(message: Message) -> str:
    """What stands apart as reasoning, or between think tags in the content; empty where there is none."""
    apart = next((str(message[name]) for name in REASONING if message.get(name)), None)
    if apart is not None:
        return apart.strip()
    # the closing tag alone is enough: some data leave the opening one out
    head, found, _ = str(message["content"] or "").partition("</think>")
    return head.replace("<think>", "").strip() if found else ""


def _texts(content: Any) -> list[str]:
    """Texts of a content: between think tags, which templates write in their own way, and in each of its
    parts."""
    if isinstance(content, str):
        return TAGS.split(content)
    # `text` is the part's own type, which templates don't write
    return [text for leaf in _leaves(content) for text in TAGS.split(leaf) if leaf != "text"]


def _leaves(value: Any) -> list[str]:
    """What a structure says: the names and the arguments of calls, the texts of parts."""
    if isinstance(value, dict):
        # ids and types of calls are not looked for: templates leave them out lawfully
        if "function" in value:
            function = value["function"]
            return [str(function.get("name", "")), *_leaves(function.get("arguments"))]
        return [leaf for one in value.values() for leaf in _leaves(one)]
    if isinstance(value, (list, tuple)):
        return [leaf for one in value for leaf in _leaves(one)]
    # arguments as JSON: a template may write them with other blanks
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        try:
            return _leaves(json.loads(value))
        except json.JSONDecodeError:
            return [value]
    # truth values and numbers are written in several ways (True, true, 1.0): their names stand beside them
    return [value] if isinstance(value, str) else []


def _gone(texts: Sequence[str], rendered: str) -> str | None:
    """The first text that isn't there, as it is or as JSON writes it, blanks aside."""
    for text in texts:
        bare = text.strip()
        if not bare or bare in rendered:
            continue
        # templates write texts within calls by `tojson`, with or without escapes
        forms = (bare, json.dumps(bare, ensure_ascii=False)[1:-1], json.dumps(bare)[1:-1])
        if not any(_blank(form) in _blank(rendered) for form in forms):
            return bare
    return None


def _blank(text: str) -> str:
    return " ".join(text.split())
