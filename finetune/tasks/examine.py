"""What rows must hold where the target is no single class, said before any training. Knows raw columns; knows no tokenizer."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

from datasets import ClassLabel, Dataset, List

from finetune.data.checks import few_shots, overlap, without_empty
from finetune.data.columns import PAIRS, Columns, first_there
from finetune.data.sources import DataArguments, Rows, sample
from finetune.errors import InputError
from finetune.tasks.instructions import COMPLETIONS, PROMPTS
from finetune.tasks.labels import named

logger = logging.getLogger(__name__)

Examined = tuple[Rows, Columns, list[str] | None]
Check = Callable[[Dataset, Columns, str], None]

SCORES = ("score", "rating", "relatedness_score", "similarity", "target", "label")
SETS = ("labels", "label", "categories", "tags", "topics")
OTHER_SCHEMES = (
    "E-",
    "S-",
    "L-",
    "U-",
    "M-",
)  # how BIOES and BILOU mark the end of an entity, and one of a single word
WORDS, TAGS = ("tokens", "words"), ("ner_tags", "pos_tags", "tags", "labels", "chunk_tags")
SOURCES = ("source", "dialogue", "document", "article", "text", "question", "input")
TARGETS = ("target", "summary", "highlights", "answer", "output")
STEMS, OFFERS, ANSWERS = (
    ("text", "question", "prompt", "sentence"),
    ("choices", "options", "endings"),
    ("answer", "label", "gold"),
)


def examine_numbers(rows: Rows, data: DataArguments) -> Examined:
    """Rows for a regression on one text, or on two where two are named or stand under usual names.

    Raises:
        InputError: a target that is no finite number, or the same in all training rows.
    """
    assert rows.train is not None
    there = rows.train.column_names
    usual = next((pair for pair in PAIRS if set(pair) <= set(there)), None)
    if data.text_pair_column is not None or (data.text_column is None and usual is not None):
        first, second = usual or ("text", "text_pair")
        columns = _columns(rows.train, data, text=(first,), pair=(second,), label=SCORES)
    else:
        columns = _columns(rows.train, data, label=SCORES)
    return *_examined(rows, data, columns, check_numbers), None


def check_numbers(rows: Dataset, columns: Columns, where: str) -> None:
    """Every target is a finite number."""
    values = rows[columns.label][:]
    strange = [i for i, v in enumerate(values) if not isinstance(v, (int, float)) or not math.isfinite(v)]
    if isinstance(rows.features[columns.label], ClassLabel) or strange:
        index = strange[0] if strange else 0
        raise InputError(
            f"The {where} row {index} has {values[index]!r} in '{columns.label}'; wanted a number. Set --label_column"
        )
    if where == "training" and len(set(values)) < 2:
        raise InputError(
            f"All training rows have {values[0]!r} in '{columns.label}'; nothing could be learnt. Set --label_column"
        )


def examine_label_sets(rows: Rows, data: DataArguments) -> Examined:
    """Rows with a list of labels each, or a list of records with one (aspects.aspect); their names are those of training rows.

    Raises:
        InputError: a label column without lists, or evaluation labels that no training row has.
    """
    assert rows.train is not None and rows.eval is not None
    train = with_inner(rows.train, data.label_column)
    rows = Rows(
        train, train if rows.eval is rows.train else with_inner(rows.eval, data.label_column), rows.name
    )
    assert rows.train is not None and rows.eval is not None
    columns = _columns(rows.train, data, label=SETS)
    for part in (rows.train, rows.eval):
        _want_lists(part, columns.label)
    present = [
        names for names in named(rows.train.features[columns.label], rows.train[columns.label][:]) if names
    ]
    labels = sorted({name for names in present for name in names})
    if not labels:
        raise InputError(f"No training row has a label in '{columns.label}'; set --label_column")

    def check(part: Dataset, columns: Columns, where: str) -> None:
        for index, names in enumerate(named(part.features[columns.label], part[columns.label][:])):
            if not set(names) <= set(labels):
                strange = sorted(set(names) - set(labels))
                raise InputError(
                    f"The {where} row {index} has labels that no training row has: {', '.join(strange)}. Mend the rows"
                )

    return *_examined(rows, data, columns, check), labels


def with_inner(rows: Dataset, column: str | None) -> Dataset:
    """The rows with a column `records.entry` where they have a column of lists of records: each row's entries of that name."""
    outer, _, inner = (column or "").partition(".")
    records = rows.features[outer].feature if isinstance(rows.features.get(outer), List) else None
    if not isinstance(records, dict) or inner not in records:
        return rows
    values = [[record[inner] for record in row or []] for row in rows[outer]]
    return rows.add_column(f"{outer}.{inner}", values, feature=List(records[inner]))


