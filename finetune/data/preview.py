"""Rows as the model sees them: tokens as text, what is learnt marked. Knows features and tokenizers;
knows no model and no task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from itertools import islice
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from finetune.data.accounting import say
from finetune.data.sources import TextArguments
from finetune.loss import IGNORED

OPEN, CLOSE = "⟦", "⟧"  # around what is learnt
UNSHOWN = ("labels", "row", "length", "calendar")  # of inputs that are no texts
LONG = 4000  # characters of a row that are printed


def show_features(
    features: Mapping[str, Any],
    processor: PreTrainedTokenizerBase,
    labels: Sequence[str] | None,
    data: TextArguments,
) -> bool:
    """Print the first rows (--show_rows) as the model sees them; whether the run ends here (--check)."""
    split = "train" if "train" in features else "eval"
    # a check that shows nothing would be none
    rows, most = features[split], max(data.show_rows, 1 if data.check else 0)
    # of a stream the first are read for it, and once more when it is trained on
    endless = not isinstance(rows, Sized)
    shown = islice(iter(rows), most) if endless else (rows[n] for n in range(min(most, len(rows))))
    for place, row in enumerate(shown):
        text = rendered(row, processor, labels)
        length = f", {row['length']} tokens" if {"length", "input_ids"} <= set(row) else ""
        more = f" ... ({len(text) - LONG} more characters)" if len(text) > LONG else ""
        say(
            f"\n{split} row {place} as the model sees it{length}; learnt: "
            f"{OPEN}so{CLOSE}\n{text[:LONG]}{more}\n"
        )
    if data.check:
        counted = ", ".join(
            f"{len(part)} of {name}" if isinstance(part, Sized) else f"the first of {name}"
            for name, part in features.items()
        )
        say(f"Rows checked ({counted}); nothing was trained (--check).")
    return data.check


def show_texts(texts: Sequence[str], counted: str, data: TextArguments) -> bool:
    """Print rows that are text already, the learnt part marked (see `marked`); whether the run ends
    here (--check).
    """
    for place, text in enumerate(texts[: max(data.show_rows, 1 if data.check else 0)]):
        say(f"\nrow {place} as the model sees it; learnt: {marked('so')}\n{text[:LONG]}\n")
    if data.check:
        say(f"Rows checked ({counted}); nothing was trained (--check).")
    return data.check


def marked(text: str) -> str:
    """A learnt part of a text."""
    return f"{OPEN}{text}{CLOSE}"


def rendered(row: Mapping[str, Any], processor: PreTrainedTokenizerBase, labels: Sequence[str] | None) -> str:
    """A row's tokens as text, with its labels in their place."""
    ids, gold = row.get("input_ids"), row.get("labels")
    if ids is None:  # rows of several views, sentences or pairs
        parts = {
            name: value
            for name, value in row.items()
            if isinstance(value, list) and name in ("views", "first", "second", "other")
        }
        if not parts:
            return _no_text(row, labels)
        return "\n".join(f"{name}: {_decoded(value, processor)}" for name, value in parts.items())
    # choices: one line of tokens for each
    if ids and isinstance(ids[0], list):
        return "\n".join(
            f"{OPEN}{text}{CLOSE}" if place == gold else text
            for place, text in enumerate(processor.decode(one) for one in ids)
        )
    if isinstance(gold, list) and "prompt" in row:
        # labels stand at the token before: they say what comes next
        return _marked(
            [*ids, gold[-1]] if gold[-1] != IGNORED else ids,
            [False, *(label != IGNORED for label in gold)],
            processor,
        )
    # told by the columns that only one task makes
    if isinstance(gold, list) and "words" in row:
        return _tagged(ids, gold, processor, labels)
    if isinstance(gold, list) and "offsets" in row:
        # (0, 0) is no answer
        inside = [gold != [0, 0] and gold[0] <= place <= gold[1] for place in range(len(ids))]
        return _marked(ids, inside, processor)
    # 0.0 and 1.0 for each label of a set
    if isinstance(gold, list) and gold and isinstance(gold[0], float):
        said = (
            ", ".join(
                name for name, one in zip(labels or map(str, range(len(gold))), gold, strict=False) if one
            )
            or "no label"
        )
        return f"{processor.decode(ids)}\n{OPEN}{said}{CLOSE}"
    if isinstance(gold, list):
        wanted = processor.decode([one for one in gold if one != IGNORED])
        return f"{processor.decode(ids)}\n{OPEN}{wanted}{CLOSE}"
    if gold is None:
        return str(processor.decode(ids))
    said = labels[gold] if labels and isinstance(gold, int) else str(gold)
    return f"{processor.decode(ids)}\n{OPEN}{said}{CLOSE}"


def _no_text(row: Mapping[str, Any], labels: Sequence[str] | None) -> str:
    """What there is of an input that is no text, and the class or the target that is learnt."""
    gold = row.get("labels")
    said = labels[gold] if labels and isinstance(gold, int) else gold
    lines = [f"{name}: {_outline(row[name])}" for name in row if name not in UNSHOWN]
    return "\n".join([*lines, f"{OPEN}{_outline(said)}{CLOSE}"])


def _outline(value: Any) -> str:
    """A cell in a few words: the sizes of what is large."""
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        parts = [value["path"], value["bytes"] is not None and f"{len(value['bytes'])} bytes"]
        return ", ".join(str(part) for part in parts if part)
    if isinstance(value, np.ndarray):
        return f"{' x '.join(map(str, value.shape))} numbers"
    sizes, inner = [], value
    while isinstance(inner, list) and inner:
        sizes.append(str(len(inner)))
        inner = inner[0]
    return f"{' x '.join(sizes)} numbers" if sizes and isinstance(inner, (int, float)) else f"{value!s:.80}"


def _decoded(value: list[Any], processor: PreTrainedTokenizerBase) -> str:
    several = value if value and isinstance(value[0], list) else [value]
    return " | ".join(str(processor.decode(one)) for one in several)


def _marked(ids: Sequence[int], learnt: Sequence[bool], processor: PreTrainedTokenizerBase) -> str:
    """Tokens as text, runs of learnt ones between marks."""
    texts, start = [], 0
    for place in range(1, len(ids) + 1):
        if place == len(ids) or learnt[place] != learnt[start]:
            text = processor.decode(list(ids[start:place]))
            texts.append(f"{OPEN}{text}{CLOSE}" if learnt[start] else text)
            start = place
    return "".join(texts)


def _tagged(
    ids: Sequence[int], gold: Sequence[int], processor: PreTrainedTokenizerBase, labels: Sequence[str] | None
) -> str:
    pieces = processor.convert_ids_to_tokens(list(ids))
    return " ".join(
        piece if label == IGNORED else f"{piece}{OPEN}{labels[label] if labels else label}{CLOSE}"
        for piece, label in zip(pieces, gold, strict=True)
    )
