"""A row's columns → a prompt's text around its slot. Knows Jinja, sandboxed; knows no models and no labels.

Templates are data from files: they run in finetune.templating's sandbox, where they reach neither
Python's internals nor the row itself, and a column that isn't there is an error, not an empty text.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Any

import regex
from jinja2 import TemplateError, meta, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context

from finetune.errors import InputError
from finetune.templating import FAULTS, compile_template, render, strict_environment

SLOT = "\ue0ff"  # of the private use area, as PARTED is: taken out of rows' texts
PARTED = "\ue0fe"  # promptsource's `|||`: what is asked stands before it, the answer after it
GIVEN = {"mask", "answer_choices"}


class Skipped(InputError):
    """A template that says nothing of a row, as `{% if %}` around all of it has it: the row isn't asked."""


class NoRoom(InputError):
    """What doesn't come from the row is too long by itself."""


class TooLong(InputError):
    """A row that doesn't fit, where it is not to be cut."""


@pass_context
def _drawn(context: Context, items: Sequence[Any]) -> Any:
    """One of some items, drawn anew for each row and always the same for it."""
    # of the row's own values, so that no order and no process changes the draw
    seen = sorted((key, value) for key, value in context.get_all().items() if isinstance(value, (str, int)))
    return items[
        int.from_bytes(sha256(repr((seen, list(items))).encode()).digest()[:8], "little") % len(items)
    ]


def _most_frequent(items: Sequence[Any]) -> list[Any]:
    counts = Counter(items)
    return [item for item, count in counts.items() if count == max(counts.values())]


def _regex_replace(text: str, pattern: str, value: str = "", count: int = 0) -> str:
    """lm-evaluation-harness's filter, in bounded time."""
    # a replacement at every place may make a text of any size
    if len(text) * max(len(value), 1) > 10_000_000:
        raise SecurityError("'regex_replace' makes a text that is too long")
    try:
        return str(regex.sub(pattern, value, text, count, timeout=2.0))
    except (TimeoutError, regex.error) as error:
        raise SecurityError(f"'regex_replace' by {pattern!r}: {error}") from error


# shared by all templates: filters are added once
_environment = strict_environment()
_environment.globals["zip"] = zip
for _name, _filter in (
    ("random", _drawn),
    ("choice", _drawn),
    ("most_frequent", _most_frequent),
    ("highlight", str),
    ("regex_replace", _regex_replace),
):
    _environment.add_filter(_name, _filter)
_environment.filters["_json"] = lambda value: json.dumps(value, default=_plainly)


# what the sandbox wraps is none of JSON's types
def _plainly(value: Any) -> Any:
    return list(value) if isinstance(value, Iterable) else str(value)


@dataclass(frozen=True)
class Rendered:
    """A prompt's text: before the slot, the space that belongs to the answer, after the slot."""

    before: str
    gap: str
    after: str

    def filled(self, answer: str) -> str:
        """The whole text with an answer in its slot."""
        return self.before + self.gap + answer + self.after