def examine_tags(rows: Rows, data: DataArguments) -> Examined:
    """Rows of words with a tag each; tags that look like entities must keep IOB2.

    Raises:
        InputError: unequal numbers of words and tags, an I- tag that continues nothing, evaluation tags never seen in training.
    """
    assert rows.train is not None and rows.eval is not None
    columns = _columns(rows.train, data, text=WORDS, label=TAGS)
    for part in (rows.train, rows.eval):
        _want_lists(part, columns.text)
        _want_lists(part, columns.label)
    feature = rows.train.features[columns.label]
    seen = {name for names in named(feature, rows.train[columns.label][:]) for name in names}
    listed = isinstance(feature.feature, ClassLabel)
    labels = list(feature.feature.names) if listed else sorted(seen, key=lambda name: (name != "O", name))
    check_scheme(labels)

    def check(part: Dataset, columns: Columns, where: str) -> None:
        tags = named(part.features[columns.label], part[columns.label][:])
        check_tags(part[columns.text][:], tags, labels, where)

    examined = _examined(rows, data, columns, check, lists=True)
    if len(seen) < 2 and rows.train is not rows.eval:
        raise InputError(
            f"The training rows have one tag only ({', '.join(seen)}) in '{columns.label}'; set --label_column"
        )
    return *examined, labels


def check_scheme(labels: list[str]) -> None:
    """Tags of entities are written as IOB2 writes them, all of them; what the log says of others is what F1 then means.

    Raises:
        InputError: another scheme, or tags of entities beside others.
    """
    others = [name for name in labels if name[:2] in OTHER_SCHEMES]
    if others and all(name == "O" or name[1:2] == "-" for name in labels):
        raise InputError(
            f"The tag '{others[0]}' is of another scheme than IOB2; wanted O, B-... and I-... alone. Convert the tags"
        )
    inside = [name for name in labels if name != "O"]
    strange = [name for name in inside if name[:2] not in ("B-", "I-") or len(name) < 3]
    if strange and (set(inside) <= {"B", "I"} or any(name[:2].upper() in ("B-", "I-") for name in inside)):
        raise InputError(
            f"The tag '{strange[0]}' stands beside tags of entities; wanted O, B-TYPE and I-TYPE alone. Convert the tags"
        )
    if strange:
        logger.warning(
            "Tags such as '%s' mark no entities: f1 is the share of words with the right tag", strange[0]
        )


def check_tags(
    words: Sequence[Sequence[str]], tags: Sequence[Sequence[str]], labels: list[str], where: str
) -> None:
    """One known tag a word, and IOB2 kept where the tags are of entities."""
    entities = are_entities(labels)
    for index, (row, marks) in enumerate(zip(words, tags, strict=True)):
        if len(row) != len(marks):
            raise InputError(
                f"The {where} row {index} has {len(row)} words and {len(marks)} tags; wanted as many of both"
            )
        if not all(isinstance(word, str) for word in row):
            raise InputError(
                f"The {where} row {index} holds a word that is no text: {row!r:.200}. Mend the row or leave it out"
            )
        for place, (before, mark) in enumerate(zip(["O", *marks], marks, strict=False)):
            if mark not in labels:
                raise InputError(
                    f"The {where} row {index} has the tag '{mark}' that no training row has. Mend the rows"
                )
            if entities and mark.startswith("I-") and before[2:] != mark[2:]:
                raise InputError(
                    f"The tags of {where} row {index} break IOB2: '{mark}' at word {place} ({row[place]!r}) follows '{before}'; "
                    f"wanted 'B-{mark[2:]}' where an entity begins. Convert the tags, or set --label_column"
                )


