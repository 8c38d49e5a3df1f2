"""Which chats every template of TRL's can say, and in how many rows, as the table of docs/chat_templates.md.

python scripts/benchmarks/chat_templates.py > table.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from finetune.data.chats import ChatError, Chats

# the chats and templates are those of the tests
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from chat_rows import CHATS, TEMPLATES, tokenizer_for

ROWS = ("one turn", "turns", "system", "reasoning", "tools", "greeting")


def cell(name: str, kind: str) -> str:
    """Number of rows that a chat becomes, or in a word why it is refused."""
    messages, tools = CHATS[kind]
    try:
        return str(len(Chats(tokenizer_for(TEMPLATES[name])).lines(messages, tools)))
    except ChatError as error:
        said = str(error)
    # what a refusal names, in the order in which it is looked for
    named = ("tool_calls", "'tools'", "reasoning_content", "content")
    return next(
        (
            f"no {one.strip(chr(39))}"
            for one in named
            if f"not render the {one}" in said or f"the column {one}" in said
        ),
        "refused",
    )


def table() -> str:
    """A line a template, a column a kind of chat."""
    lines = ["| template | " + " | ".join(ROWS) + " |", "|---" * (len(ROWS) + 1) + "|"]
    lines += [
        "| " + " | ".join([f"`{name}`", *(cell(name, kind) for kind in ROWS)]) + " |" for name in TEMPLATES
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
