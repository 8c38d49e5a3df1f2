"""A tag for each word: from raw rows to figures. Knows columns, tokenizers and arrays; knows no model and no
trainer.
"""

from __future__ import annotations

import bisect
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset
from seqeval.scheme import IOB2, Entities
from transformers import PreTrainedTokenizerBase

from finetune.data.checks import checked_splits
from finetune.data.columns import Columns, label_lists
from finetune.data.encode import mapped
from finetune.data.laying import laid_out
from finetune.data.letters import check_letters, letters_of
from finetune.data.places import place_of
from finetune.data.sources import DataArguments, Rows
from finetune.data.tagged import lay_out_tags
from finetune.errors import InputError
from finetune.loss import IGNORED
from finetune.metrics import classification
from finetune.metrics.bootstrap import bootstrap, f1_figure
from finetune.tasks.options import TaskArguments
from finetune.tasks.task import Answer, Asked, Examined, softmax
from finetune.tasks.windows import frame, shared_tokens, split_windows

logger = logging.getLogger(__name__)


def examine(rows: Rows, data: DataArguments) -> Examined:
    """Rows of words with a tag each; tags that look like entities must keep IOB2.

    Raises:
        InputError: unequal numbers of words and tags, an I- tag that continues nothing, evaluation tags never
            seen in training.
    """
    rows, columns = laid_out(rows, data, lay_out_tags)
    assert rows.train is not None and rows.eval is not None
    feature = rows.train.features[columns.label]
    # before the sample, so that tags keep their ids in all samples
    seen = {
        name for names in label_lists(feature, rows.train[columns.label][:], rows.train) for name in names
    }
    listed = isinstance(feature.feature, ClassLabel)
    # O first, by custom; the others by name
    labels = list(feature.feature.names) if listed else sorted(seen, key=lambda name: (name != "O", name))
    # of the labels before the rows: a message on the scheme tells more than one on a tag
    check_scheme(labels)

    def check(part: Dataset, columns: Columns, where: str) -> None:
        tags = label_lists(part.features[columns.label], part[columns.label][:], part)
        check_tags(
            part[columns.text][:], tags, labels, [f"{where} {place_of(part, i)}" for i in range(len(tags))]
        )

    examined = checked_splits(rows, data, columns, check, lists=True)
    # rows that are only assessed may hold one tag
    if len(seen) < 2 and rows.train is not rows.eval:
        raise InputError(
            f"The training rows have one tag only ({', '.join(seen)}) in '{columns.label}'; set "
            "--label_column"
        )
    return Examined(*examined, labels)


def check_scheme(labels: list[str]) -> None:
    """Tags of entities are written as IOB2 writes them, all of them; what the log says of others is what F1
    then means.

    Raises:
        InputError: tags of entities beside others.
    """
    inside = [name for name in labels if name != "O"]
    strange = [name for name in inside if name[:2] not in ("B-", "I-") or len(name) < 3]
    # plain B and I are a scheme without types; b- and i- one in small letters
    if strange and (set(inside) <= {"B", "I"} or any(name[:2].upper() in ("B-", "I-") for name in inside)):
        raise InputError(
            f"The tag '{strange[0]}' stands beside tags of entities; wanted O, B-TYPE and I-TYPE alone. "
            "Convert the tags"
        )
    if strange:
        logger.warning(
            "Tags such as '%s' mark no entities: f1 is the share of words with the right tag", strange[0]
        )


def check_tags(
    words: Sequence[Sequence[str]], tags: Sequence[Sequence[str]], labels: list[str], places: Sequence[str]
) -> None:
    """One known tag a word, and IOB2 kept where the tags are of entities."""
    entities = are_entities(labels)
    for index, (row, marks) in enumerate(zip(words, tags, strict=True)):
        if len(row) != len(marks):
            raise InputError(
                f"The {places[index]} has {len(row)} words and {len(marks)} tags; wanted as many of both"
            )
        if not all(isinstance(word, str) for word in row):
            raise InputError(
                f"The {places[index]} holds a word that is no text: {row!r:.200}. Mend the row or leave it "
                "out"
            )
        # each tag with the one before it; a row begins behind an O
        for place, (before, mark) in enumerate(zip(["O", *marks], marks, strict=False)):
            if mark not in labels:
                raise InputError(
                    f"The {places[index]} has the tag '{mark}' that no training row has. Mend the rows"
                )
            # `O`[2:] is empty, so that an I- behind it is found by the same test
            if entities and mark.startswith("I-") and before[2:] != mark[2:]:
                raise InputError(
                    f"The tags of {places[index]} break IOB2: '{mark}' at word {place} ({row[place]!r}) "
                    f"follows '{before}'; "
                    f"wanted 'B-{mark[2:]}' where an entity begins. Convert the tags, or set --label_column"
                )


