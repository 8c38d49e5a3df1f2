"""promptsource's files (Bach et al. 2022) → entries. Knows their templates `input ||| answer`; knows no
rows."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.errors import InputError
from prompts.templates.entries import Ending, Entry, Source, label_column
from prompts.templates.template import PARTED, Template

logger = logging.getLogger(__name__)
LINE = Ending("line", ("\n",), 64)
METRICS = {"BLEU": "bleu", "ROUGE": "rougeL", "Squad": "token_f1"}  # theirs → ours


def read_promptsource(path: Path, content: dict[str, Any]) -> Entry:
    """All templates that can be asked: by fixed choices (labels), by choices of the row's own, or by a text.

    Raises:
        InputError: none can.
    """
    templates: dict[str, Template] = {}
    words: dict[str, Any] = {}
    targets: dict[str, Template] = {}
    choices: dict[str, Template] = {}
    left, metrics = [], []
    dataset = "_".join(str(content[key]) for key in ("dataset", "subset") if content.get(key))
    for given in content["templates"].values():
        # a slash would part the name
        name = f"{given['name']}".replace("/", " or ")
        while name in templates:  # two of one name are two templates
            name += "'"
        # answers and questions are one text there, parted by |||
        asked, answer = _parted(f"{dataset}/{name}", given["jinja"])
        if answer is None:
            left.append(name)
            continue
        fixed, listed = _choices(given.get("answer_choices"), asked.name)
        asked, answer = (replace(part, choices=fixed, row_choices=listed) for part in (asked, answer))
        templates[name] = asked
        # fixed choices and a column that says which: labels
        if fixed and label_column(answer):
            words[name] = answer
        else:
            targets[name] = answer
            metrics += [
                METRICS[m] for m in ((given.get("metadata") or {}).get("metrics") or []) if m in METRICS
            ]
        # any other choices are the row's own
        if name in targets and (fixed or listed):
            choices[name] = Template(f"{asked.name} (choices)", listed or "|||".join(fixed))
    if left:
        logger.warning("%s: left out, as they name no answer behind `|||`: %s", path, ", ".join(left))
    if not templates:
        raise InputError(f"{path}: none of its templates names an answer; name another by --prompts")
    written = set(targets) - set(choices)
    # the first metric that is known here, where nothing but texts is asked
    metric = (metrics or ["rougeL"])[0] if written and not words and not choices else "accuracy"
    endings = {"line": LINE} if written else {}
    return Entry(
        dataset,
        None,
        metric,
        {dataset: Source()},
        templates,
        words,
        targets,
        endings,
        paired=True,
        choices=choices,
    )


def _parted(name: str, text: str) -> tuple[Template, Template | None]:
    """Both sides of `|||`; one text with two sides where it stands within a block, as in {% if a %} b ||| c
    {% endif %}."""
    # Jinja knows nothing of `|||`, so that a private sign stands in for it while it is rendered
    whole, follows = text.replace("|||", PARTED), "promptsource, Bach et al. 2022"
    if PARTED not in whole:
        return Template(name, text, follows), None
    asked, _, answer = whole.partition(PARTED)
    halves = (
        Template(name, asked + PARTED, follows),
        Template(f"{name} (answer)", PARTED + answer, side="answer"),
    )
    # cut in the middle of a block neither half is a template, and the whole has to be rendered for each
    if all(half.is_valid for half in halves):
        return halves
    return Template(name, whole, follows), Template(f"{name} (answer)", whole, side="answer")


def _choices(given: Any, name: str) -> tuple[tuple[str, ...], str]:
    """(choices that are the same for all rows, ""), or ((), the text that names each row's own)."""
    if not given:
        return (), ""
    text = "|||".join(given) if isinstance(given, list) else str(given)
    template = Template(f"{name} (choices)", text)
    # choices that name columns differ by row
    if template.columns:
        return (), text
    return tuple(choice.strip() for choice in template.plain({}).split("|||")), ""
