"""Rows in further forms that they are published in: each is read as meant, or named and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset

from finetune.data.accounting import unread
from finetune.data.conversations import MessageError, as_chat, as_dialogue, as_message
from finetune.data.preferred import lay_out_pairs, lay_out_unpaired
from finetune.data.sources import DataArguments, Rows, load_rows
from finetune.errors import InputError
from finetune.tasks import choice, classification, multilabel, sft, tokens

ASKED, SAID = {"role": "user", "content": "Say Oslo."}, {"role": "assistant", "content": "Oslo"}
OWN = [ASKED, SAID]
TOWNS = ["Oslo", "Bern", "Rome", "Paris"]


@pytest.mark.parametrize(
    "given",
    [
        [{"Role": "User", "Content": "Say Oslo."}, {"Role": "Assistant", "Content": "Oslo"}],
        {"messages": OWN}, json.dumps(OWN), json.dumps({"conversations": OWN}),
        [{"input": "Say Oslo.", "output": "Oslo"}], [{"human": "Say Oslo.", "assistant": "Oslo"}],
        [["Say Oslo.", "Oslo"]], ["Say Oslo.", "Oslo"],
    ],
)  # fmt: skip
def test_a_chat_in_whatever_it_is_wrapped(given):
    assert as_dialogue(given) == OWN
    part = Dataset.from_dict({"conversation": [json.dumps(given) if isinstance(given, dict) else given] * 2})
    assert sft.examine(Rows(part, part, "rows"), DataArguments("rows")).rows.train[0]["messages"] == OWN


def test_turns_that_are_records_may_have_a_system_and_nothing_that_is_lost():
    strange: dict = {}
    found = as_dialogue([{"system": "Be brief.", "input": "Hi", "output": "Hello", "notes": "x"}], strange)
    assert [m["role"] for m in found] == ["system", "user", "assistant"] and strange == {"notes": ["x"]}
    with pytest.raises(MessageError, match="wanted a text, or a list of messages"):
        as_chat(["one answer", "another"], role="assistant")


@pytest.mark.parametrize(
    ("said", "learnt"),
    [({"loss_mask": 0}, False), ({"masked": True}, False), ({"trainable": False}, False),
     ({"loss": True}, True), ({"masked": 0}, True), ({"weight": 0.0}, False)],
)  # fmt: skip
def test_a_message_says_in_other_words_that_it_is_not_learnt(said, learnt):
    message = as_message({**SAID, **said})
    assert bool(message.get("train", message.get("weight", True))) is learnt


def test_a_weight_between_is_refused_not_rounded():
    with pytest.raises(MessageError, match=r"weight: 0\.5; wanted 0 or 1"):
        as_message({**SAID, "weight": 0.5})


def test_a_column_that_frames_the_answer_alone_is_not_read_already():
    def read(row: dict) -> str:
        return f"{row['q']}\x00{row['a']}"

    rows = Dataset.from_dict(
        {
            "q": [f"Name town {n}." for n in range(4)],
            "a": TOWNS,
            "why": [f"because {t} is the best of all" for t in TOWNS],
            "whole": [f"### Q: Name town {n}.\n### A: {t}" for n, t in enumerate(TOWNS)],
        }
    )
    assert unread(rows, {"text": ["q"], "label": ["a"]}, read) == {"why": "text", "whole": "again"}


def test_a_question_beside_two_answers_may_be_a_chat():
    rows = Dataset.from_dict({"messages": [[ASKED]] * 2, "chosen": ["Oslo"] * 2, "rejected": ["no"] * 2})
    laid = lay_out_pairs(rows, DataArguments("rows"))
    assert laid.rows[0]["prompt"] == [ASKED] and laid.used["text"] == ["messages"]


def test_an_answer_with_a_verdict_may_be_the_end_of_a_chat():
    rows = Dataset.from_dict({"messages": [OWN] * 2, "label": [True, False]})
    laid = lay_out_unpaired(rows, DataArguments("rows"))
    assert laid.rows[0]["prompt"] == [ASKED] and laid.rows[0]["completion"] == [SAID]
    rows = Dataset.from_dict({"messages": [[ASKED]] * 2, "label": [True, False]})
    with pytest.raises(InputError, match="a chat that does not end with an answer"):
        lay_out_unpaired(rows, DataArguments("rows"))


def read_json(path: Path, whole: object) -> Dataset:
    path.write_text(json.dumps(whole), encoding="utf-8")
    found = load_rows(DataArguments(str(path), eval_split="train")).train
    assert found is not None
    return found


RECORDS = [{"text": f"{t} is far", "label": n % 2} for n, t in enumerate(TOWNS)]


@pytest.mark.parametrize(
    "whole",
    [
        {"rows": RECORDS}, {"info": {"name": "x"}, "data": RECORDS}, {"columns": ["text", "label"],
        "data": [list(one.values()) for one in RECORDS]},
        {"features": [{"name": "text"}],
        "rows": [{"row_idx": n, "row": one} for n, one in enumerate(RECORDS)]},
    ],
)  # fmt: skip
def test_json_with_rows_under_a_key(whole, tmp_path):
    assert [{k: row[k] for k in RECORDS[0]} for row in read_json(tmp_path / "a.json", whole)] == RECORDS


def test_json_with_several_lists_of_rows_is_refused(tmp_path):
    with pytest.raises(InputError, match="rows under train, test; wanted one list"):
        read_json(tmp_path / "a.json", {"train": RECORDS, "test": RECORDS})


def test_utf_16_without_a_mark_in_any_language(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\nПривет из города,да\nЕщё один город,нет\n".encode("utf-16-le"))
    assert load_rows(DataArguments(str(path), eval_split="train")).train["label"][:] == ["да", "нет"]


def test_lists_that_mix_kinds_name_the_row(tmp_path):
    with pytest.raises(InputError, match=r"hold a text in row 0 \('a'\) and a number in row 1 \(3\)"):
        read_json(tmp_path / "a.json", [{"words": ["a", "b"]}, {"words": ["a", 3]}])


def both(rows: Dataset) -> Rows:
    return Rows(rows, rows, "rows")


def test_entities_as_lists_and_what_they_say_of_their_words(tmp_path):
    rows = read_json(tmp_path / "a.json", [{"text": "In New York", "label": [[3, 11, "LOC"]]}] * 2)
    assert tokens.examine(both(rows), DataArguments("rows")).rows.train["ner_tags"][0] == [
        "O",
        "B-LOC",
        "I-LOC",
    ]
    wrong = [{"text": "In Oslo.", "entities": [{"start": 2, "end": 6, "text": "Oslo", "label": "LOC"}]}] * 2
    with pytest.raises(InputError, match="is said to be 'Oslo', and there stands ' Osl'"):
        tokens.examine(both(Dataset.from_list(wrong)), DataArguments("rows"))


def test_words_and_tags_as_texts():
    rows = Dataset.from_dict({"words": ["In New York"] * 2, "tags": ["O B-LOC I-LOC"] * 2})
    found = tokens.examine(both(rows), DataArguments("rows"))
    assert found.rows.train[0]["words"] == ["In", "New", "York"]
    with pytest.raises(InputError, match="row 0 'words' has 3 parts between blanks and 'tags' 2"):
        tokens.examine(both(rows.map(lambda row: {"tags": "O B-LOC"})), DataArguments("rows"))


def test_a_set_of_labels_as_a_record():
    rows = Dataset.from_dict({"text": TOWNS, "labels": [{"port": n % 2, "hills": 1} for n in range(4)]})
    found = multilabel.examine(both(rows), DataArguments("rows"))
    assert found.labels == ["port", "hills"]


@pytest.mark.parametrize(
    ("values", "minus_one", "labels"),
    [([-1, 0, 1, 2], None, ["0", "1", "2"]), ([-1, 1, 1, -1], None, ["-1", "1"]),
     ([-1, 0, 1, 0], "keep", ["-1", "0", "1"]), ([-1, 0, 1, 0], "drop", ["0", "1"]),
     ([-2, -1, 0, 1], None, ["-2", "-1", "0", "1"])],
)  # fmt: skip
def test_minus_one_is_a_class_or_none(values, minus_one, labels):
    rows = Dataset.from_dict({"text": [f"{t} is far" for t in TOWNS * 2], "label": values * 2})
    whole = Rows(rows, rows.select(range(8)), "rows")
    found = classification.examine(whole, DataArguments("rows", minus_one=minus_one), pair=False)
    assert found.labels == labels


@pytest.mark.parametrize(
    ("values", "minus_one", "labels"),
    [("no maybe yes -", None, ["maybe", "no", "yes"]),
     ("no maybe yes -", "keep", ["-", "maybe", "no", "yes"]),
     ("+ - + -", None, ["+", "-"]), ("no yes no -", "drop", ["no", "yes"])],
)  # fmt: skip
def test_a_dash_among_names_is_no_class(values, minus_one, labels):
    rows = Dataset.from_dict({"text": [f"{t} is far" for t in TOWNS], "gold_label": values.split()})
    data = DataArguments("rows", minus_one=minus_one)
    found = classification.examine(both(rows), data, pair=False)
    assert found.labels == labels


def test_minus_one_that_could_be_either_is_asked_for():
    signs = Dataset.from_dict({"text": [f"{t} is far" for t in TOWNS], "label": ["no", "yes", "no", "-"]})
    with pytest.raises(InputError, match="are '-', no, yes: '-' may be a class"):
        classification.examine(both(signs), DataArguments("rows"), pair=False)
    rows = Dataset.from_dict({"text": [f"{t} is far" for t in TOWNS], "label": [-1, 0, 1, 0]})
    with pytest.raises(InputError, match="Set --minus_one keep, or --minus_one drop"):
        classification.examine(both(rows), DataArguments("rows"), pair=False)
    declared = rows.cast_column("label", ClassLabel(names=["no", "yes"]))
    assert classification.examine(both(declared), DataArguments("rows"), pair=False).labels == ["no", "yes"]


@pytest.mark.parametrize(
    "form",
    [
        {"question": "Which?", "options": {"A": "Oslo", "B": "Bern"}, "answer": "B"},
        {"question": "Which?", "answerA": "Oslo", "answerB": "Bern", "label": "2"},
        {"question": "Which?", "opa": "Oslo", "opb": "Bern", "cop": 1},
    ],
)
def test_choices_with_letters_and_in_columns(form):
    found = choice.examine(both(Dataset.from_list([form, form])), DataArguments("rows"))
    row = found.rows.train[0]
    assert (row["text"], row["choices"], row["answer"]) == ("Which?", ["Oslo", "Bern"], 1)


def test_choices_are_said_as_choices(capsys):
    rows = [{"question": f"Where {n}?", "choices": ["here", "there"], "answer": n % 2} for n in range(4)]
    choice.examine(both(Dataset.from_list(rows)), DataArguments("rows"))
    assert "  text ← question\n  choices ← choices\n  label ← answer\n" in capsys.readouterr().out


def test_a_row_without_an_answer_is_named_and_no_other():
    rows = [{"question": f"Where {n}?", "option1": "here", "option2": "there", "answer": said}
            for n, said in enumerate(("1", "2", ""))]  # fmt: skip
    with pytest.raises(InputError, match="In row 2: the answer '' is none"):
        choice.examine(both(Dataset.from_list(rows)), DataArguments("rows"))


def test_what_stands_before_a_question_is_read():
    form = {"article": "Bern lies far.", "question": "Which?", "options": ["Oslo", "Bern"], "answer": "B"}
    found = choice.examine(both(Dataset.from_list([form, form])), DataArguments("rows"))
    assert found.rows.train[0]["text"] == "Bern lies far. Which?"


def test_an_answer_that_is_a_letter_and_a_text_is_refused():
    form = {"question": "Which?", "options": ["B", "A"], "answer": "A"}
    with pytest.raises(InputError, match="the name of 'B' and the text of another choice"):
        choice.examine(both(Dataset.from_list([form, form])), DataArguments("rows"))