def are_entities(labels: Sequence[str]) -> bool:
    """Whether all tags are O, B-... or I-..., as those of entities are; parts of speech are not."""
    inside = [name for name in labels if name != "O"]
    return bool(inside) and all(name.startswith(("B-", "I-")) for name in inside)


def encode(
    rows: Dataset,
    columns: Columns,
    processor: PreTrainedTokenizerBase,
    max_length: int,
    labels: list[str] | None,
    *,
    stride: int | None = None,
) -> Dataset:
    """Words and a tag for each → windows of sub-words: input_ids, labels, words, row, length.

    A word's tag stands on its first sub-word, -100 on the rest. Rows beyond `max_length` are read in windows
    that share about `stride` sub-words (a quarter of `max_length` where none is given); each word is labelled
    in one window alone, the one with more of its surroundings. `words` says which word a labelled sub-word
    begins, -1 elsewhere.

    Raises:
        InputError: a slow tokenizer, a stride that leaves no room, or a row without a single sub-word.
    """
    assert labels is not None
    # windows are cut from bare tokens, and special tokens put around each
    front, back = frame(processor)
    room = max_length - len(front) - len(back)
    overlap = shared_tokens(stride, max_length, room)
    place = {name: index for index, name in enumerate(labels)}
    check_letters(rows, columns.text, processor)
    # between letters of a sequence a blank would be a token that means nothing
    known = letters_of(processor)
    gap = " " if known is None or " " in known else ""

    def encode(batch: dict[str, list]) -> dict[str, list]:
        features: dict[str, list] = {
            name: [] for name in ("input_ids", "labels", "words", "length", "source")
        }
        # as running text: tokens in a sentence are what the model was pretrained on
        texts = [gap.join(words) for words in batch[columns.text]]
        encoded = processor(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        tagged = label_lists(rows.features[columns.label], batch[columns.label])
        for index, (words, tags) in enumerate(zip(batch[columns.text], tagged, strict=True)):
            ids = encoded["input_ids"][index]
            # [words], None for those without a token
            firsts = first_pieces(words, encoded["offset_mapping"][index], gap)
            begins = {position: word for word, position in enumerate(firsts) if position is not None}
            for start, end, first, last in split_windows(sorted(begins), len(ids), room, overlap):
                owned = [
                    begins.get(position, -1) if first <= position < last else -1
                    for position in range(start, end)
                ]
                # special tokens are no word's
                owned = [-1] * len(front) + owned + [-1] * len(back)
                features["input_ids"].append(front + ids[start:end] + back)
                # -100 on later sub-words: a word counts once however many it has
                features["labels"].append([place[tags[word]] if word >= 0 else IGNORED for word in owned])
                features["words"].append(owned)
                features["length"].append(len(owned))
                features["source"].append(index)
        return features

    features = mapped(
        rows, columns, encode, processor, {"max_length": max_length, "stride": overlap, "labels": labels}
    )
    return _report_windows(features, len(rows), max_length)


def first_pieces(
    words: Sequence[str], offsets: Sequence[tuple[int, int]], gap: str = " "
) -> list[int | None]:
    """Position of each word's first sub-word in the tokens of `gap.join(words)`; None for a word that the
    tokenizer drops.
    """
    starts, place = [], 0
    for word in words:
        starts.append(place)
        place += len(word) + len(gap)
    found: list[int | None] = [None] * len(words)
    for position, (start, end) in enumerate(offsets):
        # a token without characters is no word's
        if end <= start:
            continue
        owner = (
            bisect.bisect_right(starts, end - 1) - 1
        )  # by its last sign: some tokens begin with the space before a word
        # a token that is the blank alone is none of a word's
        if found[owner] is None and end - 1 < starts[owner] + len(words[owner]):
            found[owner] = position
    return found


def _report_windows(features: Dataset, rows: int, max_length: int) -> Dataset:
    """Says in the log how many rows took several windows."""
    # windows of a row stand side by side
    where: list[Any] = features["row"][:]
    if len(where) > rows:
        many = len({row for row, before in zip(where[1:], where, strict=False) if row == before})
        logger.warning(
            "%d of %d rows are longer than %d tokens and are read in %d windows in all",
            many,
            rows,
            max_length,
            len(where),
        )
    seen = {row for row, words in zip(where, features["words"], strict=True) if max(words, default=-1) >= 0}
    bare = next((row for row in range(rows) if row not in seen), None)
    if bare is not None:
        raise InputError(
            f"Row {bare} has no token that the tokenizer knows; wanted one or more. Mend the row or leave it "
            "out"
        )
    return features


def bind(options: TaskArguments) -> dict[str, Callable]:
    """The row's functions that take options."""
    return {"encode": partial(encode, stride=options.stride)}


def read(kept: np.ndarray, asked: Asked) -> list[Answer]:
    """Logits [windows, time, tags] → a tag for each word; the score is the mean probability of the tags
    given.

    A word that the tokenizer drops gets O, or the first tag where there is no O.
    """
    assert asked.labels is not None
    column = asked.columns.label
    gold = label_lists(asked.rows.features[column], asked.rows[column][:])
    fallback = "O" if "O" in asked.labels else asked.labels[0]
    # every word gets a tag, also one that no token stands for
    given = [[fallback] * len(row) for row in gold]
    chances: list[list[float]] = [[] for _ in gold]
    for logits, row, words in zip(kept, asked.features["row"], asked.features["words"], strict=True):
        for place, word in enumerate(words):
            if word >= 0:
                # each word is labelled in one window alone, so that nothing is overwritten
                weights = softmax(logits[place])
                given[row][word] = asked.labels[int(weights.argmax())]
                chances[row].append(float(weights.max()))
    return [
        {"gold": wanted, "prediction": said, "score": float(np.mean(weights))}
        for wanted, said, weights in zip(gold, given, chances, strict=True)
    ]


def figures(answers: Sequence[Answer], labels: Sequence[str]) -> dict[str, Any]:
    """Entity precision, recall and F1, strict IOB2; of other tags micro-F1 over words, which is their
    accuracy.
    """
    gold, said = [a["gold"] for a in answers], [a["prediction"] for a in answers]
    if are_entities(labels):
        return classification.entity_figures(said, gold)
    # tags that mark no entities have no spans to compare
    right = [one == other for g, s in zip(gold, said, strict=True) for one, other in zip(g, s, strict=True)]
    return {"f1": sum(right) / max(len(right), 1)}


def shared_tags(answers: Sequence[Answer]) -> np.ndarray:
    """Entities said and right, said, and there, of each row, as `figures` counts them; of other tags, the
    words.
    """
    # over all answers: one row may hold nothing but O
    tags = {tag for answer in answers for side in ("prediction", "gold") for tag in answer[side]}
    found = []
    for answer in answers:
        if all(tag == "O" or tag.startswith(("B-", "I-")) for tag in tags):
            said, gold = (_entities(list(answer[side])) for side in ("prediction", "gold"))
        else:
            said, gold = (set(enumerate(answer[side])) for side in ("prediction", "gold"))
        found.append([len(said & gold), len(said), len(gold)])
    return np.array(found, dtype=float)


def _entities(tags: list[str]) -> set[tuple]:
    return {one.to_tuple() for one in Entities([tags], IOB2).entities[0]}


def baselines(found: Examined) -> list[dict[str, Any]]:
    """Each word's commonest tag in the training rows, whatever stands beside it; that of all words for one
    that they lack."""
    assert found.rows.train is not None and found.rows.eval is not None and found.labels is not None
    text, label = found.columns.text, found.columns.label
    parts = [
        (part[text][:], label_lists(part.features[label], part[label][:]))
        for part in (found.rows.train, found.rows.eval)
    ]
    (learnt, tags), (words, gold) = parts
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row, marks in zip(learnt, tags, strict=True):
        for word, mark in zip(row, marks, strict=True):
            counts[word][mark] += 1
    # of equally common tags the one that was seen first
    usual = {word: seen.most_common(1)[0][0] for word, seen in counts.items()}
    common = sum(counts.values(), Counter[str]()).most_common(1)[0][0]
    answers = [
        {"gold": wanted, "prediction": [usual.get(word, common) for word in row]}
        for row, wanted in zip(words, gold, strict=True)
    ]
    f1 = figures(answers, found.labels)["f1"]
    return [
        {
            "name": "each word's commonest tag",
            "f1": f1,
            "interval": bootstrap(shared_tags(answers), f1_figure),
        }
    ]


INTERVALS = {"f1": (shared_tags, f1_figure)}