def are_entities(labels: Sequence[str]) -> bool:
    """Whether all tags are O, B-... or I-..., as those of entities are; parts of speech are not."""
    inside = [name for name in labels if name != "O"]
    return bool(inside) and all(name.startswith(("B-", "I-")) for name in inside)


def examine_spans(rows: Rows, data: DataArguments) -> Examined:
    """Questions, contexts and answers {text: [...], answer_start: [...]} that stand in them (SQuAD's format).

    Raises:
        InputError: no such answers, answers that don't stand where they say, no answer in any training row.
    """
    assert rows.train is not None
    columns = _columns(rows.train, data, text=("question",), pair=("context",), label=("answers",))
    examined = _examined(rows, data, columns, check_answers)
    count = sum(not answers["text"] for answers in rows.train[columns.label][:])
    if count == len(rows.train):
        raise InputError(f"No training row has an answer in '{columns.label}'; set --label_column")
    if count:
        logger.warning(
            "%d of %d training questions have no answer (--no_answer_threshold says when to give none)",
            count,
            len(rows.train),
        )
    return *examined, None


def check_answers(rows: Dataset, columns: Columns, where: str) -> None:
    """Every answer stands in its context where it says."""
    feature = rows.features[columns.label]
    if not isinstance(feature, dict) or not {"text", "answer_start"} <= set(feature):
        wanted = "a mapping of text and answer_start, both lists"
        raise InputError(f"The column '{columns.label}' holds {feature}; wanted {wanted}. Set --label_column")
    for index, (context, answers) in enumerate(zip(rows[columns.pair], rows[columns.label], strict=True)):
        starts = (answers or {}).get("answer_start") or ()
        if answers is None or len(answers["text"] or ()) != len(starts) or None in starts:
            raise InputError(
                f"The {where} row {index} has the answers {answers!r:.200}; wanted as many texts as starts. Mend the row or leave it out"
            )
        for text, start in zip(answers["text"] or (), answers["answer_start"] or (), strict=True):
            found = context[start : start + len(text)] if start >= 0 else ""
            if found != text or not text.strip():
                raise InputError(
                    f"The {where} row {index} says that {text!r} stands at character {start} of its context; there is {found!r}. "
                    "Mend the row or leave it out"
                )


def examine_texts(rows: Rows, data: DataArguments) -> Examined:
    """Source and target texts; columns inside columns are named with a dot (translation.en).

    Raises:
        InputError: missing columns, empty sources or targets.
    """
    assert rows.train is not None and rows.eval is not None
    train = rows.train.flatten()
    flat = Rows(train, train if rows.eval is rows.train else rows.eval.flatten(), rows.name)
    assert flat.train is not None
    columns = _columns(flat.train, data, text=SOURCES, label=TARGETS)
    both = Columns(columns.text, columns.label, columns.label)
    examined, _ = _examined(flat, data, both, lambda part, columns, where: None)
    return examined, columns, None


def examine_instructions(rows: Rows, data: DataArguments) -> Examined:
    """Chats (`messages`), or prompts and completions; columns of chats are named alike as text and label.

    Raises:
        InputError: missing columns, chats without an answer, empty prompts or completions.
    """
    assert rows.train is not None
    there = rows.train.column_names
    named_ones = data.text_column is not None or data.label_column is not None
    if "messages" in there and not named_ones:
        return *_examined(rows, data, Columns("messages", None, "messages"), check_messages, lists=True), None
    columns = _columns(rows.train, data, text=PROMPTS, label=COMPLETIONS)
    both = Columns(columns.text, columns.label, columns.label)
    examined, _ = _examined(rows, data, both, lambda part, columns, where: None, lists=True)
    return examined, columns, None


def check_messages(rows: Dataset, columns: Columns, where: str) -> None:
    """Every chat has roles and an answer of the assistant's."""
    for index, messages in enumerate(rows[columns.text]):
        if not all(isinstance(message, dict) and message.get("role") for message in messages):
            raise InputError(
                f"The {where} row {index} has messages without a role; wanted role and content in each"
            )
        if not any(message["role"] == "assistant" for message in messages):
            raise InputError(
                f"The {where} row {index} has no message of the role assistant, so that nothing could be learnt"
            )
        if messages[0]["role"] == "assistant":
            raise InputError(
                f"The {where} row {index} begins with an answer; wanted a message in front of it. Mend the row"
            )
        for message in messages:
            if message["role"] == "user" and not message.get("content"):
                raise InputError(
                    f"The {where} row {index} has a user's message without content. Mend the row or leave it out"
                )
            if message["role"] == "assistant" and not (
                message.get("tool_calls") or str(message.get("content") or "").strip()
            ):
                raise InputError(
                    f"The {where} row {index} has an answer without content. Mend the row or leave it out"
                )