@dataclass(frozen=True)
class Template:
    """Jinja text with one slot: "{{ text }} All in all, it was {{ mask }}."

    Attributes:
        name: how it is called: file/entry.
        text: Jinja; the columns of the row are its variables, `mask` is the slot.
        follows: the paper or collection that it is taken after.
        choices: what the text may name as `answer_choices`.
        row_choices: a text that names them for each row, parted by `|||`.
        of_choices: whether rows name their own answers. Then nothing but the slot may be asked, as whole
            sentences are weighed, and all white space before it is the answer's, as lm-evaluation-harness has
            it.
        side: of a text in two parts (PARTED): "" for the one before, which is asked, "answer" for the one
            after.
    """

    name: str
    text: str
    follows: str = ""
    choices: tuple[str, ...] = ()
    side: str = ""
    row_choices: str = ""
    of_choices: bool = False

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Columns that the text names, sorted.

        Raises:
            InputError: the text is no Jinja.
        """
        try:
            tree = _environment.parse(self.text)
            return tuple(sorted(meta.find_undeclared_variables(tree) - GIVEN - _may_lack(tree)))
        except (TemplateError, RecursionError) as error:
            raise InputError(f"{self.name}: no valid template ({error}). Mend its text") from error

    @property
    def is_valid(self) -> bool:
        """Whether the text is Jinja by itself."""
        try:
            return bool(self._compiled)
        except InputError:
            return False

    @cached_property
    def _compiled(self) -> Any:
        try:
            # compiled once for all rows
            return compile_template(_environment, self.text)
        except TemplateError as error:
            raise InputError(f"{self.name}: no valid template ({error}). Mend its text") from error

    def render(self, row: Mapping[str, Any]) -> Rendered:
        """The text for one row.

        Raises:
            Skipped: the text is empty for this row, slot and all.
            InputError: a column that the row lacks, no slot or several, nothing around it although the row's
                columns hold something, something the sandbox refuses.
        """
        text = self.plain(row)
        slots = text.count(SLOT)
        # conditions may leave a row out on purpose; without them an empty text is a fault
        if not text.strip() and self._has_conditions:
            raise Skipped(f"{self.name}: says nothing of the row")
        if slots != 1:
            raise InputError(
                f"{self.name}: {slots or 'no'} slots for an answer; wanted one. Put {{{{ mask }}}} once, "
                "where the answer stands"
            )
        before, after = text.split(SLOT)
        # nothing around the slot is right where all columns are empty
        bare = not (before + after).strip()
        empty = self.columns and all(is_empty(row[column]) for column in self.columns)
        if bare and not empty and not self.of_choices:
            raise InputError(
                f"{self.name}: renders to nothing but its slot. Mend its text or leave the row out"
            )
        # a space before the slot belongs to the answer's first token in nearly every tokenizer; several stay
        # several, as lm-evaluation-harness weighs them
        stripped = before.rstrip() if self.of_choices else before.rstrip(" ")
        # a row of empty columns leaves no space; a text that has none keeps its own
        return Rendered(stripped, before[len(stripped) :] if stripped or not self.columns else "", after)

    @property
    def _has_conditions(self) -> bool:
        return "{%" in self.text

    def plain(self, row: Mapping[str, Any]) -> str:
        """The text for one row, slot or not (what a written answer is compared with has none).

        Raises:
            Skipped: a text in two parts whose asked one is empty for this row.
            InputError: a column that the row lacks, something the sandbox refuses.
        """
        text = self._rendered(self._compiled, row)
        # one text, with or without a slot
        if PARTED not in self.text:
            return text
        asked, parted, answer = text.partition(PARTED)
        if self._has_conditions and not (parted and asked.strip()):
            raise Skipped(f"{self.name}: says nothing of the row")
        # a line that was broken before the answer stays broken
        gap = "\n" if "\n" in asked[len(asked.rstrip()) :] else " "
        return answer.strip() if self.side else asked.strip() + gap + SLOT

    def listed(self, row: Mapping[str, Any]) -> list[str]:
        """The texts that a template of several names: `{{ choices.text }}`, or texts parted by `|||`.

        Raises:
            InputError: as `plain`; something that is no list of texts or numbers.
        """
        if PARTED in self.text:
            return [self.plain(row)]
        # an expression gives its value, not the text that Jinja would make of it
        if self._is_expression:
            value = json.loads(self._rendered(self._as_json, row))
            if isinstance(value, str):
                # with the white space around the expression
                value = self.text.partition("{{")[0] + value + self.text.rpartition("}}")[2]
            value = value.split("|||") if isinstance(value, str) and "|||" in value else value
        else:
            value = _listed(self._rendered(self._compiled, row))
        value = value if isinstance(value, list) else [value]
        if any(isinstance(part, (list, dict)) or part is None for part in value):
            raise InputError(f"{self.name}: gives {str(value)[:80]}; wanted a list of texts. Mend its text")
        return [str(part) for part in value]

    def _own_choices(self, row: Mapping[str, Any]) -> str:
        return Template(f"{self.name} (choices)", self.row_choices).plain(row)

    @cached_property
    def _is_expression(self) -> bool:
        inside = re.fullmatch(r"\s*\{\{(.*)\}\}\s*", self.text, re.DOTALL)
        return inside is not None and "{{" not in inside[1] and "}}" not in inside[1]

    @cached_property
    def _as_json(self) -> Any:
        # without the signs that trim white space around it
        inside = self.text.strip()[2:-2].strip("-+")
        return replace(self, text="{{ (" + inside + ") | _json }}")._compiled

    def _rendered(self, compiled: Any, row: Mapping[str, Any]) -> str:
        missing = [column for column in self.columns if column not in row]
        if missing:
            raise InputError(
                f"{self.name}: no column '{missing[0]}'; the rows have {', '.join(row)}. Set --columns "
                f"{missing[0]}=COLUMN, or name it under `data` in the entry's file"
            )
        clean = {
            # a row's own text could hold the slot's sign
            key: re.sub(f"[{SLOT}{PARTED}]", "", value) if isinstance(value, str) else value
            for key, value in row.items()
        }
        try:
            choices = (
                # choices may name the row's columns
                [c.strip() for c in self._own_choices(clean).split("|||")]
                if self.row_choices
                else self.choices
            )
            return render(compiled, {**clean, "mask": SLOT, "answer_choices": list(choices)})
        except SecurityError as error:
            raise InputError(
                f"{self.name}: refused by the sandbox: {error}. Take it out of the template"
            ) from error
        except FAULTS as error:
            raise InputError(f"{self.name}: cannot be rendered: {error}. Mend its text") from error

    def fit(
        self, row: Mapping[str, Any], size: Callable[[Rendered], int], limit: int, may_cut: bool = True
    ) -> tuple[Rendered, bool]:
        """The text for one row with at most `limit` tokens, and whether the row's text had to be cut.

        Columns lose their ends, the longest first, so that none is longer than what is left of another that
        was cut; the template's own text and the slot stay whole.

        Args:
            size: a rendered text → its tokens.

        Raises:
            TooLong: the text is too long and may not be cut.
            NoRoom: what doesn't come from the row is too long by itself.
        """
        rendered = self.render(row)
        tokens = size(rendered)
        if tokens <= limit:
            return rendered, False
        if not may_cut:
            raise TooLong(
                f"{self.name}: {tokens} tokens; wanted at most {limit}. Set --max_length or --on_long"
            )
        texts = {column: row[column] for column in self.columns if isinstance(row[column], str)}

        def cut(most: int) -> Rendered:
            return self.render({**row, **{column: shortened(text, most) for column, text in texts.items()}})

        # `low` characters fit or are the last resort, `high` don't
        low, high = 0, max(map(len, texts.values()), default=0)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if size(cut(middle)) <= limit else (low, middle)
        rendered = cut(low)
        # what is left is not the row's
        if size(rendered) > limit:
            raise NoRoom(
                f"{self.name}: {size(rendered)} tokens without the row's text; wanted at most {limit}. "
                "Set --max_length or --shots"
            )
        return rendered, True

    @property
    def hash(self) -> str:
        """Of the exact text: two templates that differ in one blank have two."""
        # 16 digits tell texts apart, and can be read
        return sha256(self.text.encode()).hexdigest()[:16]

    def composed(self, name: str, before: str = "", after: str = "") -> Template:
        """The same template with other text around it."""
        return replace(self, name=name, text=before + self.text + after)


def _listed(text: str) -> list[Any]:
    """Texts parted by `|||`, or a list as it is written out."""
    bare = text.strip()
    # as Python writes lists: what a column of lists renders to
    if bare.startswith("[") and bare.endswith("]") and "|||" not in bare:
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            return list(ast.literal_eval(bare))  # literals alone: nothing is called
    # one text stays as it was written: white space may count in it
    return [part.strip() for part in text.split("|||")] if "|||" in text else [text]


def _may_lack(tree: nodes.Template) -> set[str]:
    """Columns that a row needn't have: those asked after by `is defined`, and all that is said one way or the
    other as it is."""

    def asked_after(node: nodes.Node) -> set[str]:
        tests = [*node.find_all(nodes.Test), *([node] if isinstance(node, nodes.Test) else [])]
        return {
            test.node.name
            for test in tests
            if test.name in ("defined", "undefined") and isinstance(test.node, nodes.Name)
        }

    branches: list[nodes.CondExpr | nodes.If] = [*tree.find_all(nodes.CondExpr), *tree.find_all(nodes.If)]
    either = [branch for branch in branches if asked_after(branch.test)]
    named = {name.name for branch in either for name in branch.find_all(nodes.Name)}
    return asked_after(tree) | named


def is_empty(value: Any) -> bool:
    """Whether a field holds nothing that a template could show."""
    return value is None or not str(value).strip()


def shortened(text: str, most: int) -> str:
    """At most so many characters, up to the end of a word where one ends near: `shortened("one two three", 9)
    == "one two"`."""
    if len(text) <= most:
        return text
    # up to forty letters back: a word that is longer is cut within
    whole = re.sub(r"\s+\S{0,40}$", "", text[: most + 1])
    return whole if len(whole) <= most else text[:most]
