"""What is wrong with prompts before any model is asked, in words and counts. Knows tokenizers and rows; knows no models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune.errors import InputError
from prompts.prompt import Prompt
from prompts.rows import Row
from prompts.template import Rendered, is_empty
from prompts.tokens import beginning, count_tokens, encode_pairs, word_ids

SHOWN = 200  # rows that a template is tried on


def check_prompt(prompt: Prompt, rows: Sequence[Row], tokenizer: Any, limit: int, family: str) -> list[str]:
    """What is wrong with a prompt on some rows, one line each; empty where nothing is."""
    rendered: list[Rendered] = []
    faults: dict[str, int] = {}
    for row in rows[:SHOWN]:
        try:
            rendered.append(prompt.template.render(row.columns))
        except InputError as error:
            faults[str(error)] = faults.get(str(error), 0) + 1
    lines = [f"{fault} ({count} of {min(len(rows), SHOWN)} rows)" for fault, count in faults.items()]
    if not rendered:
        return lines
    first = rendered[0]
    if family == "causal" and first.after.strip():
        lines.append(f"{prompt.name}: text after the slot ({first.after.strip()[:40]!r}), which a causal model can't see")
    if first.before.endswith(("\t", "\u00a0")):
        lines.append(f"{prompt.name}: ends in white space before its slot; end it in a single space")
    lines += _empty(prompt, rows, rendered)
    lines += _doubled(prompt, first, tokenizer)
    lines += _words(prompt, first, tokenizer, family)
    long = sum(count_tokens(tokenizer, text.filled(max(prompt.verbalizer.flat, key=len))) > limit for text in rendered)
    if long:
        lines.append(
            f"{prompt.name}: {long} of {len(rendered)} rows have more than {limit} tokens; their text will be cut (--max_length)"
        )
    return lines


def _empty(prompt: Prompt, rows: Sequence[Row], rendered: Sequence[Rendered]) -> list[str]:
    columns = prompt.template.columns
    empty = sum(any(is_empty(row.columns.get(column, "-")) for column in columns) for row in rows[:SHOWN])
    lines = [f"{prompt.name}: {empty} rows with an empty column among {', '.join(columns)}"] if empty else []
    bare = sum(not (text.before + text.after).strip() for text in rendered)
    return lines + ([f"{prompt.name}: {bare} rows render to nothing but the slot"] if bare else [])


def _doubled(prompt: Prompt, first: Rendered, tokenizer: Any) -> list[str]:
    ids = tokenizer(first.filled("x"))["input_ids"]
    start = beginning(tokenizer)
    doubled = ids[:2] == [start, start]
    return (
        [f"{prompt.name}: begins with {tokenizer.decode([start])} twice: the template has it, and the tokenizer adds it"]
        if doubled
        else []
    )


def _words(prompt: Prompt, first: Rendered, tokenizer: Any, family: str) -> list[str]:
    lines = []
    for word in prompt.verbalizer.flat:
        answer = first.gap + word
        try:
            alone = word_ids(tokenizer, answer)
            if family != "causal":
                continue
            context = encode_pairs(tokenizer, [(first.before, answer)])[0]
            inside = list(context.ids[context.start :])
        except InputError as error:
            lines.append(f"{prompt.name}: {error}")
            continue
        if inside != alone:
            shown = " ".join(repr(tokenizer.decode([i])) for i in inside)
            lines.append(f"{prompt.name}: the answer {answer!r} is split in another way behind this text than alone: {shown}")
    return lines
