"""Rewards that need no model: the right number, a length, a format, a pattern. Knows texts; knows no process
and no model.

Each maker takes what follows the colon in --reward and gives a reward f(prompts, completions, **columns).
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.alignment.rewards import Reward, RewardArguments
from finetune.errors import InputError
from finetune.metrics import texts

FORMULA = set("\\^_={}$/*")  # what tells a formula from a number
PLACE = re.compile(r"\{(\w+)\}")


def rows_of(columns: Mapping[str, Sequence[Any]], rows: int) -> list[dict[str, Any]]:
    """Columns as lists → one mapping a row."""
    return [{name: values[i] for name, values in columns.items()} for i in range(rows)]


def filled(template: str, values: Mapping[str, Any]) -> str:
    """A text with each {name} replaced, in one pass: what is put in is never read as a template.

    Raises:
        InputError: a name that is no value here.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise InputError(f"--reward names {{{match[1]}}}; the rows have {', '.join(values)}")
        return str(values[match[1]])

    return PLACE.sub(value, template)


def column_of(name: str, columns: Mapping[str, Any], kind: str) -> Any:
    """A column that a reward needs.

    Raises:
        InputError: the data set has none of that name.
    """
    if name not in columns:
        there = ", ".join(columns) or "none beside the prompts"
        raise InputError(
            f"The reward {kind} reads the column '{name}', and the rows have {there}. Set --reward "
            f"{kind}:COLUMN"
        )
    return columns[name]


def same_number(rest: str, settings: RewardArguments) -> Reward:
    r"""`[COLUMN]` (default: answer) → 1.0 where the answer ends in what the column's text ends in, else 0.0;
    None without one.

    The end is what follows `####`, stands in `\boxed{}`, or is the last number. Numbers are compared as
    `metrics.texts` does; formulas and other forms of a number by math-verify (Kydlíček 2025), where both
    sides can be read.
    """
    # Imported late: it loads a grammar that no other reward needs.
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of each answer that it can't read
    math_verify.parse(
        "$1$", parsing_timeout=None
    )  # the first reading loads its grammar, which is nobody's fault
    column = rest or "answer"

    def read(text: str) -> list[Any]:
        # its own time limit is an alarm, which only the main thread can set
        limit = 5 if threading.current_thread() is threading.main_thread() else None
        return math_verify.parse(text, parsing_timeout=limit)

    # GSM8K's solutions end in `#### 42`, and only what follows is the answer.
    def equal(answer: str, gold: str) -> bool:
        wanted = gold.rpartition(texts.MARK)[2].strip()
        if not set(wanted) & FORMULA:
            # only a formula in the answer can be a number that its last one isn't
            formula = "\\" in answer and math_verify.verify(read(wanted), read(answer))
            return texts.ends_in_same_number(answer, gold) or formula
        # math-verify reads formulas between marks of mathematics alone.
        formula = wanted if "\\boxed" in wanted or "$" in wanted else f"${wanted}$"
        return math_verify.verify(read(formula), read(answer))

    def reward(prompts: Sequence[Any], completions: Sequence[str], **columns: Any) -> list[float | None]:
        golds = column_of(column, columns, "same_number")
        return [
            # Rows without an answer have no part in the score; 0 would punish whatever is said there.
            None if gold is None or not str(gold).strip() else float(equal(text, str(gold)))
            for text, gold in zip(completions, golds, strict=True)
        ]

    return reward


def length_reward(rest: str, settings: RewardArguments) -> Reward:
    """`WORDS` → 1.0 at so many words, falling to 0.0 at none and at twice as many."""
    if not rest.isdigit() or int(rest) == 0:
        raise InputError(f"--reward length:{rest}; wanted a whole number of words above 0, as length:40")
    wanted = int(rest)

    def reward(prompts: Sequence[Any], completions: Sequence[str], **columns: Any) -> list[float]:
        return [max(0.0, 1 - abs(len(text.split()) - wanted) / wanted) for text in completions]

    return reward


def format_reward(rest: str, settings: RewardArguments) -> Reward:
    """`REGEX` → 1.0 where it matches the whole answer, white space at the ends aside; `.` matches
    line breaks.
    """
    # DOTALL: a format such as <think>...</think> goes over lines.
    pattern = compiled(rest, "format", re.DOTALL)
    return lambda prompts, completions, **columns: [
        float(bool(pattern.fullmatch(text.strip()))) for text in completions
    ]


def regex_reward(rest: str, settings: RewardArguments) -> Reward:
    """`REGEX` → 1.0 where it is found in the answer."""
    pattern = compiled(rest, "regex")
    return lambda prompts, completions, **columns: [float(bool(pattern.search(text))) for text in completions]


def compiled(pattern: str, kind: str, flags: int = 0) -> re.Pattern[str]:
    """A pattern.

    Raises:
        InputError: it is none.
    """
    try:
        return re.compile(pattern, flags)
    except re.error as error:
        raise InputError(f"--reward {kind}:{pattern} is no regular expression: {error}") from error
