"""Calls of tools in a text that a model wrote, by the formats of common families. Knows texts; knows no
models."""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

# Hermes, Qwen, SmolLM2 and their kin: <tool_call>{...}</tool_call>; the end is missing where a text was cut
TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
MISTRAL = re.compile(r"\[TOOL_CALLS\]\s*(.*)", re.DOTALL)
LLAMA = re.compile(r"<\|python_tag\|>(.*)", re.DOTALL)
STARTS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "{", "[")


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
