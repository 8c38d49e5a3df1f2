"""Chat templates → text and where the assistant speaks in it, within the sandbox's bounds. Knows
transformers' dialect of Jinja."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from typing import Any

from jinja2 import Template, TemplateError, Undefined, nodes, pass_eval_context
from jinja2.ext import Extension

from finetune.templating.sandbox import BoundedEnvironment, Limits, compile_template, render

OPENED, CLOSED = "\ue0fc", "\ue0fd"  # of the private use area; taken out of what a chat says


class _Generation(Extension):
    """`{% generation %}`: where the assistant's own words stand, as transformers' chat templates mark it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        # The tag's own line, so that errors name the right one.
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    @pass_eval_context
    def _marked(self, context: Any, caller: Callable[[], str]) -> str:
        return f"{OPENED}{caller()}{CLOSED}"


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    # Not jinja's own filter: that escapes for HTML, and transformers' doesn't.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@cache
def chat_environment() -> BoundedEnvironment:
    """What transformers gives chat templates: `raise_exception`, `strftime_now`, plain `tojson`, `{%
    generation %}`."""
    made = BoundedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=Undefined,
        # `break` and `continue`, as transformers has them.
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    made.add_filter("tojson", _to_json)
    # At each call: the environment is kept for good.
    made.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    return made


@cache
def _chat_template(text: str) -> Template:
    # Compiled once for each text: a server renders one with every request.
    return compile_template(chat_environment(), text)


def render_chat(
    text: str, variables: Mapping[str, Any], limits: Limits | None = None
) -> tuple[str, list[tuple[int, int]]]:
    """A chat template's text, and (start, end) in characters of what stands between `{% generation %}` marks.

    Args:
        variables: messages, tools, documents, add_generation_prompt, and the special tokens by their names.

    Raises:
        LimitError, FAULTS: as `render`.
    """
    # Marks that a user writes would look like the template's own.
    written = render(
        _chat_template(text), {name: _unmarked(value) for name, value in variables.items()}, limits
    )
    parts, spans, length, opened = re.split(f"([{OPENED}{CLOSED}])", written), [], 0, 0
    for part in parts:
        if part == OPENED:
            # Where it opened, in characters of the text without marks.
            opened = length
        elif part == CLOSED:
            spans.append((opened, length))
        else:
            length += len(part)
    return "".join(part for part in parts if part not in (OPENED, CLOSED)), spans


def _unmarked(value: Any) -> Any:
    """The same without the marks, which only a template may write."""
    if isinstance(value, str):
        return value.replace(OPENED, "").replace(CLOSED, "") if OPENED in value or CLOSED in value else value
    if isinstance(value, dict):
        return {key: _unmarked(part) for key, part in value.items()}
    return [_unmarked(part) for part in value] if isinstance(value, (list, tuple)) else value
