"""Small inputs with their right answers, where they lie beside the project: preferences, unclean labels."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from conftest import SHARED_DATA

from finetune.alignment.preferences import with_prompt
from finetune.data.laying import laid_out
from finetune.data.preferred import lay_out_pairs, lay_out_unpaired
from finetune.data.sources import DataArguments, load_rows
from finetune.errors import InputError
from finetune.tasks import classification

CASES = SHARED_DATA.parent / "cases" / "rows"


@pytest.mark.skipif(not CASES.is_dir(), reason="the small inputs are not here")
@pytest.mark.parametrize(
    ("file", "prompt"),
    [
        ("pairs_alpaca.jsonl", ("instruction", "input")),
        ("pairs_orca.jsonl", ("system", "question")),
        ("pairs_sharegpt.jsonl", ()),
        ("pairs_tools.jsonl", ()),
        ("pairs_cyrillic_shared_start.jsonl", ()),
    ],
)
def test_small_pairs_have_their_whole_question(file, prompt):
    data = DataArguments(str(CASES / file), eval_split="train")
    rows = load_rows(data)
    laid, _ = laid_out(rows, data, lay_out_pairs)
    given, found = rows.train[0], with_prompt(laid.train, file)[0]
    said = json.dumps(found["prompt"], ensure_ascii=False)
    assert all(given[name] in said for name in prompt) and found["chosen"] != found["rejected"]
    if isinstance(found["prompt"], str):  # never inside a word
        assert (
            prompt or found["prompt"] == "" or found["prompt"][-1].isspace() or found["chosen"][0].isspace()
        )


@pytest.mark.skipif(not CASES.is_dir(), reason="the small inputs are not here")
def test_small_answers_with_a_verdict_and_labels_that_are_unclean():
    data = DataArguments(str(CASES / "kto_unpaired.jsonl"), eval_split="train")
    laid, _ = laid_out(load_rows(data), data, lay_out_unpaired)
    assert Counter(laid.train["label"]) == {True: 6, False: 6}
    data = DataArguments(str(CASES / "labels_unclean.jsonl"), eval_split="train")
    with pytest.raises(InputError, match="differ by blanks or case alone.*' neg'.*--near_labels merge"):
        classification.examine(load_rows(data), data, pair=False)
