"""Rows → prompts as text or conversations, and as ids of the policy. Knows rows and tokenizers; knows
no model.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset

from finetune.alignment.rewards import AskedRewards, RewardPrompt
from finetune.artefacts.provenance import save_provenance
from finetune.artefacts.trained_rows import save_trained_rows
from finetune.data.cells import with_cells
from finetune.data.chats import ChatError, Chats
from finetune.data.columns import TEXTS, Columns
from finetune.data.laying import laid_out
from finetune.data.places import columns_of, place_of
from finetune.data.preview import marked, show_texts
from finetune.data.questions import lay_out_prompts
from finetune.data.sources import DataArguments, Rows, load_rows, sample
from finetune.errors import InputError, check_least

logger = logging.getLogger(__name__)
TAKEN = ("prompts", "completions")  # names that a reward's first two arguments have


@dataclass
class PromptArguments:
    """What the policy is asked."""

    prompt_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Use the first so many tokens of each text as its prompt (default: the whole text)."
        },
    )
    max_prompt_length: int = field(
        default=512, metadata={"help": "Prompts of more tokens are left out; the log says how many."}
    )

    prompt_template: str | None = field(
        default=None,
        metadata={"help": "A text around each prompt, which holds {prompt}; \\n is a line break."},
    )

    as_chat: bool = field(
        default=False,
        metadata={"help": "Ask each text as a user's turn, through the tokenizer's chat template."},
    )

    def __post_init__(self) -> None:
        check_least(self, 1, "prompt_tokens", "max_prompt_length")


def read_prompts(
    data: DataArguments, settings: PromptArguments, processor: Any, rows: Rows | None = None
) -> tuple[list[AskedRewards], list[AskedRewards]]:
    """Training and held-out prompts with the columns of their rows: texts, or conversations that end before
    the assistant's turn.

    The column is the one named by --text_column, else `prompt`, `messages`, or a usual name of a text.

    Args:
        rows: those of `data`, where they were read already.

    Raises:
        InputError: no such column, a cell that is neither text nor conversation, no prompt left.
    """
    rows, _ = laid_out(rows or load_rows(data), data, partial(lay_out_prompts, texts=TEXTS))
    assert rows.train is not None and rows.eval is not None
    train = _prompts(
        sample(rows.train, data.max_train_rows, data.sample_seed), data, settings, processor, "training"
    )
    return train, _prompts(
        sample(rows.eval, data.max_eval_rows, data.sample_seed), data, settings, processor, "evaluation"
    )


def _prompts(
    rows: Dataset, data: DataArguments, settings: PromptArguments, processor: Any, where: str
) -> list[AskedRewards]:
    # In the order of the options: cut, then put in a template, then made a turn.
    found = [as_prompt(value, index) for index, value in enumerate(rows["prompt"][:])]
    if settings.prompt_tokens is not None:
        found = [beginning(prompt, settings.prompt_tokens, processor) for prompt in found]
    if settings.prompt_template is not None:
        found = [templated(prompt, settings.prompt_template) for prompt in found]
    if settings.as_chat:
        # Conversations are turns already.
        found = [
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt for prompt in found
        ]
    tools = _tools(rows)
    # In tokens of the policy, template and all: these are what its positions must hold.
    lengths = []
    for index, prompt in enumerate(found):
        try:
            lengths.append(len(prompt_ids(processor, prompt, tools[index])))
        except ChatError as error:
            raise InputError(f"The {where} {place_of(rows, index)}: {error}") from error
    kept = [
        AskedRewards(prompt, row, own)
        for prompt, length, row, own in zip(found, lengths, reward_columns(rows), tools, strict=True)
        if 0 < length <= settings.max_prompt_length
    ]
    # Left out and counted, since the first prompt that is too long would stop a run in its midst.
    long, empty = sum(length > settings.max_prompt_length for length in lengths), lengths.count(0)
    if long:
        limit = settings.max_prompt_length
        logger.warning(
            "%d of %d %s prompts exceed %d tokens and are left out (--max_prompt_length)",
            long,
            len(found),
            where,
            limit,
        )
    if empty:
        logger.warning("%d of %d %s prompts are empty and are left out", empty, len(found), where)
    if not kept:
        raise InputError(
            f"No {where} prompt of 1 to {settings.max_prompt_length} tokens among {len(found)}; "
            "raise --max_prompt_length or set --prompt_tokens"
        )
    return kept


def _tools(rows: Dataset) -> list[list[dict[str, Any]] | None]:
    """The tools that each conversation is asked with: none but where rows were laid out with some."""
    if not len(rows) or "tools" not in columns_of(rows) or isinstance(rows[0]["prompt"], str):
        return [None] * len(rows)
    return [given or None for given in rows["tools"][:]]


def show_prompts(
    prompts: Sequence[AskedRewards], held_out: Sequence[AskedRewards], processor: Any, data: DataArguments
) -> bool:
    """Print the first prompts as the policy is asked; whether the run ends here (--check)."""
    texts = [
        processor.decode(prompt_ids(processor, row.prompt, row.tools)) + marked("...")
        for row in prompts[: max(data.show_rows, 1)]
    ]
    return show_texts(texts, f"{len(prompts)} training and {len(held_out)} held-out prompts", data)


def reward_columns(rows: Dataset) -> list[dict[str, Any]]:
    """The columns that rewards see, row by row."""
    taken = [name for name in TAKEN if name in columns_of(rows)]
    if taken:
        # A reward's first two arguments go by these names.
        logger.warning(
            "The columns %s go by the name of what every reward gets and are not handed to any",
            ", ".join(taken),
        )
    kept = [name for name in columns_of(rows) if name not in TAKEN]
    return [{name: row[name] for name in kept} for row in rows]


def templated(prompt: RewardPrompt, template: str) -> RewardPrompt:
    """A text put into a template at {prompt}.

    Raises:
        InputError: a conversation, or a template without the place.
    """
    if not isinstance(prompt, str) or "{prompt}" not in template:
        raise InputError(
            "--prompt_template holds {prompt} and takes texts; leave it out, or set --text_column"
        )
    return template.replace("\\n", "\n").replace("{prompt}", prompt)


def prompt_column(rows: Dataset, data: DataArguments) -> str:
    """The column that prompts come from: the one named by --text_column, else `prompt`, `messages`, or a
    usual name of a text.

    Raises:
        InputError: no such column.
    """
    column = data.text_column or next(
        (name for name in ("prompt", "messages", *TEXTS) if name in columns_of(rows)), None
    )
    if column is None or column not in columns_of(rows):
        there = ", ".join(columns_of(rows))
        raise InputError(
            f"No column '{column or 'prompt'}' in {data.name}; it has {there}. Set --text_column"
        )
    return column


def as_prompt(value: Any, index: int) -> RewardPrompt:
    """A cell as a prompt; a conversation loses the assistant's last turn, which is what is to be sampled."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(
        isinstance(m, dict) and isinstance(m.get("content"), str) and m.get("role") for m in value
    ):
        # a template that sees calls of tools and reasoning is shown them
        # Arrow fills keys that other messages have with None, and templates ask whether a key is there.
        messages = [{name: one for name, one in m.items() if one is not None} for m in value]
        # The assistant's last turn is what is to be sampled; earlier ones stay.
        asked = messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages
        if asked:
            return asked
    raise InputError(
        f"The prompt of row {index} is {str(value)[:60]!r}; wanted a text or a list of messages with role "
        "and content, not the assistant's alone. "
        "Set --text_column"
    )


