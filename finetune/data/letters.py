"""Sequences of letters (residues, bases) and tokenizers of letters: which ones they don't know, by row.
Knows tokenizers; knows no models and no files.
"""

from __future__ import annotations

import logging
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from finetune.data.places import place_of
from finetune.errors import InputError

logger = logging.getLogger(__name__)


def letters_of(processor: Any) -> set[str] | None:
    """The letters of a tokenizer whose tokens are single ones; None for any other, and for one that has no
    token for what it doesn't know.
    """
    if not isinstance(processor, PreTrainedTokenizerBase) or processor.unk_token_id is None:
        return None
    # `<null_1>` and the like: ESM's own tokenizer doesn't list them as special
    found = {token for token in processor.get_vocab() if not (token[:1] in "<[" and token[-1:] in ">]")}
    found -= set(processor.all_special_tokens)
    return found if found and all(len(token) == 1 for token in found) else None


def check_letters(rows: Dataset, column: str, processor: Any) -> None:
    """Say in the log which rows hold letters that the tokenizer doesn't know, all of which it reads as one.

    Raises:
        InputError: a row without any letter that it knows, as one in lower case.
    """
    known = letters_of(processor)
    if known is None:
        return
    strange = []
    for number, cell in enumerate(rows[column]):
        text = "".join(cell) if isinstance(cell, list) else cell or ""
        if processor.is_fast and processor.backend_tokenizer.normalizer is not None:
            text = processor.backend_tokenizer.normalizer.normalize_str(text)
        unknown = sorted(set(text) - known)
        if not unknown:
            continue
        if not set(text) & known:
            raise InputError(
                f"{_beginning(rows, number)}: the tokenizer knows no letter of {text!r:.60}; it has "
                f"{' '.join(sorted(known))[:120]}. Write the row in those, or make a tokenizer of these rows "
                "(finetune tokenizer --kind characters) and set --tokenizer_name"
            )
        strange.append((number, unknown))
    if strange:
        number, unknown = strange[0]
        logger.warning(
            "%d of %d rows hold letters that the tokenizer doesn't know and reads as %s: first %s in %s. "
            "Mend the rows, or make a tokenizer of them (finetune tokenizer --kind characters)",
            len(strange), len(rows), processor.unk_token, " ".join(map(repr, unknown[:8])),
            place_of(rows, number),
        )  # fmt: skip


def _beginning(rows: Dataset, number: int) -> str:
    place = place_of(rows, number)
    return place[:1].upper() + place[1:]
