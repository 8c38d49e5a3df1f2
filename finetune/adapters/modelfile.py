"""A chat template → Ollama's Modelfile, where the two can be shown to say the same. Knows ChatML; runs no
template of Ollama's.

Ollama's templates are written in Go. Only what was rendered the same way on probe chats is written down;
anything else is refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from finetune.data.chats import Chats
from finetune.errors import InputError

Chat = Sequence[dict[str, str]]
TEMPLATE = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
PROBE_CHATS: tuple[Chat, ...] = (
    ({"role": "user", "content": "Hello"},),
    ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 2?"}),
    (
        {"role": "user", "content": "Name a colour."},
        # A turn before an answer, a break and quotes: where templates differ.
        {"role": "assistant", "content": "Blue"},
        {"role": "user", "content": "Another,\nplease: \"x\" 'y' {z}"},
    ),
    (
        {"role": "system", "content": "You answer in rhymes."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "My"},
        {"role": "user", "content": "Oh"},
    ),
)


def rendered(chat: Chat, system: str | None) -> str:
    """What Ollama makes of TEMPLATE: its system message first where the chat has none of its own."""
    messages = list(chat)
    # A template with a default system message adds it where the chat has none.
    if system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return f"{turns}<|im_start|>assistant\n"


def make_modelfile(processor: Any, file: str) -> str:
    """The Modelfile of a GGUF file.

    Raises:
        InputError: no chat template, or one that isn't ChatML on every probe chat.
    """
    if not processor.chat_template:
        raise InputError("The tokenizer has no chat template, so that there is none to write for Ollama")
    wanted = [Chats(processor).prompt(chat) for chat in PROBE_CHATS]
    head = "<|im_start|>system\n"
    # What the template puts before a chat without system message is its default.
    system = wanted[0].removeprefix(head).partition("<|im_end|>")[0] if wanted[0].startswith(head) else None
    for chat, text in zip(PROBE_CHATS, wanted, strict=True):
        if rendered(chat, system) != text:
            raise InputError(
                f"The chat template renders {text!r}, which is no ChatML; Ollama's template is known for "
                "that alone"
            )
    lines = [
        f"FROM ./{file}",
        f'TEMPLATE """{TEMPLATE}"""',
        # Both marks end an answer: a model may write the next turn's beginning.
        'PARAMETER stop "<|im_end|>"',
        'PARAMETER stop "<|im_start|>"',
    ]
    if system is not None:
        lines.append(f"SYSTEM {json.dumps(system, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"
