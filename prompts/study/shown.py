"""Rows as templates ask them, the right answer in the slot. Knows entries and rows; knows no models."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.data.accounting import say
from finetune.data.preview import marked
from finetune.errors import InputError
from prompts.study.prompts import choice_prompts, text_prompts
from prompts.study.rows import StudyRow
from prompts.study.study import Loaded
from prompts.templates.entries import Entry
from prompts.templates.template import Skipped, Template

MOST_LETTERS = 4000  # of a row that are printed


def show_asked(loaded: Loaded, names: Sequence[str], rows: int) -> None:
    """Print the first rows as each template asks them, with the right answer in the slot, between marks."""
    for place, row in enumerate(loaded.parts.unseen[:rows]):
        for name, text in prompt_texts(loaded, names, row):
            number = row.place if row.place >= 0 else place  # of its file
            say(f"\nrow {number}, {name}; the right answer: {marked('so')}\n{text[:MOST_LETTERS]}")


def prompt_texts(loaded: Loaded, names: Sequence[str], row: StudyRow) -> list[tuple[str, str]]:
    """A row as each template asks it: (name of the prompt, its text); of several verbalizers the first."""
    entry, found = loaded.entry, dict[str, tuple[str, str]]()
    for prompt in loaded.prompts:
        if prompt.template.name not in found:
            answer = prompt.verbalizer.answer(row.label) if row.label >= 0 else "no label"
            found[prompt.template.name] = (prompt.name, _filled(entry, prompt.template, row, answer))
    for choice in choice_prompts(entry, names):
        try:
            choices, right = choice.of(row)
            answer = choices[right]
        except InputError as error:
            answer = f"({error})"
        found[choice.template.name] = (choice.name, _filled(entry, choice.template, row, answer))
    for written in text_prompts(entry, names):
        try:
            answer = " | ".join(written.wanted(row))
        except InputError as error:
            answer = f"({error})"
        found[written.template.name] = (written.name, _filled(entry, written.template, row, answer))
    return list(found.values())


def _filled(entry: Entry, template: Template, row: StudyRow, answer: str) -> str:
    """The description and the row's text, an answer in its slot; else what keeps it from being asked."""
    layout = entry.layout
    try:
        before = layout.description.plain(row.columns) if layout.description else ""
        asked = template.render(row.columns).filled(marked(answer))
    except Skipped:
        return "(the template says nothing of this row, which isn't asked)"
    except InputError as error:
        return f"({error})"
    return f"{before}{layout.description_separator}{asked}" if before else asked