def examine_choices(rows: Rows, data: DataArguments) -> Examined:
    """A text, two or more choices, and the place of the right one.

    Raises:
        InputError: a column that is missing, fewer than two choices, an empty one, an answer that is none of them.
    """
    assert rows.train is not None
    columns = _columns(rows.train, data, text=STEMS, pair=OFFERS, label=ANSWERS)
    _want_lists(rows.train, str(columns.pair))
    return *_examined(rows, data, columns, check_choices, lists=True), None


def check_choices(rows: Dataset, columns: Columns, where: str) -> None:
    """Two or more texts to choose from, and the answer is the place of one of them."""
    for index, (offered, answer) in enumerate(zip(rows[columns.pair], rows[columns.label], strict=True)):
        if len(offered) < 2 or not all(isinstance(text, str) and text.strip() for text in offered):
            raise InputError(
                f"The {where} row {index} offers {offered!r} in '{columns.pair}'; wanted two texts or more"
            )
        if not isinstance(answer, int) or not 0 <= answer < len(offered):
            raise InputError(
                f"The {where} row {index} has the answer {answer!r} in '{columns.label}'; wanted 0 to {len(offered) - 1}. "
                "Set --label_column"
            )


def _columns(
    rows: Dataset,
    data: DataArguments,
    *,
    text: tuple[str, ...] = ("text", "sentence", "review", "content", "document"),
    pair: tuple[str, ...] | None = None,
    label: tuple[str, ...],
) -> Columns:
    """The columns that were named, else those with one of the given names."""
    there = rows.column_names
    found: list[str | None] = []
    for named_column, usual, flag in (
        (data.text_column, text, "--text_column"),
        (data.text_pair_column, pair, "--text_pair_column"),
        (data.label_column, label, "--label_column"),
    ):
        if named_column is not None and named_column not in there:
            raise InputError(
                f"No column '{named_column}' in {data.dataset_name}; it has {', '.join(there)}. Set {flag}"
            )
        found.append(
            None if usual is None else named_column or first_there(usual, there, data.dataset_name, flag)
        )
    return Columns(str(found[0]), found[1], str(found[2]))


def _examined(
    rows: Rows, data: DataArguments, columns: Columns, check: Check, lists: bool = False
) -> tuple[Rows, Columns]:
    """What all tasks share: columns in both splits, rows without text, the task's own check, samples, rows in both splits."""
    assert rows.train is not None and rows.eval is not None
    shots, train_seed = few_shots(data)
    if shots is not None:
        raise InputError("--shots_per_class wants a task with one class a row; set --max_train_rows")
    parts = []
    for part, where, limit, seed in (
        (rows.train, "training", data.max_train_rows, train_seed),
        (rows.eval, "evaluation", data.max_eval_rows, data.sample_seed),
    ):
        missing = [
            name
            for name in (columns.text, columns.pair, columns.label)
            if name and name not in part.column_names
        ]
        if missing:
            raise InputError(
                f"No column '{missing[0]}' in the {where} rows; they have {', '.join(part.column_names)}. Set --eval_split"
            )
        part = without_empty(part, columns, data.drop_empty_rows, where, lists)
        check(part, columns, where)
        parts.append(sample(part, limit, seed))
    if rows.train is not rows.eval:
        overlap(
            parts[0],
            parts[1],
            lambda row: " ".join(str(row[name]) for name in (columns.text, columns.pair) if name).lower(),
        )
    return Rows(parts[0], parts[1], rows.name), columns


def _want_lists(rows: Dataset, column: str) -> None:
    if not isinstance(rows.features[column], List):
        raise InputError(
            f"The column '{column}' holds {rows.features[column]}; wanted a list a row. Set --label_column or --text_column"
        )
