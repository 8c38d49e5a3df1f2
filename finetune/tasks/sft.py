"""Answers to instructions and chats: from raw rows to figures. Knows columns and tokenizers; knows no
model.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from datasets import Dataset, List
from transformers import PreTrainedTokenizerBase

from finetune import loss
from finetune.data import collate
from finetune.data.chats import ChatError, Chats, Line, in_spans
from finetune.data.checks import checked_splits
from finetune.data.columns import Columns
from finetune.data.encode import RowError, fingerprint, mapped
from finetune.data.laying import laid_out
from finetune.data.places import check_each, places_of
from finetune.data.questions import lay_out_chats
from finetune.data.sources import DataArguments, Rows
from finetune.errors import InputError
from finetune.loss import IGNORED
from finetune.metrics import texts
from finetune.metrics.bootstrap import each, mean_figure
from finetune.models import frozen_head
from finetune.tasks.options import TaskArguments, remembered
from finetune.tasks.task import Answer, Examined, Task
from finetune.tasks.windows import frame
from finetune.tasks.written import written_figures

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
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "What the chat template is told besides, as JSON: '{\"enable_thinking\": false}'."},
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
        if isinstance(self.chat_template_kwargs, str):
            try:
                self.chat_template_kwargs = json.loads(self.chat_template_kwargs)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"--chat_template_kwargs is no JSON ({error}): {self.chat_template_kwargs}"
                ) from error
        if not isinstance(self.chat_template_kwargs or {}, dict):
            raise InputError(
                f"Got --chat_template_kwargs {self.chat_template_kwargs!r}; wanted a JSON mapping"
            )
        if self.max_new_tokens < 1:
            raise InputError(f"Got --max_new_tokens {self.max_new_tokens}; wanted 1 or more")
        if self.save_predictions and not self.write_answers:
            raise InputError(
                "--save_predictions has nothing to save where the model writes no answers; set "
                "--write_answers true"
            )


def examine(rows: Rows, data: DataArguments) -> Examined:
    """Chats (`messages`), or prompts and completions; columns of chats are named alike as text and label.

    Raises:
        InputError: missing columns, chats without an answer, empty prompts or completions.
    """
    rows, columns = laid_out(rows, data, lay_out_chats)
    if columns.text == columns.label:
        # bare text has one column for both and no roles to check
        check = check_messages if columns.text == "messages" else no_check
        return Examined(*checked_splits(rows, data, columns, check, lists=True), None)
    both = Columns(columns.text, columns.label, columns.label)
    examined, _ = checked_splits(rows, data, both, no_check, lists=True)
    return Examined(examined, columns, None)


def no_check(rows: Dataset, columns: Columns, where: str) -> None:
    """Texts have no parts to look at."""


def fault_of(messages: list[Any]) -> str | None:
    """What a chat has that nothing could be learnt from; None where it is sound."""
    if not all(isinstance(message, dict) and message.get("role") for message in messages):
        return "has messages without a role; wanted role and content in each"
    said = [message["role"] for message in messages]
    if "assistant" not in said:
        return "has no message of the role assistant, so that nothing could be learnt"
    if not {*said} - {"assistant", "system", "developer"}:
        return "begins with an answer, and nothing is asked in it; wanted a message of the role user"
    for message in messages:
        if message["role"] == "user" and not message.get("content"):
            return "has a user's message without content"
        answered = message.get("tool_calls") or str(message.get("content") or "").strip()
        if message["role"] == "assistant" and not answered:
            return "has an answer without content"
    return None


def check_messages(rows: Dataset, columns: Columns, where: str) -> None:
    """Every chat has roles and an answer of the assistant's; turns behind the last one are named."""
    check_each(rows, where, [columns.text], fault_of, "Mend what stands there, or leave it out")
    if ends := [i for i, chat in enumerate(rows[columns.text]) if chat[-1]["role"] == "user"]:
        said = f"{len(ends)} {where} chats end with a turn that nothing answers: it is left out"
        logger.warning("%s (%s)", said, places_of(rows, ends))


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
    template_options: Mapping[str, Any] | None = None,
) -> Dataset:
    """Messages, or a prompt and a completion, a row → input_ids, labels (the next token where it is learnt),
    prompt, row, length.

    Args:
        chat: whether prompt and completion go into the chat template; None: where the tokenizer has one.
        assistant_only_loss: of chats learn the assistant's turns, with the token that ends them; else the
            whole text.
        completion_only_loss: the same for completions.
        template_options: what the chat template is told besides (`enable_thinking`).

    A chat becomes several features where its template writes turns otherwise once others follow; `final` is
    true of the one with its last answer. Rows that are too long lose their end; those of which nothing to
    learn is left are left out, both counted in the log.

    Raises:
        InputError: no chat template, a chat that it refuses or leaves a part of out, no row left.
    """
    if max_length < 2:
        raise InputError(f"Got --max_length {max_length}; wanted 2 or more: a token and one to predict")
    bare = columns.text == columns.label and not isinstance(rows.features[columns.text], List)
    chatting = not bare and (
        columns.text == columns.label or (processor.chat_template is not None if chat is None else chat)
    )
    if chatting and processor.chat_template is None:
        raise InputError("The tokenizer has no chat template; set --chat_template_path, or --chat false")
    # TRL's two names for the same choice
    answers_only = assistant_only_loss if columns.text == columns.label else completion_only_loss
    chats, front = Chats(processor, template_options or {}), frame(processor)[0]

    def lines(row: dict[str, Any]) -> list[Line]:
        if not chatting:
            return [completion(row, columns, processor, front)]
        messages, tools = _messages(row, columns), row.get("tools")
        return chats.lines(messages, tools) if answers_only else [chats.line(messages, tools)]

    def encode(batch: dict[str, list]) -> dict[str, list]:
        features: dict[str, list] = {name: [] for name in FEATURES}
        for place in range(len(batch[columns.text])):
            try:
                found = lines({name: values[place] for name, values in batch.items()})
            except ChatError as error:
                raise RowError(place, str(error)) from error
            kept = [one for line in found if (one := _feature(line, max_length, answers_only)) is not None]
            for number, one in enumerate(kept):
                one |= {"source": place, "final": number == len(kept) - 1}
                for name in FEATURES:
                    features[name].append(one[name])
        return features

    options = {
        "max_length": max_length,
        "chat": chatting,
        "answers_only": answers_only,
        "template": processor.chat_template,
        "template_options": template_options,
    }
    # the key of the cache is made of text and label columns; tools change the prompts too
    if "tools" in rows.column_names:
        options["tools"] = fingerprint(rows, Columns("tools", None, ""))
    return _report(mapped(rows, columns, encode, processor, options), rows, max_length)


