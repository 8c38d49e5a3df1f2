"""Calls of tools in a text that a model wrote, by the formats of common families, and the schema of an answer
that must be a call. Knows texts; knows no models."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune.errors import InputError

# Hermes, Qwen, SmolLM2 and their kin: <tool_call>{...}</tool_call>; the end is missing where a text was cut
TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
MISTRAL = re.compile(r"\[TOOL_CALLS\]\s*(.*)", re.DOTALL)
LLAMA = re.compile(r"<\|python_tag\|>(.*)", re.DOTALL)
MOST = 8  # calls of an answer that is held to calls: no end is in sight of an open list
STARTS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "{", "[")


@dataclass(frozen=True)
class Offer:
    """The tools that an answer may call, and whether it may call several at a time."""

    names: set[str]
    several: bool = True

    def read(self, text: str) -> tuple[str | None, list[dict[str, Any]]]:
        """What stands beside the calls of an answer, and the calls."""
        if not self.names:
            return text, []
        content, calls = parse_calls(text, self.names)
        # A model that wrote more was asked for one: clients that can run but one get the first.
        return content, calls if self.several else calls[:1]


def forced_schema(tools: Sequence[dict[str, Any]], name: str | None, several: bool) -> dict[str, Any]:
    """JSON schema of an answer that calls a tool and says nothing else.

    Args:
        tools: as OpenAI's objects, `function` inside.
        name: the tool to be called; None for any of them.
        several: whether the answer may be a list of calls.

    Raises:
        InputError: no tools, or none of that name.
    """
    offered = [tool["function"] for tool in tools if name in (None, tool["function"]["name"])]
    if not offered:
        named = ", ".join(tool["function"]["name"] for tool in tools) or "none"
        raise InputError(f"tool_choice asks for {name or 'a call'}, and the tools on offer are: {named}")
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": function["name"]},
                "arguments": function.get("parameters") or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for function in offered
    ]
    call = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return {"type": "array", "items": call, "minItems": 1, "maxItems": MOST} if several else call


def may_call(text: str) -> bool:
    """Whether a text's beginning may still turn out to be a call."""
    begun = text.lstrip()
    # Either way round: what has come so far may be shorter than the mark.
    return any(begun.startswith(start) or start.startswith(begun) for start in STARTS) or any(
        start in text for start in STARTS[:3]
    )


def parse_calls(text: str, names: set[str]) -> tuple[str | None, list[dict[str, Any]]]:
    """A text → what stands beside the calls (None where nothing does), and the calls as OpenAI's objects.

    Args:
        names: of the tools on offer; JSON that names none of them is plain text.
    """
    tagged = TAGGED.findall(text)
    if tagged:
        beside, found = TAGGED.sub("", text), [one for part in tagged for one in _objects(part)]
    else:
        marked = MISTRAL.search(text) or LLAMA.search(text)
        beside = text[: marked.start()] if marked else ""
        found = _objects(marked.group(1) if marked else text)
    calls = [call for one in found if (call := _call(one, names)) is not None]
    # One that names no tool makes all of it plain text: half a set of calls would be acted on.
    if not calls or len(calls) < len(found):
        return text, []
    return beside.strip() or None, calls


def _objects(text: str) -> list[Any]:
    """JSON objects of a text that holds nothing else: one, a list of them, or several apart by semicolons."""
    decoder, found, rest = json.JSONDecoder(), [], text.strip()
    while rest:
        try:
            value, end = decoder.raw_decode(rest)
        # JSON that isn't whole is no call.
        except (ValueError, RecursionError):
            return []
        found += value if isinstance(value, list) else [value]
        rest = rest[end:].lstrip("; \n")
    return found


def _call(one: Any, names: set[str]) -> dict[str, Any] | None:
    # Some models write OpenAI's own nested form.
    if isinstance(one, dict) and isinstance(one.get("function"), dict):
        one = one["function"]
    if not isinstance(one, dict) or one.get("name") not in names:
        return None
    # Llama calls them parameters.
    arguments = one.get("arguments", one.get("parameters", {}))
    # OpenAI's clients parse a string.
    said = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    function = {"name": one["name"], "arguments": said}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
