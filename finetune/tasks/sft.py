"""Answers to instructions and chats: from raw rows to figures. Knows columns, chat templates and tokenizers; knows no model.

A row is rendered as one text and tokenised once; what shall be learnt is a span of its characters. Prompt and answer tokenised
apart would differ from what a model sees when it answers, and a template with `add_special_tokens` would begin twice.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from datasets import Dataset, List
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from finetune import loss
from finetune.data import collate
from finetune.data.checks import checked_splits
from finetune.data.columns import Columns
from finetune.data.encode import fingerprint, mapped
from finetune.data.laying import laid_out
from finetune.data.places import place_of
from finetune.data.questions import lay_out_chats
from finetune.data.sources import DataArguments, Rows
from finetune.errors import InputError
from finetune.loss import IGNORED
from finetune.metrics import texts
from finetune.metrics.bootstrap import each, mean
from finetune.models import heads
from finetune.tasks.options import TaskArguments, remembered
from finetune.tasks.task import Answer, Examined, Task
from finetune.tasks.windows import frame
from finetune.tasks.written import text_figures

logger = logging.getLogger(__name__)

Message = dict[str, Any]


@dataclass
class InstructionArguments:
    """How instructions are read, and whether answers are written and scored."""

    task: str = field(
        default="sft",
        metadata={"help": "What arguments.yaml says of the run, which is a recipe: always sft."},
    )
    chat: bool | None = field(
        default=None,
        metadata={"help": "Wrap prompt and completion into the chat template (default: where there is one)."},
    )
    write_answers: bool = field(
        default=False,
        metadata={"help": "Let the model answer the evaluation prompts, and score the answers."},
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop after this many evaluations without a better figure, and keep the best model."
        },
    )
    max_new_tokens: int = field(default=256, metadata={"help": "Longest answer to write, in tokens."})
    save_predictions: bool = field(
        default=False,
        metadata={"help": "Write predictions.jsonl: id, text, gold, prediction, score (with write_answers)."},
    )

    def __post_init__(self) -> None:
        if self.task != "sft":
            raise InputError(f"Got --task {self.task}; this script's is sft. Use scripts/train.py for others")
        if self.max_new_tokens < 1:
            raise InputError(f"Got --max_new_tokens {self.max_new_tokens}; wanted 1 or more")
        if self.save_predictions and not self.write_answers:
            raise InputError(
                "--save_predictions has nothing to save where the model writes no answers; set --write_answers true"
            )


def examine(rows: Rows, data: DataArguments) -> Examined:
    """Chats (`messages`), or prompts and completions; columns of chats are named alike as text and label.

    Raises:
        InputError: missing columns, chats without an answer, empty prompts or completions.
    """
    rows, columns = laid_out(rows, data, lay_out_chats)
    if columns.text == columns.label:
        check = check_messages if columns.text == "messages" else no_check
        return Examined(*checked_splits(rows, data, columns, check, lists=True), None)
    both = Columns(columns.text, columns.label, columns.label)
    examined, _ = checked_splits(rows, data, both, no_check, lists=True)
    return Examined(examined, columns, None)


def no_check(rows: Dataset, columns: Columns, where: str) -> None:
    """Texts have no parts to look at."""


def check_messages(rows: Dataset, columns: Columns, where: str) -> None:
    """Every chat has roles and an answer of the assistant's."""
    for index, messages in enumerate(rows[columns.text]):
        if not all(isinstance(message, dict) and message.get("role") for message in messages):
            raise InputError(
                f"The {where} {place_of(rows, index)} has messages without a role; wanted role and content in each"
            )
        if not any(message["role"] == "assistant" for message in messages):
            raise InputError(
                f"The {where} {place_of(rows, index)} has no message of the role assistant, so that nothing could be learnt"
            )
        if all(message["role"] in ("assistant", "system", "developer") for message in messages):
            raise InputError(
                f"The {where} {place_of(rows, index)} begins with an answer, and nothing is asked in it; "
                "wanted a message of the role user. Mend the row or leave it out"
            )
        for message in messages:
            if message["role"] == "user" and not message.get("content"):
                raise InputError(
                    f"The {where} {place_of(rows, index)} has a user's message without content. Mend the row or leave it out"
                )
            if message["role"] == "assistant" and not (
                message.get("tool_calls") or str(message.get("content") or "").strip()
            ):
                raise InputError(
                    f"The {where} {place_of(rows, index)} has an answer without content. Mend the row or leave it out"
                )


