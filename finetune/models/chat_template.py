"""Where a tokenizer's chat template comes from: its own, a file, another model's, or a named default. Knows
tokenizers; knows no chats."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetune.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Named:
    """A template that goes by a name, with the tokens that it separates turns by; the last ends an answer."""

    text: str
    separators: tuple[str, ...]


TEMPLATES = {
    "chatml": Named(
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
        "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% "
        "endif %}",
        ("<|im_start|>", "<|im_end|>"),
    )
}
DEFAULT = "chatml"
# bars of full width too, as DeepSeek's tokens have them
WRITTEN = re.compile(r"<[|｜][^<>|｜\s]+[|｜]>")


def give_template(processor: PreTrainedTokenizerBase, wanted: str | None) -> list[str]:
    """Set the tokenizer's chat template; gives back the tokens that it gained by that.

    Args:
        wanted: a file, a folder or hub name with a tokenizer, or a name of TEMPLATES; None for the default.

    Raises:
        InputError: there is no such template.
    """
    before = set(processor.get_vocab())
    path = Path(wanted or DEFAULT).expanduser()
    # a file or a folder of that name goes before the name
    if wanted is None or (wanted in TEMPLATES and not path.exists()):
        named = TEMPLATES[wanted or DEFAULT]
        _take(processor, named.text, named.separators, end=named.separators[-1])
    elif path.is_file():
        _take(processor, _read(path), (), end=None)
    else:
        _copy(processor, wanted)
    gained = sorted(set(processor.get_vocab()) - before, key=processor.convert_tokens_to_ids)
    # tokens that look special and are spelt in pieces: a model would have to learn them as words
    split = [
        token for token in dict.fromkeys(WRITTEN.findall(_text(processor))) if _parts(processor, token) > 1
    ]
    logger.warning(
        "Chat template: %s%s%s",
        wanted or f"{DEFAULT}, since the tokenizer has none (--chat_template_path takes another)",
        f"; new tokens {', '.join(gained)}, ends {processor.eos_token}" if gained else "",
        f"; in several tokens each: {', '.join(split[:5])} (--add_tokens)" if split else "",
    )
    return gained


def _take(processor: Any, text: str, separators: tuple[str, ...], end: str | None) -> None:
    processor.chat_template = text
    missing = [token for token in separators if token not in processor.get_vocab()]
    if missing:
        # transformers would drop the further special tokens that it has
        processor.add_special_tokens(
            {"additional_special_tokens": missing}, replace_extra_special_tokens=False
        )
    if end is not None:
        # without it nothing would tell generation that a turn is over
        processor.eos_token = end


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Can't read the chat template {path}: {error}. Set --chat_template_path") from error


def _copy(processor: Any, name: str) -> None:
    """Another model's template, with the special tokens that it writes and the token that ends its
    answers."""
    try:
        source = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(
            f"No chat template '{name}': it is no file, no tokenizer's folder or hub name, and none of "
            f"{', '.join(TEMPLATES)}. Set --chat_template_path"
        ) from error
    if not source.chat_template:
        raise InputError(f"The tokenizer of '{name}' has no chat template; set --chat_template_path")
    text = source.get_chat_template()
    own = [str(token) for token in source.added_tokens_decoder.values()]
    end = source.eos_token
    # what the template doesn't write would be a row in the embeddings that nothing trains
    written = tuple(token for token in own if token in text or token == end)
    _take(processor, text, written, end)


def _text(processor: Any) -> str:
    return processor.chat_template if isinstance(processor.chat_template, str) else ""


def _parts(processor: Any, token: str) -> int:
    return len(processor(token, add_special_tokens=False)["input_ids"])
