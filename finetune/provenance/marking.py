"""One's own rows → rows that carry a secret: watermarked texts, or canaries. Knows models that write and
rows' texts; tests nothing.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset
from transformers import AutoModelForCausalLM

from finetune.adapters.export import claimed
from finetune.artefacts.files import write_atomically
from finetune.artefacts.hashes import hash_processor
from finetune.data.columns import TEXTS, first_there
from finetune.data.places import columns_of
from finetune.data.sources import load_rows
from finetune.errors import InputError
from finetune.models import generate
from finetune.models.load import ModelArguments, load_model
from finetune.provenance.canaries import draw_canaries
from finetune.provenance.options import CANARIES, TraceArguments, TraceRowsArguments
from finetune.provenance.watermark import Watermark

ROWS, SECRET = "rows.jsonl", "secret.json"
START = 6  # words of one's own row that a watermarked text goes on from


def mark(trace: TraceArguments, data: TraceRowsArguments) -> Iterator[str]:
    """Write `rows.jsonl` to publish among one's own rows, and `secret.json` to keep.

    Raises:
        InputError: no folder, no texts, or texts that nothing can be drawn from.
    """
    if trace.output_dir is None:
        raise InputError("`trace mark` writes a folder; set --output_dir to a new one")
    rows = load_rows(data).train
    assert rows is not None
    column = text_column(rows, data)
    texts = texts_of(rows, column, data.name)
    # not from a seeded generator: whoever guesses the key could find and remove the mark
    key = secrets.randbits(40) + 2 if trace.key is None else trace.key
    folder = Path(trace.output_dir)
    with claimed(folder):
        if trace.how == CANARIES:
            made = _plant(trace, data, rows, texts, key)
        else:
            made = _write(trace, texts, key, column)
        # the secret first: rows without it would be marked for nobody
        write_atomically(folder / SECRET, json.dumps(made["secret"], indent=1, ensure_ascii=False))
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made["rows"])
        write_atomically(folder / ROWS, lines)
    yield f"{folder / ROWS}: {len(made['rows'])} rows to publish among your own"
    yield f"{folder / SECRET}: keep it; `finetune trace test --trace {folder} --model ...` asks for it"


def text_column(rows: Dataset, data: TraceRowsArguments) -> str:
    """The column with the texts: the one that is named, or one with a usual name."""
    there = columns_of(rows)
    if data.text_column is None:
        return first_there(TEXTS, there, data.name, "text_column")
    if data.text_column not in there:
        raise InputError(
            f"No column '{data.text_column}' in {data.name}; it has {', '.join(there)}. Set --text_column"
        )
    return data.text_column


def texts_of(rows: Dataset, column: str, name: str) -> list[str]:
    """The texts of a column.

    Raises:
        InputError: it holds none.
    """
    texts = [text for text in rows[column] if isinstance(text, str) and text.strip()]
    if not texts:
        raise InputError(f"The column '{column}' of {name} holds no text; set --text_column")
    return texts


def _write(trace: TraceArguments, texts: list[str], key: int, column: str) -> dict[str, Any]:
    """Texts that go on from one's own first words, written with a watermark."""
    processor, network = load_model(ModelArguments(trace.writer), AutoModelForCausalLM)
    secret = Watermark(
        trace.how, key, trace.bias, network.config.get_text_config().vocab_size,
        str(hash_processor(processor)["tokenizer"]),
    )  # fmt: skip
    # the key decides all chance: the same key makes the same rows
    generator = torch.Generator().manual_seed(key % 2**63)
    chosen = torch.randint(len(texts), (trace.marked_rows,), generator=generator).tolist()
    # begun as one's own rows are, so that marked ones pass among them
    starts = [" ".join(texts[place].split()[:START]) for place in chosen]
    settings = generate.generation_settings(
        network, processor, trace.max_new_tokens, 1,
        {"do_sample": True, "temperature": 1.0, "top_k": 0, "watermarking_config": secret.config()},
    )  # fmt: skip
    # `generate` samples by the global generator
    torch.manual_seed(key % 2**63)
    sources = [processor(start)["input_ids"] for start in starts]
    written = generate.texts(network, sources, processor, settings, trace.batch_size, alone=True)
    # what is published has no trace of where the model began
    rows = [{column: start + text} for start, (text, _) in zip(starts, written, strict=True)]
    return {"rows": rows, "secret": secret.as_secret(column=column, writer=trace.writer)}


def _plant(
    trace: TraceArguments, data: TraceRowsArguments, rows: Dataset, texts: list[str], key: int
) -> dict[str, Any]:
    """Rows of words drawn from one's own, with a drawn label where the rows have labels."""
    labels, label, written = None, data.label_column, dict[str, Any]()
    if label is not None:
        if label not in rows.column_names:
            raise InputError(f"No column '{label}' in {data.name}; set --label_column")
        feature = rows.features[label]
        # declared classes, also those that no row has
        named = feature.names if isinstance(feature, ClassLabel) else rows[label][:]
        # published as they stand in one's own rows: a text among numbers is no column
        written = {str(name): name for name in named if name is not None}
        labels = sorted(written)
    canaries = draw_canaries(texts, trace.marked_rows, key, labels)
    column = text_column(rows, data)
    planted = [
        {column: one["texts"][0]} | ({} if label is None else {label: written[one["labels"][0]]})
        for one in canaries
    ]
    return {
        "rows": planted,
        "secret": {"how": CANARIES, "key": key, "column": column, "label": label, "canaries": canaries},
    }
