"""The page of layouts says what is read: each of its rows goes through the reader of its verb."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from datasets import Audio, Image

from finetune.alignment.preferences import with_prompt
from finetune.cli.help import told
from finetune.data import pictures
from finetune.data.answered import lay_out_choices, lay_out_spans
from finetune.data.columns import label_lists
from finetune.data.files import as_dataset
from finetune.data.labelled import lay_out_classes, lay_out_label_sets
from finetune.data.layouts import LAYOUTS
from finetune.data.media import lay_out_files
from finetune.data.preferred import lay_out_pairs, lay_out_unpaired
from finetune.data.questions import lay_out_chats, lay_out_prompts, lay_out_questions
from finetune.data.series import find_channels, find_time
from finetune.data.sources import DataArguments
from finetune.data.tagged import lay_out_tags
from finetune.tasks import audio, series
from finetune.tasks.regression import lay_out_numbers
from finetune.tasks.seq2seq import SOURCES, TARGETS

PAGE = Path(__file__).parents[2] / "docs" / "data_layouts.md"
READERS = {
    "sft": lay_out_chats, "seq2seq": partial(lay_out_questions, sources=SOURCES, targets=TARGETS),
    "dpo": lay_out_pairs, "kto": lay_out_unpaired,
    "ppo": partial(lay_out_prompts, texts=("text",)), "classification": partial(lay_out_classes, pair=False),
    "pairs": partial(lay_out_classes, pair=True), "multilabel": lay_out_label_sets,
    "regression": lay_out_numbers, "tokens": lay_out_tags,
    "spans": lay_out_spans, "choice": lay_out_choices,
    "image": partial(lay_out_files, usual=pictures.USUAL, typed=Image(decode=False)),
    "audio": partial(lay_out_files, usual=audio.USUAL, typed=Audio(decode=False)),
    "series": series.lay_out, "forecast": None,
}  # fmt: skip
ROW = re.compile(r"^\| ([^|`]+) \| (\w+) \| `(.+)` \| `(.+)` \|$", re.MULTILINE)


def becomes(verb: str, row: dict[str, Any]) -> dict[str, Any]:
    """The columns that a verb reads of a row."""
    rows = as_dataset({name: [cell, cell] for name, cell in row.items()}, "rows")
    if verb == "forecast":
        time = find_time(rows, None, "rows")
        return {name: row[name] for name in (time, *find_channels(rows, time, None, None, "rows")) if name}
    laid = READERS[verb](rows, DataArguments("rows"))
    if verb in ("dpo", "kto"):
        made = with_prompt(laid.rows, "rows") if verb == "dpo" else laid.rows
        names = ["prompt", "chosen", "rejected"] if verb == "dpo" else ["prompt", "completion", "label"]
        return {name: made[0][name] for name in names}
    names = dict.fromkeys(
        [
            laid.columns.text,
            laid.columns.pair,
            laid.columns.label,
            "tools" if "tools" in laid.rows.column_names else None,
        ]
    )
    found = {name: laid.rows[0][name] for name in names if name}
    if verb == "multilabel":
        label = laid.columns.label
        found[label] = label_lists(laid.rows.features[label], [laid.rows[0][label]])[0]
    return found


def on_page() -> list[tuple[str, str, dict, dict]]:
    cells = [match.groups() for match in ROW.finditer(PAGE.read_text(encoding="utf-8"))]
    return [
        (name, verb, *(json.loads(cell.replace("\\|", "|")) for cell in rest)) for name, verb, *rest in cells
    ]


def test_the_page_has_every_layout_and_verb():
    assert {name.split(",")[0] for name, *_ in on_page()} >= set(LAYOUTS)
    assert {verb for _, verb, *_ in on_page()} == set(READERS)


@pytest.mark.parametrize(("name", "verb", "row", "read"), on_page() if PAGE.is_file() else [])
def test_rows_are_read_as_the_page_says(name, verb, row, read):
    assert becomes(verb, row) == read


@pytest.mark.parametrize("verb", ["train", "sft", "pretrain", "prompt", "prefer", "dpo", "reward"])
def test_the_rows_that_a_verbs_help_shows_are_the_pages(verb: str) -> None:
    script = PAGE.parents[1] / "scripts" / f"{verb}.py"
    shown = re.findall(r"^ +(?:\w+ +)?(\{.*\})$", told(script, True), re.MULTILINE)
    # the page's rows are read by their verbs above
    known = [json.loads(row.replace(r"\|", "|")) for _, _, row, _ in ROW.findall(PAGE.read_text("utf-8"))]
    assert shown and all(json.loads(row) in known for row in shown)