def encode(
    rows: Dataset,
    columns: Columns,
    processor: PreTrainedTokenizerBase,
    max_length: int,
    labels: list[str] | None,
    *,
    chat: bool | None = None,
    assistant_only_loss: bool = True,
    completion_only_loss: bool = True,
) -> Dataset:
    """Messages, or a prompt and a completion, a row → input_ids, labels (the next token where it is learnt), prompt, row, length.

    Args:
        chat: whether prompt and completion go into the chat template; None: where the tokenizer has one.
        assistant_only_loss: of chats learn the assistant's turns, with the token that ends them; else the whole text.
        completion_only_loss: the same for completions.

    Rows that are too long lose their end; those of which nothing to learn is left are left out, both counted in the log.

    Raises:
        InputError: messages without a chat template, a template whose text changes behind what it has written, no row left.
    """
    if max_length < 2:
        raise InputError(f"Got --max_length {max_length}; wanted 2 or more: a token and one to predict")
    bare = columns.text == columns.label and not isinstance(rows.features[columns.text], List)
    chatting = not bare and (
        columns.text == columns.label or (processor.chat_template is not None if chat is None else chat)
    )
    if chatting and processor.chat_template is None:
        raise InputError(
            "The tokenizer has no chat template; set --model_name_or_path to a chat model, or --chat false"
        )
    front = [] if chatting else frame(processor)[0]
    answers_only = assistant_only_loss if columns.text == columns.label else completion_only_loss

    def encode(batch: dict[str, list]) -> dict[str, list]:
        features: dict[str, list] = {
            name: [] for name in ("input_ids", "labels", "prompt", "length", "source", "cut", "merged")
        }
        texts, spans = [], []
        for place in range(len(batch[columns.text])):
            row = {name: values[place] for name, values in batch.items()}
            text, learnt = (
                conversation(row, columns, processor) if chatting else completion(row, columns, processor)
            )
            texts.append(text)
            spans.append(learnt)
        encoded = processor(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for place, (ids, offsets) in enumerate(
            zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ):
            said = in_spans(offsets, spans[place])
            wanted = said if answers_only else [True] * len(ids)
            ids, wanted, said = front + ids, [False] * len(front) + wanted, [False] * len(front) + said
            following = [
                token if learn else IGNORED for token, learn in zip(ids[1:], wanted[1:], strict=True)
            ]
            kept = following[: max_length - 1]
            if all(label == IGNORED for label in kept):
                continue
            features["input_ids"].append(ids[: len(kept)])
            features["labels"].append(kept)
            features["prompt"].append(min(_last_turn(said), len(kept)))
            features["length"].append(len(kept))
            features["cut"].append(len(following) - len(kept))
            features["merged"].append(any(start < a < end for a, _ in spans[place] for start, end in offsets))
            features["source"].append(place)
        return features

    options = {
        "max_length": max_length,
        "chat": chatting,
        "answers_only": answers_only,
        "template": processor.chat_template,
    }
    if "tools" in rows.column_names:
        options["tools"] = fingerprint(rows, Columns("tools", None, ""))
    return _report(mapped(rows, columns, encode, processor, options), len(rows), max_length)


def completion(
    row: dict[str, Any], columns: Columns, processor: PreTrainedTokenizerBase
) -> tuple[str, list[tuple[int, int]]]:
    """Prompt and completion as they are, with the end-of-text token behind; the span from the completion on."""
    # a text alone is learnt from its first token on
    prompt = row[columns.text] if columns.text != columns.label else ""
    text = prompt + row[columns.label] + (processor.eos_token or "")
    return text, [(len(prompt), len(text))]


def conversation(
    row: dict[str, Any], columns: Columns, processor: PreTrainedTokenizerBase
) -> tuple[str, list[tuple[int, int]]]:
    """A chat as its template writes it, and the spans of the assistant's turns, each with the token that ends it.

    Raises:
        InputError: a template that rewrites earlier turns, so that a turn can't be found in the whole.
    """
    messages = _messages(row, columns)
    tools = _tools(row.get("tools"))
    whole = _render(processor, messages, tools)
    spans = []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _render(processor, messages[:place], tools, prompt=True)
        through = _render(processor, messages[: place + 1], tools).rstrip()
        if not whole.startswith(before) or not whole.startswith(through):
            raise InputError(
                "The chat template writes earlier turns otherwise once later ones follow, so that answers can't be told apart; "
                "set --assistant_only_loss false, or give prompt and completion with --chat false"
            )
        spans.append((len(before), len(through)))
    return whole, spans


def in_spans(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether each token ends inside one of the spans of characters."""
    return [end > start and any(a < end <= b for a, b in spans) for start, end in offsets]


def _messages(row: dict[str, Any], columns: Columns) -> list[Message]:
    if columns.text == columns.label:
        # columns of structs hold every key of any row; templates ask whether a key is there
        return [_present(message) for message in row[columns.text]]
    prompt, answer = row[columns.text], row[columns.label]
    first = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return [*first, *([{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer)]


def _tools(given: Any) -> list[dict] | None:
    """Descriptions of tools as JSON schemas: a list, or the JSON of one; columns of structs hold every key of any row."""
    try:
        tools = json.loads(given) if isinstance(given, str) else given
    except json.JSONDecodeError as error:
        raise InputError(
            f"The column 'tools' holds {given[:80]!r}, which is no JSON ({error}). Mend the rows"
        ) from error
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InputError(
            f"The column 'tools' holds {str(given)[:80]!r}; wanted a list of JSON schemas. Mend the rows"
        )
    return tools if isinstance(given, str) else [_present(tool) for tool in tools]


def _present(value: Any) -> Any:
    """Without the keys that hold nothing, at any depth."""
    if isinstance(value, dict):
        return {name: _present(one) for name, one in value.items() if one is not None}
    return [_present(one) for one in value] if isinstance(value, list) else value


def _render(
    processor: PreTrainedTokenizerBase, messages: list[Message], tools: Any, prompt: bool = False
) -> str:
    try:
        return str(
            processor.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=prompt)
        )
    except (
        TemplateError,
        TypeError,
        ValueError,
    ) as error:  # whatever a template makes of a content that it doesn't expect
        roles = ", ".join(message["role"] for message in messages)
        raise InputError(f"The chat template refuses messages of {roles}: {error}. Mend the rows") from error


def _last_turn(said: Sequence[bool]) -> int:
    """Number of tokens in front of the last answer."""
    place = len(said)
    while place > 0 and not said[place - 1]:
        place -= 1
    while place > 0 and said[place - 1]:
        place -= 1
    return max(place, 1)


def _report(features: Dataset, rows: int, max_length: int) -> Dataset:
    """Says in the log what was cut, left out, or met inside a token."""
    if len(features) == 0:
        raise InputError(
            f"Within {max_length} tokens no row has anything left to learn; set --max_length higher"
        )
    if len(features) < rows:
        gone = sorted(set(range(rows)) - set(features["row"][:]))
        named = ", ".join(map(str, gone[:5])) + (", ..." if len(gone) > 5 else "")
        logger.warning(
            "%d of %d rows have nothing to learn within %d tokens and are left out (rows %s; --max_length)",
            len(gone),
            rows,
            max_length,
            named,
        )
    cut = sum(count > 0 for count in features["cut"][:])
    if cut:
        logger.warning(
            "%d of %d rows are longer than %d tokens and lost their end (--max_length)", cut, rows, max_length
        )
    merged = sum(features["merged"][:])
    if merged:
        logger.warning(
            "In %d of %d rows prompt and answer meet inside a token; begin answers with a space or a line",
            merged,
            rows,
        )
    return features.remove_columns(["cut", "merged"])


def figures(answers: Sequence[Answer], labels: Sequence[str] | None) -> dict[str, Any]:
    """Figures of texts; where references end in `#### number`, also the share of answers that end in that number."""
    found = text_figures(answers, labels)
    if all(texts.MARK in a["gold"] for a in answers):
        right = [texts.same_number(a["prediction"], a["gold"]) for a in answers]
        found["answer_accuracy"] = sum(right) / len(right)
    return found


def number(answer: Answer) -> float:
    """1 where the answer ends in the wanted number."""
    return float(texts.same_number(answer["prediction"], answer["gold"]))


INTERVALS = {"answer_accuracy": (each(number), mean)}


def as_asked(
    chat: bool | None, assistant_only_loss: bool, completion_only_loss: bool, write_answers: bool
) -> dict[str, Any]:
    """Entries of the row for scripts/sft.py's options."""
    reading = partial(
        encode, chat=chat, assistant_only_loss=assistant_only_loss, completion_only_loss=completion_only_loss
    )
    return {"encode": reading, "answers": write_answers}


def recall(arguments: Mapping[str, Any]) -> tuple[TaskArguments, dict[str, Any]]:
    """What arguments.yaml says of a run of scripts/sft.py, or of scripts/train.py, which has options of its own."""
    options = remembered(arguments)
    if "max_new_tokens" not in arguments:
        return options, {}
    changes = as_asked(
        chat=arguments.get("chat"),
        assistant_only_loss=arguments.get("assistant_only_loss", True),
        completion_only_loss=arguments.get("completion_only_loss", True),
        write_answers=bool(arguments.get("write_answers")),
    )
    # what its training stops and saves by has no meaning here, and no use is refused
    plain = TaskArguments(
        task=options.task, max_length=options.max_length, max_target_length=arguments["max_new_tokens"]
    )
    return plain, changes


def packed(row: Task) -> Task:
    """A row for texts of a decoder, with its rows packed into one line and logits where there is a label alone."""
    return replace(
        row,
        collate=collate.packed,
        forward=heads.packed,
        loss=loss.placed_cross_entropy,
        keep=loss.placed_hits,
    )
