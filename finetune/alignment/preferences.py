"""Preference pairs: what is wrong with them, said before any training.

Knows rows of prompt, chosen and rejected (texts or conversations) and a tokenizer; knows no model and no
trainer.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from finetune.data.chats import template_ids
from finetune.data.compared import with_one_question
from finetune.data.laying import laid_out
from finetune.data.places import PLACE, SET, columns_of, places_of
from finetune.data.preferred import are_pairs, lay_out_pairs, lay_out_unpaired
from finetune.data.rendered import check_rendered
from finetune.data.sources import DataArguments, Rows, load_rows, sample
from finetune.errors import InputError

logger = logging.getLogger(__name__)

# What makes a pair useless, and what is only worth knowing.
UNUSABLE = {
    "equal": "as far as --max_length, chosen and rejected are the same",
    "empty": "a side holds no text",
    "unlike": "prompt, chosen and rejected are neither three texts nor three lists of messages",
    "duplicate": "the same pair stands before it",
    "conflicting": "another row prefers the opposite",
    "no room": "the prompt alone fills --max_length",
    "other question": "the two transcripts differ before the answer, so that they answer other questions",
}
SPEAKS = "\n\nAssistant:"  # before an answer in Anthropic's transcripts
NOTED = {
    "merged": "the prompt's last token merges with the answer's first, so that training sees another prompt "
    "than sampling",
    "cut": "an answer goes beyond --max_length: DPO cuts it and with it its EOS, a reward model leaves the "
    "pair out",
    "endless": "an answer ends without the tokenizer's EOS, so that the model doesn't learn to stop",
    "repeated": "both sides begin with the whole prompt, which the model then reads twice",
}


SCORES = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"))  # what margins are made of


@dataclass
class PairArguments:
    """How preference pairs are read."""

    drop_faulty_pairs: bool = field(
        default=False, metadata={"help": "Leave pairs that can't teach anything out instead of stopping."}
    )
    margin: bool = field(
        default=False,
        metadata={
            "help": "Use the column 'margin' in the reward model's loss (Llama 2); without one, chosen_score "
            "- rejected_score."
        },
    )
    min_margin: float = field(
        default=0.0, metadata={"help": "Leave out pairs whose column 'margin' is smaller."}
    )


def read_pairs(
    data: DataArguments, settings: PairArguments, processor: Any, max_length: int, rows: Rows | None = None
) -> tuple[Dataset, Dataset]:
    """Training and held-out pairs, checked; columns prompt, chosen, rejected, and margin where
    `settings.margin`.

    Args:
        rows: those of `data`, where they were read already.

    Raises:
        InputError: columns that are missing, pairs that can't teach anything, none left.
    """
    rows, _ = laid_out(rows or load_rows(data), data, lay_out_pairs)
    assert rows.train is not None and rows.eval is not None
    parts = []
    for part, limit, where in (
        (rows.train, data.max_train_rows, "training"),
        (rows.eval, data.max_eval_rows, "held-out"),
    ):
        # before the sample, which would be drawn from pairs that go, and be smaller than was asked for
        part = _with_margin(part, settings.min_margin) if settings.min_margin else part
        part = sample(part, limit, data.sample_seed)
        parts.append(ready_pairs(part, settings, processor, max_length, where))
    return parts[0], parts[1]


def ready_pairs(
    rows: Dataset, settings: PairArguments, processor: Any, max_length: int, where: str
) -> Dataset:
    """Pairs that were laid out, with their prompt apart, the margins that are wanted, and nothing wrong with
    them.

    Raises:
        InputError: pairs that can't teach anything, none left.
    """
    rows = with_prompt(rows, f"the {where} pairs")
    if settings.min_margin or settings.margin:
        rows = _with_margin(rows, settings.min_margin)
    wanted = ["prompt", "chosen", "rejected", *(["margin"] if settings.margin else [])]
    further = ("tools", "chosen_ended", "rejected_ended", SET, PLACE)
    wanted += [name for name in further if name in rows.column_names]
    rows = sound_pairs(rows.select_columns(wanted), processor, max_length, settings.drop_faulty_pairs, where)
    return rows.select_columns([name for name in wanted if name != PLACE])


def read_unpaired(
    data: DataArguments, settings: PairArguments, processor: Any, max_length: int, rows: Rows | None = None
) -> tuple[Dataset, Dataset]:
    """Training and held-out answers with a verdict each: prompt, completion, label; pairs where the data set
    has them.

    Answers without text or room, and those that stand there before, are named; one verdict alone stops the
    run.

    Raises:
        InputError: columns that are missing, answers that can't teach anything, training answers that are all
            good or all bad.
    """
    rows = rows or load_rows(data)
    assert rows.train is not None and rows.eval is not None
    if are_pairs(rows.train, data):
        return read_pairs(data, settings, processor, max_length, rows)
    rows, _ = laid_out(rows, data, lay_out_unpaired)
    assert rows.train is not None and rows.eval is not None
    train, held_out = (
        sample(part, limit, data.sample_seed)
        for part, limit in ((rows.train, data.max_train_rows), (rows.eval, data.max_eval_rows))
    )
    parts = [
        sound_answers(part, processor, max_length, settings.drop_faulty_pairs, where)
        for part, where in ((train, "training"), (held_out, "held-out"))
    ]
    good = sum(parts[0]["label"])
    # KTO weighs one kind against the other; with one alone its loss has nothing to compare.
    if good in (0, len(parts[0])):
        raise InputError(
            f"All {len(parts[0])} training answers are {'desirable' if good else 'undesirable'}; KTO "
            "compares both kinds. "
            "Set --dataset_name or --label_column, or use scripts/sft.py on good answers alone"
        )
    logger.warning("%d of %d training answers are desirable", good, len(parts[0]))
    return parts[0], parts[1]


def sound_answers(rows: Dataset, processor: Any, max_length: int, drop: bool, where: str) -> Dataset:
    """Answers with a verdict that can teach something; the others are named.

    Raises:
        InputError: answers that can't, where `drop` doesn't allow to leave them out, or none left.
    """
    check_rendered(rows, ("completion",), processor, where)
    faults: dict[str, list[int]] = {"empty": [], "no room": [], "duplicate": []}
    seen: set[str] = set()
    for index, row in enumerate(rows):
        key = json.dumps([row.get(SET), row["prompt"], row["completion"], row["label"]])
        fault = None
        if not _text(row["completion"]).strip():
            fault = "empty"
        # A prompt that fills the length leaves no token of the answer to learn.
        elif len(pair_ids(processor, row["prompt"], None, row.get("tools"))) >= max_length:
            fault = "no room"
        elif key in seen:
            fault = "duplicate"
        seen.add(key)
        if fault:
            faults[fault].append(index)
    said = {
        "empty": "the answer holds no text",
        "no room": UNUSABLE["no room"],
        "duplicate": "the same row stands before it",
    }
    bad = {index for found in faults.values() for index in found}
    told = "; ".join(f"{len(v)}: {said[k]} ({places_of(rows, v)})" for k, v in faults.items() if v)
    if bad and not drop:
        raise InputError(
            f"Of {len(rows)} {where} answers, {told}. Mend them, or set --drop_faulty_pairs to leave them out"
        )
    if len(bad) == len(rows):
        raise InputError(f"No {where} answer is left of {len(rows)}; mend them or set --dataset_name")
    if bad:
        logger.warning("%d of %d %s answers are left out: %s", len(bad), len(rows), where, told)
    kept = rows.select([index for index in range(len(rows)) if index not in bad]) if bad else rows
    return kept.select_columns(
        [name for name in ("prompt", "completion", "label", "tools", SET) if name in kept.column_names]
    )


def with_prompt(rows: Dataset, name: str) -> Dataset:
    """Pairs with their prompt apart; where there is none, it is what chosen and rejected begin with alike."""
    missing = [column for column in ("chosen", "rejected") if column not in columns_of(rows)]
    if missing:
        raise InputError(
            f"No column '{missing[0]}' in {name}; it has {', '.join(columns_of(rows))}. Set --dataset_name "
            "to preference pairs"
        )
    told_twice = (
        "prompt" in columns_of(rows)
        and isinstance(rows[0]["prompt"], str)
        and isinstance(rows[0]["chosen"], list)  # UltraFeedback's prompt stands in both conversations too
    )
    if "prompt" not in columns_of(rows) or told_twice:
        bare = rows.remove_columns(["prompt"] if told_twice else [])
        return with_one_question(bare.map(_apart, desc="Finding prompts"))
    # In all rows or in none: an answer that happens to begin with its prompt may be meant so.
    if not all(map(_holds_prompt, rows)):
        return rows
    logger.warning("The answers of all %d pairs hold their prompt, which is taken off", len(rows))
    return rows.map(lambda row: {side: row[side][len(row["prompt"]) :] for side in ("chosen", "rejected")})


def _holds_prompt(row: dict[str, Any]) -> bool:
    prompt, sides = row["prompt"], (row["chosen"], row["rejected"])
    return bool(prompt) and all(side is not None and side[: len(prompt)] == prompt for side in sides)


def _apart(row: dict[str, Any]) -> dict[str, Any]:
    """What two texts or conversations begin with alike, in whole words (up to a blank or a line
    break) or messages, and what each goes on with.
    """
    chosen, rejected = row["chosen"] or "", row["rejected"] or ""
    most = max(0, min(len(chosen), len(rejected)) - 1)  # something is left to answer
    # a difference within a word leaves the whole word to the answers
    shared = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    if isinstance(chosen, str):
        # Up to a blank, which itself stays with the answer: tokenizers join it to the word after.
        shared = len(re.sub(r"\S*$", "", chosen[:shared]).rstrip(" "))
        # of a transcript an answer's first words may be shared too, and are the answer's
        turn = chosen[:shared].rfind(SPEAKS)
        shared = turn + len(SPEAKS) if turn >= 0 else shared
    return {
        "prompt": (chosen or rejected)[:shared],
        # Empty stays empty, to be named as a fault further on.
        "chosen": row["chosen"] and chosen[shared:],
        "rejected": row["rejected"] and rejected[shared:],
    }


def _with_margin(rows: Dataset, least: float) -> Dataset:
    scores = next((pair for pair in SCORES if set(pair) <= set(columns_of(rows))), None)
    if "margin" not in columns_of(rows) and scores is not None:
        # Scores that the answers were chosen by, as in UltraFeedback and in what this project makes.
        rows = rows.map(lambda row: {"margin": row[scores[0]] - row[scores[1]]}, desc="Margins from scores")
    if "margin" not in columns_of(rows):
        there = ", ".join(columns_of(rows))
        raise InputError(f"No column 'margin' among {there}; leave --margin and --min_margin out")
    # Before filtering: a NaN compares as smaller and would go without a word.
    bad = [
        i for i, m in enumerate(rows["margin"][:]) if not isinstance(m, (int, float)) or not math.isfinite(m)
    ]
    if bad:
        raise InputError(
            f"{len(bad)} pairs have a margin that is no number ({places_of(rows, bad)}). Mend the column "
            "'margin'"
        )
    kept = rows.filter(lambda row: row["margin"] >= least) if least else rows
    if not len(kept):
        raise InputError(f"None of {len(rows)} pairs has a margin of {least:g} or more; lower --min_margin")
    if len(kept) < len(rows):
        logger.warning(
            "%d of %d pairs have a margin below %g and are left out", len(rows) - len(kept), len(rows), least
        )
    return kept


def sound_pairs(rows: Dataset, processor: Any, max_length: int, drop: bool, where: str) -> Dataset:
    """Pairs that can teach something; what is wrong with the others is said with their rows.

    Raises:
        InputError: pairs that can't, where `drop` doesn't allow to leave them out.
    """
    if processor.eos_token is None and isinstance(rows[0]["chosen"], str):
        raise InputError(
            "The tokenizer has no EOS, with which TRL ends each answer. Name its eos_token in "
            "tokenizer_config.json"
        )
    check_rendered(rows, ("chosen", "rejected"), processor, where)
    faults = examine_pairs(rows, processor, max_length)
    for name, said in NOTED.items():
        if faults[name]:
            logger.warning(
                "%d of %d %s pairs: %s (%s)",
                len(faults[name]),
                len(rows),
                where,
                said,
                places_of(rows, faults[name]),
            )
    bad = {index for name in UNUSABLE for index in faults[name]}
    if not bad:
        return rows
    said = "; ".join(
        f"{len(faults[name])}: {UNUSABLE[name]} ({places_of(rows, faults[name])})"
        for name in UNUSABLE
        if faults[name]
    )
    if not drop:
        raise InputError(
            f"Of {len(rows)} {where} pairs, {said}. Mend them, or set --drop_faulty_pairs to leave them out"
        )
    logger.warning("%d of %d %s pairs are left out: %s", len(bad), len(rows), where, said)
    kept = [index for index in range(len(rows)) if index not in bad]
    if not kept:
        raise InputError(f"No {where} pair is left of {len(rows)}; mend them or set --dataset_name")
    return rows.select(kept)


def examine_pairs(rows: Dataset, processor: Any, max_length: int) -> dict[str, list[int]]:
    """Row numbers by fault: each name of UNUSABLE and NOTED → rows. A pair counts for the first
    unusable fault it has; pairs are compared within their own evaluation set, of which there may be several.
    """
    faults: dict[str, list[int]] = {name: [] for name in (*UNUSABLE, *NOTED)}
    seen: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        prompt = json.dumps([row.get(SET), row["prompt"]])
        chosen, rejected = (json.dumps(row[name]) for name in ("chosen", "rejected"))
        seen[prompt, chosen, rejected].append(index)
        fault = _fault(row, chosen == rejected, seen[prompt, chosen, rejected][0] < index)
        # Tokenising costs most, and is for rows whose texts are sound.
        if fault is None:
            fault = _token_fault(row, processor, max_length, faults, index)
        if fault:
            faults[fault].append(index)
    named = {index for name in UNUSABLE for index in faults[name]}
    for (prompt, chosen, rejected), indices in seen.items():
        if chosen != rejected and (prompt, rejected, chosen) in seen:
            faults["conflicting"] += [index for index in indices if index not in named]
    faults["conflicting"].sort()
    return faults


def _fault(row: dict[str, Any], equal: bool, repeated: bool) -> str | None:
    if not _text(row["chosen"]).strip() or not _text(row["rejected"]).strip():
        return "empty"
    if len({type(row[name]) for name in ("prompt", "chosen", "rejected")}) > 1:
        return "unlike"
    if equal:
        return "equal"
    if all(SPEAKS in str(row[side]) for side in ("chosen", "rejected")) and SPEAKS not in row["prompt"]:
        return "other question"
    return "duplicate" if repeated else None


def _token_fault(
    row: dict[str, Any], processor: Any, max_length: int, faults: dict[str, list[int]], index: int
) -> str | None:
    tools = row.get("tools")
    prompt = pair_ids(processor, row["prompt"], None, tools)
    if len(prompt) >= max_length:
        return "no room"
    wholes = [pair_ids(processor, row["prompt"], row[side], tools) for side in ("chosen", "rejected")]
    if wholes[0][:max_length] == wholes[1][:max_length]:
        return "equal"
    noted = {
        # Training tokenises both together, sampling the prompt alone.
        "merged": any(whole[: len(prompt)] != prompt for whole in wholes),
        "cut": max(map(len, wholes)) > max_length,
        # In the answer: the prompt's turns end with EOS too.
        "endless": any(processor.eos_token_id not in whole[len(prompt) :] for whole in wholes),
        "repeated": _holds_prompt(row),
    }
    for name in (name for name, found in noted.items() if found):
        faults[name].append(index)
    return None


def _text(side: Any) -> str:
    return (
        side
        if isinstance(side, str)
        else "".join(
            (message["content"] or "") + str(message.get("tool_calls") or "") for message in side or []
        )
    )


def pair_ids(processor: Any, prompt: Any, answer: Any | None, tools: Any = None) -> list[int]:
    """Ids as TRL makes them: texts joined and ended by EOS, conversations through the template;
    without an answer, the prompt's.
    """
    if isinstance(prompt, str):
        # As one text: tokenised apart, the answer would begin with other tokens.
        return processor(prompt if answer is None else prompt + answer + (processor.eos_token or ""))[
            "input_ids"
        ]
    messages = prompt if answer is None else [*prompt, *answer]
    return template_ids(processor, messages, tools, asked=answer is None)
