"""What was written → the answer in it, and both sides made alike before they are compared. Knows strings
only.

The steps are those of lm-evaluation-harness's filters and of its exact match, so that imported tasks are
judged alike.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import regex

from finetune.errors import InputError
from finetune.metrics.texts import final_number

TEXT_FIGURES = (
    "exact_match",
    "token_f1",
    "same_number",
    "same_answer",
    "rougeL",
    "rouge1",
    "rouge2",
    "bleu",
    "chrf",
)
NOTHING = "[invalid]"  # what lm-evaluation-harness writes where a pattern finds nothing
# a pattern of a file may take exponential time on some texts; `regex` can be stopped, `re` can't
SECONDS = 2.0  # that a pattern may search in one text
ARTICLES = regex.compile(r"\b(a|an|the)\b", regex.IGNORECASE)
THOUSANDS = regex.compile(r"(?<=\d),(?=\d{3}\b)")


@dataclass(frozen=True)
class Step:
    """One thing that is done to a text, with what it needs to know.

    Attributes:
        name: one of EXTRACTORS, NORMALISERS or GATHERERS.
        value: a pattern, a mapping, a number; None where the name says all.
    """

    name: str
    value: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, text: str) -> str:
        return {**EXTRACTORS, **NORMALISERS}[self.name](self, text)


# patterns are asked of every text
@cache
def _compiled(pattern: str) -> regex.Pattern:
    try:
        return regex.compile(pattern)
    except regex.error as error:
        raise InputError(
            f"'{pattern}' is no regular expression: {error}. Mend it in the entry's file"
        ) from error


def _searched(pattern: str, text: str) -> list[Any]:
    try:
        return _compiled(pattern).findall(text, timeout=SECONDS)
    except TimeoutError as error:
        raise InputError(
            f"The pattern '{pattern}' takes more than {SECONDS:g} s on one text. Mend it"
        ) from error


def _regex(step: Step, text: str) -> str:
    """The first, last or n-th match; of one with groups, the first group that holds anything."""
    found = _searched(step.value, text)
    take = step.options.get("take", 0)
    # a match that isn't there is no error: a model may write anything
    if not found or not -len(found) <= take < len(found):
        return NOTHING
    match = found[take]
    if isinstance(match, tuple):
        group = step.options.get("group")
        # alternatives in groups: one of them holds the match
        match = match[group - 1] if group else next((part for part in match if part), NOTHING)
    return match.strip()


def _mapped(step: Step, text: str) -> str:
    return str(step.value.get(text, text))


def _number(step: Step, text: str) -> str:
    """The number that a text ends in, written plainly."""
    found = final_number(text)
    # without trailing zeros, so that 5.0 and 5 are one answer
    return NOTHING if found is None else f"{found:.12g}"


EXTRACTORS: dict[str, Callable[[Step, str], str]] = {
    "regex": _regex,
    "number": _number,
    "first_line": lambda step, text: text.strip().partition("\n")[0],
    "map": _mapped,
    "strip": lambda step, text: text.strip(),
    "lstrip": lambda step, text: text[1:] if text.startswith(" ") else text,
    "lower": lambda step, text: text.lower(),
    "upper": lambda step, text: text.upper(),
}
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_DIGITS = str.maketrans("", "", string.digits)
NORMALISERS: dict[str, Callable[[Step, str], str]] = {
    "lower": lambda step, text: text.lower(),
    "punctuation": lambda step, text: text.translate(_PUNCTUATION),
    "articles": lambda step, text: ARTICLES.sub(" ", text),
    "numbers": lambda step, text: THOUSANDS.sub("", text),  # 1,234 is 1234
    "no_digits": lambda step, text: text.translate(_DIGITS),
    "space": lambda step, text: " ".join(text.split()),
    "ignore": lambda step, text: _compiled(step.value).sub("", text, timeout=SECONDS),
}
GATHERERS: dict[str, Callable[[Step, Sequence[str]], list[str]]] = {  # several answers to one row → fewer
    "take_first": lambda step, texts: list(texts[:1]),
    "take_first_k": lambda step, texts: list(texts[: int(step.value)]),
    "majority_vote": lambda step, texts: [Counter(texts).most_common(1)[0][0]],
}


def extracted(steps: Sequence[Step], texts: Sequence[str]) -> list[str]:
    """The answers in what was written for one row: one for each of `texts`, fewer where a step gathers them.

    Raises:
        InputError: a pattern that is none, or that takes too long.
    """
    found = list(texts)
    for step in steps:
        found = (
            # steps of several answers see all of them at once
            GATHERERS[step.name](step, found) if step.name in GATHERERS else [step(text) for text in found]
        )
    return found


def normalised(steps: Sequence[Step], text: str) -> str:
    """A text after steps of NORMALISERS, in their order."""
    for step in steps:
        text = step(text)
    return text


def read_filters(path: Path, given: Any) -> dict[str, tuple[Step, ...]]:
    """`filters` of an entry: name → steps.

    Raises:
        InputError: no such step, or one without what it needs.
    """
    if not isinstance(given, dict):
        raise InputError(f"{path}: `filters` holds {given!r}; wanted name: [steps]")
    known = {**EXTRACTORS, **NORMALISERS, **GATHERERS}
    return {str(name): read_steps(path, f"filters/{name}", steps, known) for name, steps in given.items()}


def read_steps(path: Path, what: str, given: Any, known: Mapping[str, Any]) -> tuple[Step, ...]:
    """Steps as a file has them: `lower`, or `{regex: "#### (.*)", take: last}`."""
    if not isinstance(given, list):
        raise InputError(f"{path}: `{what}` holds {given!r}; wanted a list of {', '.join(known)}")
    return tuple(_step(path, what, value, known) for value in given)


def _step(path: Path, what: str, value: Any, known: Mapping[str, Any]) -> Step:
    made = dict(value) if isinstance(value, dict) else {value: None}
    # beside the step's own name a mapping holds its options
    name = next((key for key in made if key in known), None)
    argument = made.pop(name, None) if name else None
    needs = {"regex": str, "ignore": str, "map": dict, "take_first_k": str}.get(str(name))
    if name is None or set(made) - {"take", "group"} or (needs and not isinstance(argument, needs)):
        raise InputError(f"{path}: `{what}` has the step {value!r}; wanted one of: {', '.join(known)}")
    # compiled while the file is read: a wrong pattern is said before any model is asked
    if needs is str and name in ("regex", "ignore"):
        _compiled(argument)
    take, options = str(made.get("take", "first")), {}
    places = {"first": 0, "last": -1}
    # quoted or not, YAML gives this file's words as texts
    if (take not in places and not take.lstrip("-").isdigit()) or not str(made.get("group", "1")).isdigit():
        raise InputError(
            f"{path}: `{what}` has the step {value!r}; wanted take: first, last or a number from 0"
        )
    options["take"] = places[take] if take in places else int(take)
    if "group" in made:
        options["group"] = int(made["group"])
        if options["group"] > _compiled(argument).groups:
            raise InputError(f"{path}: `{what}` takes group {made['group']} of a pattern that has fewer")
    return Step(str(name), argument, options)
