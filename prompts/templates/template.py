"""A row's columns → a prompt's text around its slot. Knows Jinja, sandboxed; knows no models and no labels.

Templates are data from files: they run in ImmutableSandboxedEnvironment, where they reach neither Python's
internals nor the row itself, and a column that isn't there is an error, not an empty text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Any

from jinja2 import StrictUndefined, TemplateError, meta, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from finetune.errors import InputError

SLOT = "\ue0ff"  # of the private use area, as PARTED is: taken out of rows' texts
PARTED = "\ue0fe"  # promptsource's `|||`: what is asked stands before it, the answer after it
GIVEN = {"mask", "answer_choices"}
FAULTS = (TemplateError, TypeError, ValueError, AttributeError, ArithmeticError, LookupError, RecursionError)


@pass_context
def _drawn(context: Context, items: Sequence[Any]) -> Any:
    """One of some items, drawn anew for each row and always the same for it."""
    seen = sorted((key, value) for key, value in context.get_all().items() if isinstance(value, (str, int)))
    return items[
        int.from_bytes(sha256(repr((seen, list(items))).encode()).digest()[:8], "little") % len(items)
    ]


def _most_frequent(items: Sequence[Any]) -> list[Any]:
    counts = Counter(items)
    return [item for item, count in counts.items() if count == max(counts.values())]


def _make_environment() -> ImmutableSandboxedEnvironment:
    """Jinja's own helpers and promptsource's, none of them by chance."""
    made = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
        finalize=lambda value: "" if value is None else value,  # an empty field, not the word None
    )
    del made.globals["lipsum"]
    made.globals["zip"] = zip
    made.filters |= {"random": _drawn, "choice": _drawn, "most_frequent": _most_frequent, "highlight": str}
    return made


_environment = _make_environment()


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
        side: of a text in two parts (PARTED): "" for the one before, which is asked, "answer" for the one
            after.
    """

    name: str
    text: str
    follows: str = ""
    choices: tuple[str, ...] = ()
    side: str = ""

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
            return _environment.from_string(self.text)
        except TemplateError as error:
            raise InputError(f"{self.name}: no valid template ({error}). Mend its text") from error

    def render(self, row: Mapping[str, Any]) -> Rendered:
        """The text for one row.

        Raises:
            InputError: a column that the row lacks, no slot or several, nothing around it although the row's
                columns hold
                something, something the sandbox refuses.
        """
        text = self.plain(row)
        slots = text.count(SLOT)
        if slots != 1:
            raise InputError(
                f"{self.name}: {slots or 'no'} slots for an answer; wanted one. Put {{{{ mask }}}} once, "
                "where the answer stands"
            )
        before, after = text.split(SLOT)
        if not (before + after).strip() and not (
            self.columns and all(is_empty(row[column]) for column in self.columns)
        ):
            raise InputError(
                f"{self.name}: renders to nothing but its slot. Mend its text or leave the row out"
            )
        # a space before the slot belongs to the answer's first token in nearly every tokenizer
        stripped = before.rstrip(" ")
        return Rendered(stripped, " " if len(before) > len(stripped) and stripped else "", after)

    def plain(self, row: Mapping[str, Any]) -> str:
        """The text for one row, with or without a slot in it (the text that a generated answer is compared
        with has none).

        Raises:
            InputError: a column that the row lacks, something the sandbox refuses.
        """
        missing = [column for column in self.columns if column not in row]
        if missing:
            raise InputError(
                f"{self.name}: no column '{missing[0]}'; the rows have {', '.join(row)}. Name it under "
                "`data` in the entry's file"
            )
        clean = {
            key: re.sub(f"[{SLOT}{PARTED}]", "", value) if isinstance(value, str) else value
            for key, value in row.items()
        }
        try:
            text = self._compiled.render({**clean, "mask": SLOT, "answer_choices": list(self.choices)})
        except SecurityError as error:
            raise InputError(
                f"{self.name}: refused by the sandbox: {error}. Take it out of the template"
            ) from error
        except FAULTS as error:
            raise InputError(f"{self.name}: cannot be rendered: {error}. Mend its text") from error
        if PARTED not in self.text:
            return text
        asked, _, answer = text.partition(PARTED)
        gap = "\n" if "\n" in asked[len(asked.rstrip()) :] else " "
        return answer.strip() if self.side else asked.strip() + gap + SLOT

    def fit(
        self, row: Mapping[str, Any], size: Callable[[Rendered], int], limit: int
    ) -> tuple[Rendered, bool]:
        """The text for one row with at most `limit` tokens, and whether the row's text had to be cut.

        Columns lose their ends, the longest first, so that none is longer than what is left of another that
        was cut; the template's own text and the slot stay whole.

        Args:
            size: a rendered text → its tokens.

        Raises:
            InputError: what doesn't come from the row is too long by itself.
        """
        rendered = self.render(row)
        if size(rendered) <= limit:
            return rendered, False
        texts = {column: row[column] for column in self.columns if isinstance(row[column], str)}

        def cut(most: int) -> Rendered:
            return self.render({**row, **{column: shortened(text, most) for column, text in texts.items()}})

        low, high = (
            0,
            max(map(len, texts.values()), default=0),
        )  # `low` characters fit or are the last resort, `high` don't
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if size(cut(middle)) <= limit else (low, middle)
        rendered = cut(low)
        if size(rendered) > limit:
            raise InputError(
                f"{self.name}: {size(rendered)} tokens without the row's text; wanted at most {limit}. "
                "Set --max_length or --shots"
            )
        return rendered, True

    def composed(self, name: str, before: str = "", after: str = "") -> Template:
        """The same template with other text around it."""
        return replace(self, name=name, text=before + self.text + after)


def is_empty(value: Any) -> bool:
    """Whether a field holds nothing that a template could show."""
    return value is None or not str(value).strip()


def shortened(text: str, most: int) -> str:
    """At most so many characters, up to the end of a word where one ends near: `shortened("one two three", 9)
    == "one two"`."""
    if len(text) <= most:
        return text
    whole = re.sub(r"\s+\S{0,40}$", "", text[: most + 1])
    return whole if len(whole) <= most else text[:most]