FEATURES = ("input_ids", "labels", "prompt", "length", "source", "final", "cut", "merged", "told", "marked")


def _feature(line: Line, max_length: int, answers_only: bool) -> dict[str, Any] | None:
    """A line as a feature: at each place the token that comes next, where it is learnt; None where nothing is
    left.
    """
    # shifted by one: each place predicts the token behind it
    wanted = line.learnt[1:] if answers_only else [True] * (len(line.ids) - 1)
    following = [token if learn else IGNORED for token, learn in zip(line.ids[1:], wanted, strict=True)]
    # a line of max_length tokens has one prediction less
    kept = following[: max_length - 1]
    # a row without a label would count as a row and weigh nothing
    if all(label == IGNORED for label in kept):
        return None
    return {
        "input_ids": line.ids[: len(kept)],
        "labels": kept,
        "prompt": max(min(line.prompt, len(kept)), 1),
        "length": len(kept),
        "cut": len(following) - len(kept),
        "merged": line.apart,
        "told": line.told,
        "marked": line.marked,
    }


def completion(
    row: dict[str, Any], columns: Columns, processor: PreTrainedTokenizerBase, front: Sequence[int]
) -> Line:
    """Prompt and completion as they are, with the end-of-text token behind; learnt from the completion on.

    Args:
        front: tokens that the tokenizer begins a text with.
    """
    # a text alone is learnt from its first token on
    prompt = row[columns.text] if columns.text != columns.label else ""
    text = prompt + row[columns.label] + (processor.eos_token or "")
    encoded = processor(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    said = in_spans(encoded["offset_mapping"], [(len(prompt), len(text))])
    # a token across the border belongs half to the prompt, and is learnt whole
    merged = any(start < len(prompt) < end for start, end in encoded["offset_mapping"])
    ids, learnt = [*front, *encoded["input_ids"]], [False] * len(front) + said
    return Line(ids, learnt, learnt.index(True) if True in learnt else len(ids), "", merged)


def _messages(row: dict[str, Any], columns: Columns) -> list[Message]:
    if columns.text == columns.label:
        return list(row[columns.text])
    prompt, answer = row[columns.text], row[columns.label]
    first = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return [*first, *([{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer)]


def _report(features: Dataset, rows: Dataset, max_length: int) -> Dataset:
    """Says in the log how chats became lines, and what was cut, left out, or met inside a token."""
    if len(features) == 0:
        raise InputError(
            f"Within {max_length} tokens no row has anything to learn; set --max_length higher, or mend "
            "answers "
            "of weight 0 or train false"
        )
    there = set(features["row"][:])
    # a row may have several features or none
    gone = sorted(set(range(len(rows))) - there)
    if gone:
        logger.warning(
            "%d of %d rows have nothing to learn within %d tokens, or nothing but answers of weight 0, and "
            "are "
            "left out (%s; --max_length)",
            len(gone), len(rows), max_length, places_of(rows, gone),
        )  # fmt: skip
    if len(features) > len(there):
        logger.warning(
            "The chat template writes turns otherwise once later ones follow: %d chats became %d rows, in "
            "which each answer "
            "stands as the model is asked for it",
            len(there), len(features),
        )  # fmt: skip
    marked = sum(features["marked"][:])
    if marked:
        logger.warning(
            "Of %d of %d rows what is learnt stands between the chat template's {%% generation %%} marks",
            marked, len(features),
        )  # fmt: skip
    for told, many in sorted(Counter(features["told"][:]).items()):
        if told:
            logger.warning("%d of %d rows are asked for with %s", many, len(features), told)
    cut = {row for row, count in zip(features["row"][:], features["cut"][:], strict=True) if count}
    if cut:
        logger.warning(
            "%d of %d rows are longer than %d tokens and lost their end (%s; --max_length)",
            len(cut), len(rows), max_length, places_of(rows, sorted(cut)),
        )  # fmt: skip
    merged = sum(features["merged"][:])
    if merged:
        logger.warning(
            "In %d of %d rows prompt and answer meet inside a token; begin answers with a space or a line",
            merged, len(features),
        )  # fmt: skip
    return features.remove_columns(["cut", "merged", "told", "marked"])


def figures(answers: Sequence[Answer], labels: Sequence[str] | None) -> dict[str, Any]:
    """Figures of texts; where references end in `#### number`, also the share of answers that end in that
    number.
    """
    found = written_figures(answers, labels)
    if all(texts.MARK in a["gold"] for a in answers):
        right = [texts.ends_in_same_number(a["prediction"], a["gold"]) for a in answers]
        found["answer_accuracy"] = sum(right) / len(right)
    return found


def number(answer: Answer) -> float:
    """1 where the answer ends in the wanted number."""
    return float(texts.ends_in_same_number(answer["prediction"], answer["gold"]))


INTERVALS = {"answer_accuracy": (each(number), mean_figure)}


def as_asked(
    chat: bool | None,
    assistant_only_loss: bool,
    completion_only_loss: bool,
    write_answers: bool,
    template_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Entries of the row for scripts/sft.py's options."""
    reading = partial(
        encode,
        chat=chat,
        assistant_only_loss=assistant_only_loss,
        completion_only_loss=completion_only_loss,
        template_options=template_options,
    )
    return {"encode": reading, "answers": write_answers}


def recall(arguments: Mapping[str, Any]) -> tuple[TaskArguments, dict[str, Any]]:
    """What arguments.yaml says of a run of scripts/sft.py, or of scripts/train.py, which has options of its
    own.
    """
    options = remembered(arguments)
    # written by scripts/train.py, whose options say all
    if "max_new_tokens" not in arguments:
        return options, {}
    changes = as_asked(
        chat=arguments.get("chat"),
        assistant_only_loss=arguments.get("assistant_only_loss", True),
        completion_only_loss=arguments.get("completion_only_loss", True),
        write_answers=bool(arguments.get("write_answers")),
        template_options=arguments.get("chat_template_kwargs"),
    )
    # what its training stops and saves by has no meaning here, and no use is refused
    plain = TaskArguments(
        task=options.task, max_length=options.max_length, max_target_length=arguments["max_new_tokens"]
    )
    return plain, changes


def packed(row: Task) -> Task:
    """A row for texts of a decoder, with its rows packed into one line and logits where there is a label
    alone.
    """
    return replace(
        row,
        collate=collate.packed_lines,
        forward=frozen_head.packed_costs,
        loss=loss.placed_cross_entropy,
        keep=loss.placed_hits,
    )
