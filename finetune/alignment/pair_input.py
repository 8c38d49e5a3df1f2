"""Preferences as a run takes them: read before the start or as they are needed, shown, and counted by data
set. Knows rows; knows no trainer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

from datasets import Dataset, IterableDataset

from finetune.alignment.pair_rows import unpaired
from finetune.alignment.preferences import (
    PairArguments,
    pair_ids,
    read_pairs,
    read_unpaired,
    ready_pairs,
    sound_answers,
)
from finetune.data.columns import Columns
from finetune.data.laying import laid_out
from finetune.data.places import SET, short_names
from finetune.data.preferred import are_pairs, lay_out_pairs, lay_out_unpaired
from finetune.data.preview import marked, show_texts
from finetune.data.sources import DataArguments, Rows, load_rows, sample
from finetune.data.streaming import StreamingArguments
from finetune.training.streamed import make_stream

Pairs: TypeAlias = Dataset | IterableDataset


def read_preferences(
    data: DataArguments,
    settings: PairArguments,
    processor: Any,
    max_length: int,
    *,
    stream: StreamingArguments,
    single: bool = False,
    rows: Rows | None = None,
) -> tuple[Pairs, Dataset]:
    """Training and held-out pairs, checked; training pairs as they are needed where they are a stream.

    Args:
        rows: those of `data`, where they were read already.
        single: also answers with a verdict each (KTO).

    Raises:
        InputError: columns that are missing, pairs that can't teach anything, none left.
    """
    if not stream.streaming:
        return (read_unpaired if single else read_pairs)(data, settings, processor, max_length, rows)
    ready = partial(_ready, settings=settings, processor=processor, max_length=max_length, single=single)
    held_out = load_rows(data, train=False, fallback=None)
    tested = ready(replace(held_out, train=held_out.eval), data, where="held-out")
    tested = sample(tested, data.max_eval_rows, data.sample_seed)
    encode = partial(_as_batch, ready, splitting=single)
    endless = make_stream(data, stream, encode)
    return endless.as_dataset().remove_columns("row"), tested


def _ready(
    rows: Rows,
    data: DataArguments,
    *,
    settings: PairArguments,
    processor: Any,
    max_length: int,
    single: bool,
    where: str = "training",
) -> Dataset:
    """Rows of both splits alike, laid out and checked."""
    assert rows.eval is not None
    if single and not are_pairs(rows.eval, data):
        laid, _ = laid_out(rows, data, lay_out_unpaired)
        assert laid.eval is not None
        return sound_answers(laid.eval, processor, max_length, settings.drop_faulty_pairs, where)
    laid, _ = laid_out(rows, data, lay_out_pairs)
    assert laid.eval is not None
    return ready_pairs(laid.eval, settings, processor, max_length, where)


def _as_batch(
    ready: Callable[..., Dataset], rows: Rows, own: DataArguments, splitting: bool
) -> dict[str, list[Any]]:
    found = ready(rows, own)
    return (unpaired(found) if splitting and "chosen" in found.column_names else found).to_dict()


def learnt_answers(rows: Dataset) -> tuple[Dataset, Columns]:
    """The answers that shall become likelier, with their prompts, as rows of instruction tuning: the chosen
    ones of pairs, those with a good verdict of others.
    """
    answer = "chosen" if "chosen" in rows.column_names else "completion"
    if answer == "completion":
        rows = rows.select([place for place, good in enumerate(rows["label"]) if good])
    prompts, answers = rows["prompt"][:], rows[answer][:]
    further = {name: rows[name][:] for name in ("tools",) if name in rows.column_names}
    # conversations become one chat, as the template writes both together
    if len(rows) and isinstance(prompts[0], list):
        chats = [[*prompt, *said] for prompt, said in zip(prompts, answers, strict=True)]
        return Dataset.from_dict({"messages": chats, **further}), Columns("messages", None, "messages")
    texts = Dataset.from_dict({"prompt": prompts, "completion": answers})
    return texts, Columns("prompt", None, "completion")


def is_endless(rows: Pairs) -> bool:
    """Whether pairs are read as they are needed."""
    return isinstance(rows, IterableDataset)


def show_pairs(train: Pairs, held_out: Dataset, processor: Any, data: DataArguments) -> bool:
    """Print the first pairs as the model sees them; whether the run ends here (--check)."""
    texts = []
    for row in islice(iter(train), max(data.show_rows, 1)):
        tools, front = row.get("tools"), pair_ids(processor, row["prompt"], None, row.get("tools"))
        sides = [name for name in ("chosen", "rejected", "completion") if name in row]
        wholes = {name: pair_ids(processor, row["prompt"], row[name], tools) for name in sides}
        said = [f"{name}: {marked(processor.decode(ids[len(front) :]))}" for name, ids in wholes.items()]
        verdict = [f"desirable: {row['label']}"] if "label" in row else []
        texts.append("\n".join([processor.decode(front), *said, *verdict]))
    many = "a stream of" if is_endless(train) else str(len(train))  # type: ignore[arg-type]
    return show_texts(texts, f"{many} training and {len(held_out)} held-out pairs", data)


def pairs_fingerprint(rows: Pairs, data: DataArguments) -> str:
    """Hash of all pairs in their order; of a stream, that nobody has read, its sources' names."""
    told = [data.dataset_name] if isinstance(rows, IterableDataset) else [rows[i] for i in range(len(rows))]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def places_by_set(held_out: Dataset, prepared: int) -> dict[str, list[int]]:
    """Places of `prepared` evaluation rows by the last part of their data set's name; nothing where there is
    one.

    A pair that became two answers stands in two neighbouring places.
    """
    if SET not in held_out.column_names or prepared % len(held_out):
        return {}
    times = prepared // len(held_out)
    found: dict[str, list[int]] = {}
    for place, name in enumerate(short_names(held_out[SET][:])):
        found.setdefault(name, []).extend(range(place * times, (place + 1) * times))
    return found
