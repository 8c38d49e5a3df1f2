"""Messages say where rows stand in their file, of all rows with a fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune.data.columns import Columns
from finetune.data.preferred import lay_out_unpaired
from finetune.data.sources import DataArguments, load_rows
from finetune.errors import InputError
from finetune.tasks.sft import check_messages


def test_all_rows_that_cannot_be_read_are_named_at_once(tmp_path: Path):
    verdicts = ["yes", "no", "maybe"] * 3
    lines = [{"prompt": "a", "completion": "b", "label": one} for one in verdicts]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = load_rows(DataArguments(str(tmp_path / "train.jsonl"), eval_split="train")).train
    first = "In row 2 .line 3. stands the verdict 'maybe'; wanted true or false; 2 more can't be read either"
    with pytest.raises(InputError, match=rf"{first} \(lines 6, 9; rows 5, 8\)\. Mend what stands there"):
        lay_out_unpaired(rows, DataArguments("rows"))
    chats = [[{"role": "user", "content": "a"}] for _ in verdicts]
    rows = rows.remove_columns("prompt").add_column("messages", chats)
    said = "row 0 .line 1. has no message of the role assistant, .*; 8 more have such a fault"
    with pytest.raises(InputError, match=rf"The training {said} \(lines 2, 3, 4, 5, 6, \.\.\.; rows 1,"):
        check_messages(rows, Columns("messages", None, "messages"), "training")
