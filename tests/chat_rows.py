"""Templates of chats, and chats of every kind: what tests and the documentation's table go over."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import trl
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# Shaped after families that TRL has no copy of; written anew.
OWN = {
    "llama2": "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set lead = "
    "'<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set rest = messages %}{% set lead = '' %}{% endif %}{% for m in rest %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') "
    "}}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + (lead if loop.first else '') + "
    "m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "zephyr": "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    "vicuna": "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + ' ' }}{% elif m.role == "
    "'user' %}{{ 'USER: ' + m.content }}"
    "{% else %}{{ ' ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}{% if "
    "add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}",
    "smollm2": "{% for m in messages %}{% if loop.first and messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}{{ '<|im_start|>' + m.role + '\n' "
    "+ m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "endless": "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
}  # fmt: skip
TEMPLATES = OWN | {
    file.stem: file.read_text(encoding="utf-8")
    for file in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
}
TOKENS = re.compile(r"<[|｜][^<>\s']+?[|｜]>|<(?:start|end)_of_(?:turn|utterance)>|<turn\|>|<\|turn>")


def said(role: str, content: str | None, **further: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **further}


def call(**arguments: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "weather", "arguments": arguments}}]


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Looks at the sky",
            "parameters": {
                "type": "object",
                "properties": {"town": {"type": "string", "description": "Where"}},
                "required": ["town"],
            },
        },
    }
]
TURNS = [
    said("user", "Is it one?"),
    said("assistant", "It is."),
    said("user", "And two?"),
    said("assistant", "No, not two."),
]
CHATS: dict[str, tuple[list[dict[str, Any]], Any]] = {
    "one turn": (TURNS[:2], None),
    "turns": (TURNS, None),
    "system": ([said("system", "Be short."), *TURNS], None),
    "reasoning": (
        [
            TURNS[0],
            said("assistant", "It is.", reasoning_content="One is one."),
            TURNS[2],
            said("assistant", "No, not two.", reasoning_content="Two is more."),
        ],
        None,
    ),
    "tools": (
        [
            said("user", "How is the weather in Oslo?"),
            said("assistant", "", tool_calls=call(town="Oslo")),
            said("tool", "clear", name="weather", tool_call_id="a1"),
            said("assistant", "Clear."),
            *TURNS[2:],
        ],
        TOOLS,
    ),
    "greeting": ([said("assistant", "Hello, who is it?"), *TURNS[:2]], None),
}


@cache
def _bytes() -> str:
    plain = Tokenizer(models.BPE())
    # line ends stay together whatever follows, as in the tokenizers of the families that the templates are of
    lines = pre_tokenizers.Split(Regex(r"\s*[\r\n]+|\s+(?!\S)| ?\w+| ?[^\s\w]+|\s"), "isolated")
    plain.pre_tokenizer = pre_tokenizers.Sequence([lines, pre_tokenizers.ByteLevel(False, use_regex=False)])
    plain.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    plain.train_from_iterator(["user assistant\n\n"] * 3, trainer)
    return plain.to_str()


def tokenizer_for(template: str) -> PreTrainedTokenizerFast:
    """Bytes, the special tokens that a template writes, and tokens for the words of its headers."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_bytes()), pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    made.add_special_tokens({"additional_special_tokens": sorted(set(TOKENS.findall(template)))})
    made.chat_template = template
    return made
