"""A row's columns → a prompt's text around its slot. Knows Jinja, sandboxed; knows no models and no labels.

Templates are data from files: they run in ImmutableSandboxedEnvironment, where they reach neither Python's internals nor
the row itself, and a column that isn't there is an error, not an empty text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.exceptions import SecurityError, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from finetune.errors import InputError

SLOT = "\ue0ff"  # of the private use area: no text has it
GIVEN = {"mask", "answer_choices"}

_environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)


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
    """

    name: str
    text: str
    follows: str = ""
    choices: tuple[str, ...] = ()

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Columns that the text names, sorted.

        Raises:
            InputError: the text is no Jinja.
        """
        try:
            return tuple(sorted(meta.find_undeclared_variables(_environment.parse(self.text)) - GIVEN))
        except TemplateError as error:
            raise InputError(f"{self.name}: no valid template ({error}). Mend its text") from error

    @cached_property
    def _compiled(self) -> Any:
        try:
            return _environment.from_string(self.text)
        except TemplateError as error:
            raise InputError(f"{self.name}: no valid template ({error}). Mend its text") from error

    def render(self, row: Mapping[str, Any]) -> Rendered:
        """The text for one row.

        Raises:
            InputError: a column that the row lacks, no slot or several, nothing around it, something the sandbox refuses.
        """
        text = self.plain(row)
        slots = text.count(SLOT)
        if slots != 1:
            raise InputError(
                f"{self.name}: {slots or 'no'} slots for an answer; wanted one. Put {{{{ mask }}}} once, where the answer stands"
            )
        before, after = text.split(SLOT)
        if not (before + after).strip():
            raise InputError(f"{self.name}: renders to nothing but its slot. Mend its text or leave the row out")
        # a space before the slot belongs to the answer's first token in nearly every tokenizer
        stripped = before.rstrip(" ")
        return Rendered(stripped, " " if len(before) > len(stripped) and stripped else "", after)

    def plain(self, row: Mapping[str, Any]) -> str:
        """The text for one row, with or without a slot in it (the text that a generated answer is compared with has none).

        Raises:
            InputError: a column that the row lacks, something the sandbox refuses.
        """
        missing = [column for column in self.columns if column not in row]
        if missing:
            raise InputError(
                f"{self.name}: no column '{missing[0]}'; the rows have {', '.join(row)}. Name it under `data` in the entry's file"
            )
        try:
            return self._compiled.render(**row, mask=SLOT, answer_choices=list(self.choices))
        except SecurityError as error:
            raise InputError(f"{self.name}: refused by the sandbox: {error}. Take it out of the template") from error
        except (UndefinedError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise InputError(f"{self.name}: cannot be rendered: {error}. Mend its text") from error

    def fit(self, row: Mapping[str, Any], size: Callable[[Rendered], int], limit: int) -> tuple[Rendered, bool]:
        """The text for one row with at most `limit` tokens, and whether the row's text had to be cut.

        The longest column is cut at its end, word by word; the template's own text and the slot stay whole.

        Args:
            size: a rendered text → its tokens.

        Raises:
            InputError: what doesn't come from the row is too long by itself.
        """
        rendered = self.render(row)
        if size(rendered) <= limit:
            return rendered, False
        cut = dict(row)
        for column in sorted((c for c in self.columns if isinstance(row[c], str)), key=lambda c: -len(row[c])):
            words = row[column].split(" ")
            low, high = 0, len(words)  # `low` words fit or are the last resort, `high` don't
            while high - low > 1:
                middle = (low + high) // 2
                fits = size(self.render(cut | {column: " ".join(words[:middle])})) <= limit
                low, high = (middle, high) if fits else (low, middle)
            cut[column] = " ".join(words[:low])
            rendered = self.render(cut)
            if size(rendered) <= limit:
                return rendered, True
        raise InputError(
            f"{self.name}: {size(rendered)} tokens without the row's text; wanted at most {limit}. Set --max_length or --shots"
        )

    def blank(self, text: str) -> dict[str, str]:
        """A row that has the same text in every column."""
        return dict.fromkeys(self.columns, text)

    def composed(self, name: str, before: str = "", after: str = "") -> Template:
        """The same template with other text around it."""
        return replace(self, name=name, text=before + self.text + after)
