"""Names of prompts → what is asked, of each kind that an entry has. Knows entries; knows no models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from finetune.errors import InputError
from prompts.study.asking import Notes
from prompts.study.rows import StudyRow
from prompts.study.weighed import ChoicePrompt
from prompts.study.written import TextPrompt
from prompts.templates.entries import Entry
from prompts.templates.prompt import Prompt, split_name
from prompts.templates.reading import read_entry
from prompts.templates.template import Template


def named_entry(names: Sequence[str]) -> Entry:
    """The entry that all names are of.

    Raises:
        InputError: names of several entries, or nothing there under a name.
    """
    # one task a run: figures of two have nothing to do with each other
    files = {split_name(name)[0] for name in names}
    if len(files) != 1:
        raise InputError(
            f"Prompts of several entries ({', '.join(sorted(files))}); wanted one task a run. Set "
            "--prompts, or --suite"
        )
    return read_entry(files.pop())


def with_choices(entry: Entry, labels: Sequence[str], values: Sequence[Any], notes: Notes) -> Entry:
    """promptsource's entry for this data: templates whose answers don't follow from the label one to one are
    asked by their choices, each row's right one beside them."""
    if not entry.paired:
        return entry
    words, targets, choices = dict(entry.words), dict(entry.targets), dict(entry.choices)
    for name in entry.words:
        fixed = entry.templates[name].choices
        try:
            entry.verbalizer(name, labels, values)
        except InputError as error:
            # without choices there is nothing else to weigh
            if len(fixed) < 2:
                continue
            targets[name] = words.pop(name)
            choices[name] = Template(f"{entry.name}/{name} (choices)", "|||".join(fixed))
            notes.expect("", f"{entry.name}/{name}", f"asked by its choices, since {error}", -1)
    return replace(entry, words=words, targets=targets, choices=choices)


def _asked(entry: Entry, names: Sequence[str], kind: str) -> list[tuple[str, str | None]]:
    """(template, what is named behind it) of one kind; all templates where none is named."""
    found: list[tuple[str, str | None]] = []
    for name in names:
        _, template, rest = split_name(name)
        # none named: all that the entry has
        for t in [template] if template else entry.templates:
            # before its kind: a name that isn't there is said
            entry.template(t)
            if entry.kind(t) == kind:
                found.append((t, rest))
    return found


def asked_templates(entry: Entry, names: Sequence[str]) -> list[Template]:
    """All templates that some names have rendered: those that are asked, the description, what is right and
    what it is told by."""
    found = [entry.layout.description] if entry.layout.description else []
    for kind in ("labels", "choices", "text"):
        for name, _ in _asked(entry, names, kind):
            found += [entry.template(name), *(part[name] for part in _parts(entry) if name in part)]
    if entry.choices and entry.keys:
        found.append(entry.keys)
    if entry.judge:
        found.append(entry.judge.template)
    return found


def _parts(entry: Entry) -> tuple[dict[str, Template], ...]:
    return entry.targets, entry.choices


def named_prompts(
    entry: Entry,
    names: Sequence[str],
    labels: Sequence[str] | None = None,
    values: Sequence[Any] | None = None,
    notes: Notes | None = None,
) -> list[Prompt]:
    """Prompts that weigh labels: every template with every verbalizer where none is named.

    Args:
        values: what stands in the data for each label, which promptsource's answers are made of.
        notes: where prompts that can't be made are noted, as long as one can.

    Raises:
        InputError: nothing there under a name, no prompt that can be made.
    """
    found: dict[str, Prompt] = {}
    fault: InputError | None = None
    for template, verbalizer in _asked(entry, names, "labels"):
        # promptsource's templates have answers of their own
        own = [template] if entry.paired else list(entry.words)
        for v in [verbalizer] if verbalizer else own:
            try:
                prompt = Prompt(entry.template(template), entry.verbalizer(v, labels, values))
            except InputError as error:
                # of an entry written here a fault is the file's, and is said at once
                if notes is None or not entry.paired:
                    raise
                notes.trouble("", f"{entry.name}/{template}", str(error))
                fault = error
                continue
            # the same prompt named twice is asked once
            found.setdefault(prompt.name, prompt)
    # other kinds of the entry may still be asked
    if fault is not None and not found and entry.kinds == ("labels",):
        raise fault
    return list(found.values())


def choice_prompts(entry: Entry, names: Sequence[str]) -> list[ChoicePrompt]:
    """Prompts that weigh choices of each row's own.

    Raises:
        InputError: nothing there under a name.
    """
    return [
        ChoicePrompt(entry.templates[t], entry.choices[t], entry.targets[t], entry.keys, entry.target_is)
        for t, _ in dict.fromkeys(_asked(entry, names, "choices"))
    ]


def text_prompts(entry: Entry, names: Sequence[str]) -> list[TextPrompt]:
    """Prompts that have texts written, with the ending that is named, or the entry's first.

    Raises:
        InputError: nothing there under a name.
    """
    found = []
    # in their order, each once
    for template, ending in dict.fromkeys(_asked(entry, names, "text")):
        if ending and ending not in entry.endings:
            raise InputError(
                f"{entry.name}: no ending '{ending}'; there are: {', '.join(entry.endings)}. Set --prompts"
            )
        chosen = entry.endings[ending or next(iter(entry.endings))]
        found.append(TextPrompt(entry.templates[template], entry.targets[template], chosen))
    return found


def for_family(
    prompts: list[Prompt], family: str, rows: Sequence[StudyRow], notes: Notes, model: str
) -> list[Prompt]:
    """The prompts that a kind of model can be asked: text after the slot is out of a causal model's sight."""
    fit: list[Prompt] = []
    left: list[Prompt] = []
    for prompt in prompts:
        # text behind the slot is read by models that see both sides
        (left if family == "causal" and _follows(prompt, rows) else fit).append(prompt)
    for name in dict.fromkeys(prompt.template.name for prompt in left):
        # as asked: the entry is for several families
        notes.expect(model, name, "text follows its slot, which a causal model can't see", -1)
    if not fit:
        names = ", ".join(dict.fromkeys(prompt.template.name for prompt in left))
        raise InputError(
            f"{names}: text follows the slot, which a causal model can't see; wanted {{{{ mask }}}} at "
            "the end. "
            "Set --prompts, or --models to a masked model"
        )
    return fit


def _follows(prompt: Prompt, rows: Sequence[StudyRow]) -> bool:
    for row in rows:
        try:
            # the first row that can be rendered stands for all
            return bool(prompt.template.render(row.columns).after.strip())
        except InputError:
            continue
    return False