def beginning(prompt: RewardPrompt, tokens: int, processor: Any) -> RewardPrompt:
    """The first tokens of a text, as text."""
    if not isinstance(prompt, str):
        raise InputError("--prompt_tokens cuts texts, and these prompts are conversations; leave it out")
    # Without the special tokens: as text they would be tokenised as words.
    ids = processor(prompt, add_special_tokens=False, truncation=True, max_length=tokens)["input_ids"]
    return processor.decode(ids, skip_special_tokens=True)


def prompt_ids(processor: Any, prompt: RewardPrompt, tools: Any = None) -> list[int]:
    """Ids of a prompt; a conversation goes through the tokenizer's template, which brings its own special
    tokens and renders the `tools` of its row.

    An EOS that the tokenizer puts at the end of a text is taken off: an answer could not follow it.
    """
    if isinstance(prompt, str):
        ids = processor(prompt)["input_ids"]
        # T5's and some others' tokenizers end every text.
        return ids[:-1] if ids and ids[-1] == processor.eos_token_id else ids
    if not processor.chat_template:
        raise InputError(
            "The prompts are conversations and the model's tokenizer has no chat template; use prompts of "
            "plain text"
        )
    # Through the template with the assistant's turn begun.
    return Chats(processor).prompt_ids(prompt, tools)


def answer_texts(processor: Any, prompts: Sequence[Sequence[int]], answers: Any, mask: Any) -> list[str]:
    """The answers as text. Decoded together with their prompt: alone, some tokenizers drop an
    answer's first space.
    """
    texts = []
    for prompt, answer, real in zip(prompts, answers.tolist(), mask.tolist(), strict=True):
        ids = [token for token, is_real in zip(answer, real, strict=True) if is_real]
        # Without special tokens on both sides, or an end of turn would stand in an answer's text.
        before = processor.decode(list(prompt), skip_special_tokens=True)
        whole = processor.decode([*prompt, *ids], skip_special_tokens=True)
        texts.append(
            whole[len(before) :]
            # Where a tokenizer writes the joined text otherwise, the answer alone is the best there is.
            if whole.startswith(before)
            else processor.decode(ids, skip_special_tokens=True)
        )
    return texts


def save_asked_rows(folder: str | Path, told: Mapping[str, Any], rows: Sequence[AskedRewards]) -> None:
    """Write where prompts are from, and hashes of them as the rows hold them: whole, and before any template
    stands around them. Where a policy is asked by other prompts later, its rows are told by that alone.

    Args:
        told: see `provenance_of`.
    """
    save_provenance(folder, told, rows)
    # one writer; the others read nothing of this file
    if not PartialState().is_main_process:
        return
    asked = with_cells(
        Dataset.from_dict({}), "prompt", [row.columns.get("prompt", row.prompt) for row in rows]
    )
    save_trained_rows(folder, (asked, Columns("prompt", None, "prompt")))


def prompts_fingerprint(rows: Sequence[AskedRewards]) -> str:
    """Hash of all prompts in their order, and of what rewards see beside them."""
    # The tools stand among a row's columns.
    told = [[row.prompt, row.columns] for row in rows]
    # Cells may hold dates and the like, which JSON doesn't know.
    return hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest()
