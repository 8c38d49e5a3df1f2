"""Preferences as they are published: two answers and a verdict, scores, ranks; the better one is told."""

from __future__ import annotations

import pytest
from datasets import Dataset

from finetune.data.laying import laid_out
from finetune.data.preferred import are_pairs, lay_out_pairs
from finetune.data.sources import DataArguments, Rows
from finetune.errors import InputError

GOOD, BAD = "Oslo is the capital.", "No idea at all."
BOTH = [(0, GOOD, BAD), (1, BAD, GOOD)]


def laid(rows: list[dict], **options: object):
    part = Dataset.from_list(rows)
    assert are_pairs(part, DataArguments("rows"))
    return laid_out(Rows(part, part, "rows"), DataArguments("rows", **options), lay_out_pairs)[0].train


FORMS = {
    "safe_rlhf": [
        {"prompt": f"Name town {n}.", "response_0": a, "response_1": b, "is_response_0_safe": True,
         "better_response_id": n, "safer_response_id": 1 - n} for n, a, b in BOTH
    ],
    "stanford": [
        {"domain": "askx", "history": f"Name town {n}.", "human_ref_A": a, "human_ref_B": b,
         "labels": 1 - n, "seconds_difference": 3.5} for n, a, b in BOTH
    ],
    "alpaca_farm": [
        {"instruction": f"Name town {n}.", "input": "", "output_1": a, "output_2": b, "preference": n + 1}
        for n, a, b in BOTH
    ],
    "arena": [
        {"prompt": f"Name town {n}.", "response_a": a, "response_b": b, "winner": ("model_a", "model_b")[n]}
        for n, a, b in BOTH
    ] + [{"prompt": "Name none.", "response_a": "x y", "response_b": "z", "winner": "tie"}],
    "summaries": [
        {"info": {"id": "t3", "post": f"Name town {n}.", "title": "Towns", "article": None},
         "summaries": [{"text": a, "policy": "sup"}, {"text": b, "policy": "ref"}], "choice": n}
        for n, a, b in BOTH
    ],
    "webgpt": [
        {"question": {"id": "q", "full_text": f"Name town {n}."}, "answer_0": a, "answer_1": b,
         "score_0": 0.5 - n, "score_1": n - 0.5} for n, a, b in BOTH
    ],
    "ranks": [
        {"prompt": f"Name town {n}.", "answers": [
            {"answer": a, "model": "one", "rank": 1.0 + 6 * n},
            {"answer": "It depends.", "model": "two", "rank": 3.0},
            {"answer": b, "model": "three", "rank": 7.0 - 6 * n}]} for n, a, b in BOTH
    ],
    "grades": [
        {"instruction": f"Name town {n}.", "completions": [
            {"response": a, "overall_score": 9.0 - 8 * n}, {"response": b, "overall_score": 1.0 + 8 * n}]}
        for n, a, b in BOTH
    ],
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_better_answer_is_told(form, capsys, caplog):
    rows = laid(FORMS[form])
    assert rows["chosen"][:] == [GOOD, GOOD] and rows["rejected"][:] == [BAD, BAD]
    assert [f"Name town {n}." in prompt for n, prompt in enumerate(rows["prompt"])] == [True, True]
    said = capsys.readouterr().out
    assert ("chosen, rejected ← " in said and "verdict ← " in said) or form in ("ranks", "grades")
    assert ("1 of 3 rows are ties and are left out" in caplog.text) == (form == "arena")
    if form == "summaries":
        assert "Towns" in rows["prompt"][0]


def test_the_other_verdict_can_be_named():
    rows = laid(FORMS["safe_rlhf"], label_column="safer_response_id")
    assert rows["chosen"][:] == [BAD, BAD]


def test_a_dialogue_beside_another_has_its_question():
    chats = [[{"role": "user", "content": "Name a town."}, {"role": "assistant", "content": said}]
             for said in (GOOD, BAD)]  # fmt: skip
    rows = laid([{"conversation_a": chats[1], "conversation_b": chats[0], "winner": "model_b"}] * 2)
    assert rows["chosen"][0][-1]["content"] == GOOD


@pytest.mark.parametrize(("name", "grades"), [("scores", [0.1, 0.9, 0.5]), ("ranks", [3, 1, 2])])
def test_answers_with_a_list_of_grades(name, grades):
    row = {"prompt": "Name a town.", "responses": [BAD, GOOD, "Town."], name: grades}
    rows = laid([row] * 2)
    assert rows["chosen"][0] == GOOD and rows["rejected"][0] == BAD
    with pytest.raises(InputError, match="row 0 .*tells no better answer .*a number for each answer"):
        laid([row | {name: grades[:2]}] * 2)
    with pytest.raises(InputError, match="tells no better answer of responses .an answer without rank"):
        laid([{key: row[key] for key in ("prompt", "responses")}] * 2)


def test_verdicts_that_say_nothing_are_named():
    with pytest.raises(InputError, match="row 1 'better_response_id' 3 tells no better.*wanted 0 or 1"):
        laid([FORMS["safe_rlhf"][0], FORMS["safe_rlhf"][1] | {"better_response_id": 3}])
    with pytest.raises(InputError, match="All 2 rows of rows are ties"):
        laid([row | {"score_0": 0.0, "score_1": 0.0} for row in FORMS["webgpt"]])
    quoted = [row | {"quotes_0": f"A long text {n} that says more."} for n, row in enumerate(FORMS["webgpt"])]
    with pytest.raises(InputError, match="'quotes_0' holds text.*--ignore_columns quotes_0"):
        laid(quoted)
    assert len(laid(quoted, ignore_columns=["quotes_0"])) == 2
