"""What is wrong with prompts before any model is asked, in words and counts. Knows tokenizers and rows; knows
no models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from finetune.errors import InputError
from prompts.scoring.tokens import beginning_ids, count_tokens, encode_pairs, word_ids
from prompts.study.rows import StudyRow
from prompts.templates.prompt import Prompt, longest
from prompts.templates.template import SLOT, Rendered, Skipped, Template, is_empty

SHOWN = 200  # rows that a template is tried on


def check_prompt(
    prompt: Prompt, rows: Sequence[StudyRow], tokenizer: Any, limit: int, family: str
) -> list[str]:
    """What is wrong with a prompt on some rows, one line each; empty where nothing is."""
    lines = check_template(
        prompt.template,
        rows,
        tokenizer,
        limit=limit,
        family=family,
        answer=longest(tokenizer, prompt.verbalizer.flat),
    )
    first = next(iter(_tried(prompt.template.render, rows)[0]), None)
    if first is None:
        return lines
    return [*lines, *_split(prompt, first, tokenizer, family), *refusals(prompt, first, tokenizer)]


def check_template(
    template: Template, rows: Sequence[StudyRow], tokenizer: Any, *, limit: int, family: str, answer: str = ""
) -> list[str]:
    """The same for what is around the slot; `answer` is the longest that has to find room in it."""
    rendered, faults = _tried(template.render, rows)
    lines = [f"{fault} ({count} of {min(len(rows), SHOWN)} rows)" for fault, count in faults.items()]
    if not rendered:
        return lines
    first = rendered[0]
    # masked models see what follows
    if family == "causal" and first.after.strip():
        lines.append(
            f"{template.name}: text after the slot ({first.after.strip()[:40]!r}), which a causal model "
            "can't see"
        )
    if first.before.endswith(("\t", "\u00a0")):
        lines.append(f"{template.name}: ends in white space before its slot; end it in a single space")
    raw = template.plain(rows[0].columns).partition(SLOT)[0] if not template.side else ""
    if raw.endswith("  "):
        lines.append(
            f"{template.name}: {len(raw) - len(raw.rstrip(' '))} spaces before its slot, which stand in the "
            "answer's tokens; leave one"
        )
    lines += [*_empty(template, rows, rendered), *_doubled(template, first, tokenizer)]
    long = sum(count_tokens(tokenizer, text.filled(answer)) > limit for text in rendered)
    if long:
        lines.append(
            f"{template.name}: {long} of {len(rendered)} rows have more than {limit} tokens; their text "
            "will be cut (--max_length)"
        )
    return lines


def check_target(target: Template, rows: Sequence[StudyRow]) -> list[str]:
    """What is wrong with the texts that written ones are compared with."""
    texts, faults = _tried(target.listed, rows)
    empty = sum(not any(text.strip() for text in row) for row in texts)
    lines = [f"{fault} ({count} of {min(len(rows), SHOWN)} rows)" for fault, count in faults.items()]
    return lines + ([f"{target.name}: {empty} rows have no text to compare with"] if empty else [])


def check_choices(
    name: str, of: Callable[[StudyRow], tuple[list[str], int]], rows: Sequence[StudyRow]
) -> list[str]:
    """What is wrong with the choices that rows name: none right, empty ones, equal ones."""
    equal, faults = 0, dict[str, int]()
    for row in rows[:SHOWN]:
        try:
            # equal choices are counted, as both are right then
            choices, _ = of(row)
            equal += len({choice.strip() for choice in choices}) < len(choices)
        except InputError as error:
            faults[str(error)] = faults.get(str(error), 0) + 1
    lines = [f"{fault} ({count} of {min(len(rows), SHOWN)} rows)" for fault, count in faults.items()]
    return lines + ([f"{name}: {equal} rows with two equal choices"] if equal else [])


def _tried(
    render: Callable[[Mapping[str, Any]], Any], rows: Sequence[StudyRow]
) -> tuple[list[Any], dict[str, int]]:
    """What could be rendered, and why the rest could not, with numbers of rows."""
    rendered: list[Any] = []
    faults: dict[str, int] = {}
    for row in rows[:SHOWN]:
        try:
            rendered.append(render(row.columns))
        # as the template wants it
        except Skipped:
            continue
        except InputError as error:
            faults[str(error)] = faults.get(str(error), 0) + 1
    return rendered, faults


def _empty(template: Template, rows: Sequence[StudyRow], rendered: Sequence[Rendered]) -> list[str]:
    columns = template.columns
    empty = sum(any(is_empty(row.columns.get(column, "-")) for column in columns) for row in rows[:SHOWN])
    lines = (
        [f"{template.name}: {empty} rows with an empty column among {', '.join(columns)}"] if empty else []
    )
    bare = sum(not (text.before + text.after).strip() for text in rendered)
    return lines + ([f"{template.name}: {bare} rows render to nothing but the slot"] if bare else [])


def _doubled(template: Template, first: Rendered, tokenizer: Any) -> list[str]:
    # any word: only the beginning is looked at
    ids = tokenizer(first.filled("x"))["input_ids"]
    start = beginning_ids(tokenizer)
    doubled = ids[:2] == [start, start]
    return (
        [
            f"{template.name}: begins with {tokenizer.decode([start])} twice: the template has it, and "
            "the tokenizer adds it"
        ]
        if doubled
        else []
    )


def _split(prompt: Prompt, first: Rendered, tokenizer: Any, family: str) -> list[str]:
    lines = []
    # a masked model scores words by themselves
    for word in prompt.verbalizer.flat if family == "causal" else ():
        answer = first.gap + word
        alone = tokenizer(answer, add_special_tokens=False)["input_ids"]
        context = encode_pairs(tokenizer, [(first.before, answer)])[0] if alone else None
        # the word's tokens in the text are others than alone: a comparison between labels may be uneven
        if context is not None and list(context.ids[context.start :]) != alone:
            shown = " ".join(repr(tokenizer.decode([i])) for i in context.ids[context.start :])
            lines.append(
                f"{prompt.name}: the answer {answer!r} is split in another way behind this text than "
                f"alone: {shown}"
            )
    return lines


def refusals(prompt: Prompt, first: Rendered, tokenizer: Any) -> list[str]:
    """Words that no score can be had for: unknown ones, and those of two labels that are the same tokens
    ("Good", "good")."""
    lines: list[str] = []
    taken: dict[tuple[int, ...], tuple[str, str]] = {}
    for label, words in zip(prompt.verbalizer.labels, prompt.verbalizer.words, strict=True):
        for word in words:
            try:
                ids = tuple(word_ids(tokenizer, first.gap + word))
            except InputError as error:
                lines.append(f"{prompt.name}: {error}")
                continue
            # by tokens: words that differ in letters may be one to the tokenizer
            other, its_word = taken.setdefault(ids, (label, word))
            if other != label:
                lines.append(
                    f"{prompt.name}: {its_word!r} of '{other}' and {word!r} of '{label}' are the same "
                    "tokens; name another"
                )
    return lines
