"""Preference rows → ids with the ends that they have. Knows tokenizers and TRL's names of columns; knows no
loss.

TRL ends every answer with an EOS. An answer that was cut at --max_new_tokens has none: learnt with one, the
model learns to stop in mid-sentence. Rows that scripts/prefer.py makes say so in `chosen_ended` and
`rejected_ended`.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from finetune.alignment.preferences import pair_ids
from finetune.loss import IGNORED

SIDES = ("chosen", "rejected")


def without_end(ids: list[int], end: int | None) -> list[int]:
    """Ids up to the EOS that closes them, which goes, with what a template puts behind it."""
    if end is None or end not in ids:
        return ids
    # The last one: chat templates close earlier turns with the same token.
    last = len(ids) - 1 - ids[::-1].index(end)
    # Behind the last EOS a template may put a line break and the like, which is a token or two.
    return ids[:last] if last >= len(ids) - 3 else ids  # an EOS further in closes another turn


class CutAnswers:
    """Stands before one of TRL's trainers on pairs or single answers: answers that were cut keep no
    end that they never had.
    """

    def _prepare_dataset(self, dataset: Any, processing_class: Any, *more: Any) -> Any:
        dataset = super()._prepare_dataset(dataset, processing_class, *more)  # type: ignore[misc]
        # Names of TRL's columns after tokenising; single answers are called completions.
        columns = {f"{side}_ended": f"{side}_ids" for side in (*SIDES, "completion")}
        names = set(dataset.column_names or next(iter(dataset)))  # a stream's are those of its first row
        there = {mark: ids for mark, ids in columns.items() if {mark, ids} <= names}
        if not there:
            return dataset
        end = processing_class.eos_token_id

        def cut(row: dict[str, Any]) -> dict[str, Any]:
            return {
                # `is False`, since rows from elsewhere have None there, of which nothing is known.
                ids: without_end(row[ids], end) if row[mark] is False else row[ids]
                for mark, ids in there.items()
            }

        said = {"desc": "Ends of answers that were cut"} if isinstance(dataset, Dataset) else {}
        return dataset.map(cut, **said)


def unpaired(pairs: Dataset) -> Dataset:
    """Pairs → each answer by itself: prompt, completion, label, and tools and completion_ended where
    there are any.
    """
    rows = []
    for pair in pairs:
        rest = {"tools": pair["tools"]} if pair.get("tools") is not None else {}
        for side, good in zip(SIDES, (True, False), strict=True):
            ended = {"completion_ended": pair[f"{side}_ended"]} if f"{side}_ended" in pair else {}
            rows.append({"prompt": pair["prompt"], "completion": pair[side], "label": good, **ended, **rest})
    return Dataset.from_list(rows)


class SameIds:
    """Stands before TRL's ORPO and CPO: they train on the ids that DPO does, with one EOS and no BOS that
    sampling lacks.

    Their own tokenising takes prompt and answer apart and puts a BOS in front wherever the tokenizer has one.
    """

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        """TRL's columns of a row, which `as_ids` has laid out."""
        return {name: feature[name] for name in ROW}


KINDS = ("input_ids", "attention_mask", "labels")
ROW = (*(f"{side}_{kind}" for side in SIDES for kind in KINDS), "prompt_input_ids", "prompt_attention_mask")


def as_ids(pairs: Dataset, processor: Any, max_length: int | None) -> Dataset:
    """Pairs as TRL's ORPO and CPO want them tokenised; the answer begins where prompt and whole part,
    and is cut at the end.
    """

    def row(pair: dict[str, Any]) -> dict[str, Any]:
        tools = pair.get("tools")
        found: dict[str, Any] = {}
        prompt = pair_ids(processor, pair["prompt"], None, tools)
        wholes = {side: pair_ids(processor, pair["prompt"], pair[side], tools) for side in SIDES}
        # By tokens and not by text: the prompt's last one may merge with the answer's first.
        shared = min(common(prompt, whole) for whole in wholes.values())
        for side, whole in wholes.items():
            kept = without_end(whole, processor.eos_token_id) if pair.get(f"{side}_ended") is False else whole
            kept = kept[:max_length]
            found |= {f"{side}_input_ids": kept, f"{side}_attention_mask": [1] * len(kept),
                      f"{side}_labels": [IGNORED] * shared + kept[shared:]}  # fmt: skip
        # texts that TRL's own steps look at and nothing reads
        texts = {"prompt": "p", "chosen": "c", "rejected": "r"}
        return {**texts, **found, "prompt_input_ids": prompt[:shared], "prompt_attention_mask": [1] * shared}

    return Dataset.from_list([row(pair) for pair in pairs])


def common(one: list[int], other: list[int]) -> int:
    """How many ids two lists begin with alike."""
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
