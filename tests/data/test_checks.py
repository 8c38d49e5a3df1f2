"""Bad rows stop before any training, with the flag that mends them."""

from __future__ import annotations

import logging

import pytest
from datasets import ClassLabel, Dataset, Features, Translation

from finetune.data.columns import class_ids, class_names, find_columns
from finetune.data.sources import DataArguments, FewShotArguments, Rows
from finetune.errors import InputError
from finetune.tasks import classification
from finetune.tasks.table import TASKS

TEXTS = ["good film", "bad film", "fine film", "dull film"]


def examine(train: dict, evaluation: dict | None = None, pair: bool = False, **options):
    rows = Rows(Dataset.from_dict(train), Dataset.from_dict(evaluation or train), "rows")
    return classification.examine(rows, DataArguments("rows", **options), pair)


def test_good_rows():
    rows, columns, labels, *_ = examine(
        {"text": TEXTS, "label": ["p", "n", "p", "n"]}, {"text": ["new"], "label": ["n"]}
    )
    assert (columns.text, columns.label, labels) == ("text", "label", ["n", "p"])
    assert isinstance(rows.train.features["label"], ClassLabel)
    assert sorted(rows.train["text"]) == sorted(TEXTS)


@pytest.mark.parametrize(
    ("train", "evaluation", "options", "complaint"),
    [
        ({"body": TEXTS, "label": [0, 1, 0, 1]}, None, {},
        r"No column 'text' in rows; it has body, label. Set --text_column"),
        ({"body": TEXTS, "mark": [0, 1, 0, 1]}, None, {},
        r"No columns 'text' and 'label' in rows; it has body, mark. Set --text_column and --label_column"),
        ({"body": TEXTS, "label": [0, 1, 0, 1]}, None, {"text_column": "Body", "label_column": "Label"},
        r"No columns 'Body' and 'Label' in rows; .* Set --text_column and --label_column"),
        ({"text": TEXTS, "label": [0, 1, 0, 1]}, None, {"text_column": "review"},
        r"No column 'review' in rows; it has text, label."),
        ({"text": TEXTS, "mark": [0, 1, 0, 1]}, None, {}, r"Set --label_column"),
        ({"text": TEXTS, "label": [0, 1, 0, 1]}, {"text": ["x"], "label": [2]}, {},
        r"1 evaluation rows have a label .* no training row has, or none: 2 \(1 rows\)"),
        ({"text": ["a", " ", None, "b"], "label": [0, 1, 0, 1]}, None, {},
        r"2 of 4 training rows have no text .*\(rows 1, 2\).*--drop_empty_rows"),
        ({"text": TEXTS, "label": [1, 1, 1, 1]}, None, {}, r"one class only \('1'\).*two or more"),
        ({"text": TEXTS, "label": [0.3, 1.7, 2.2, 0.1]}, None, {},
        r"free numbers such as 0.1; .*--task regression"),
        ({"text": TEXTS, "label": [0, 1, None, 1]}, None, {},
        r"1 training rows have a label .* or none: 'no label' .1 rows."),
        ({"text": TEXTS, "label": [[0], [1], [0], [1]]}, None, {}, r"wanted one class a row"),
    ],
)  # fmt: skip
def test_bad_rows(train, evaluation, options, complaint):
    with pytest.raises(InputError, match=complaint):
        examine(train, evaluation, **options)


def test_a_pair_needs_two_texts():
    good = {"sentence_A": TEXTS, "sentence_B": TEXTS[::-1], "label": [0, 1, 0, 1]}
    assert examine(good, pair=True)[1].pair == "sentence_B"
    with pytest.raises(InputError, match="No column 'text_pair' .*Set --text_pair_column"):
        examine({"text": TEXTS, "label": [0, 1, 0, 1]}, pair=True)
    with pytest.raises(InputError, match="Set --text_column, --text_pair_column and --label_column"):
        examine({"one": TEXTS, "two": TEXTS, "mark": [0, 1, 0, 1]}, pair=True)
    named = DataArguments("rows", text_column="sentence_B", text_pair_column="sentence_A")
    assert find_columns(Dataset.from_dict(good), named, pair=True).text == "sentence_B"


@pytest.mark.parametrize(
    ("task", "flags"),
    [
        ("classification", "--text_column and --label_column"),
        ("pairs", "--text_column, --text_pair_column and --label_column"),
        ("multilabel", "--text_column and --label_column"),
        ("regression", "--text_column and --label_column"),
        ("tokens", "--text_column and --label_column"),
        ("spans", "--text_column, --text_pair_column and --label_column"),
        ("choice", "--text_column, --text_pair_column and --label_column"),
        ("image", "--text_column and --label_column"),
        ("audio", "--text_column and --label_column"),
        ("series", "--text_column and --label_column"),
        ("seq2seq", "--text_column and --label_column"),
    ],
)
def test_all_missing_columns_are_asked_for_at_once(task, flags):
    part = Dataset.from_dict({"foo": TEXTS, "bar": TEXTS[::-1]})
    with pytest.raises(InputError, match=f"Set {flags}") as caught:
        TASKS[task].examine(Rows(part, part.select(range(4)), "rows"), DataArguments("rows"))
    assert "foo, bar" in str(caught.value)


@pytest.mark.parametrize(
    ("task", "good"),
    [
        ("regression", {"text": "fine", "score": 1.5}),
        ("multilabel", {"text": "fine", "labels": ["a"]}),
        ("tokens", {"tokens": ["In", "Oslo"], "ner_tags": ["O", "B-LOC"]}),
        ("spans", {"question": "Where?", "context": "In Oslo.",
        "answers": {"text": ["Oslo"], "answer_start": [3]}}),
        ("choice", {"question": "Capital?", "choices": ["Oslo", "Bergen"], "answer": 0}),
        ("choice", {"question": "Capital?", "choices": {"text": ["Oslo", "Rome"], "label": ["A", "B"]},
        "answerKey": "A"}),
    ],
)  # fmt: skip
def test_rows_without_text_or_label_are_left_out_in_every_task(task, good, caplog):
    text, label = next(iter(good)), list(good)[-1]
    other = good | ({"score": 2.0} if task == "regression" else {"labels": ["b"]} if "labels" in good else {})
    part = Dataset.from_list([good, other, good | {text: None}, good | {label: None}, good])
    with caplog.at_level(logging.WARNING):
        found = TASKS[task].examine(
            Rows(part, Dataset.from_list([good, other]), "rows"), DataArguments("rows", drop_empty_rows=True)
        )
    assert len(found.rows.train) == 3
    assert "1 of 5 training rows have no text" in caplog.text
    assert "1 of 4 training rows have no label and are left out" in caplog.text


def test_numbers_that_are_missing_are_counted():
    part = Dataset.from_list([{"text": "a", "score": 1.0}, {"text": "b", "score": None}] * 2)
    with pytest.raises(
        InputError, match=r"2 of 4 training rows have no label in 'score' .*--drop_empty_rows"
    ):
        TASKS["regression"].examine(Rows(part, part.select([0, 1]), "rows"), DataArguments("rows"))


def test_texts_alone_are_no_rows_for_writing():
    part = Dataset.from_list([{"text": "a", "label": "b"}])
    with pytest.raises(InputError, match="No column with an answer to 'text' .*Set --label_column"):
        TASKS["seq2seq"].examine(Rows(part, part.select([0]), "rows"), DataArguments("rows"))


def test_empty_rows_can_be_left_out():
    rows, *_ = examine(
        {"text": ["a", " ", "", "b"], "label": [0, 1, 0, 1]},
        {"text": ["c"], "label": [0]},
        drop_empty_rows=True,
    )
    assert sorted(rows.train["text"]) == ["a", "b"]


def test_unlabelled_rows_are_named():
    rows = Dataset.from_dict({"text": TEXTS, "label": [-1] * 4}).cast_column(
        "label", ClassLabel(names=["neg", "pos"])
    )
    with pytest.raises(InputError, match="4 training rows have a label .* or none: 'no label'"):
        classification.examine(
            Rows(rows, rows.select(range(len(rows))), "imdb"), DataArguments("imdb"), False
        )


def test_whole_floats_and_booleans_are_classes():
    whole = Dataset.from_dict({"label": [1.0, 0.0]})
    assert (class_names(whole, "label"), class_ids(whole, "label", ["0", "1"])) == (["0", "1"], [1, 0])
    assert class_names(Dataset.from_dict({"label": [True, False]}), "label") == ["False", "True"]


def test_rows_on_both_sides_are_counted(caplog):
    with caplog.at_level(logging.WARNING):
        examine({"text": TEXTS, "label": [0, 1, 0, 1]}, {"text": ["GOOD film", "new"], "label": [0, 1]})
    assert "1 of 2 evaluation rows also stand in the training rows" in caplog.text


@pytest.mark.parametrize(
    ("train", "options", "complaint"),
    [
        (
            {"text": [1, 2, 3, 4], "label": [0, 1, 0, 1]},
            {},
            r"'text' of the training rows holds .*int64.*--text_column",
        ),
        ({"text": [["a"], ["b"], ["c"], ["d"]], "label": [0, 1, 0, 1]}, {}, r"holds List.*wanted texts"),
        (
            {"text": TEXTS, "label": [0.0, float("nan"), 1.0, 0.0]},
            {},
            r"1 training rows have a label .* or none",
        ),
        ({"text": TEXTS, "label": [0.0, float("inf"), 1.0, 0.0]}, {}, r"free numbers such as inf"),
    ],
)
def test_columns_of_another_kind(train, options, complaint):
    with pytest.raises(InputError, match=complaint):
        examine(train, **options)


def test_shots_and_a_number_of_rows_contradict_each_other():
    data = FewShotArguments("rows", shots_per_class=1, max_train_rows=3)
    part = Dataset.from_dict({"text": TEXTS, "label": [0, 1, 0, 1]})
    with pytest.raises(InputError, match="leave one out"):
        classification.examine(Rows(part, part.select(range(len(part))), "rows"), data, False)


def test_a_column_of_another_name_is_asked_for_by_its_option():
    cells = [{"en": f"a dog {n}", "de": f"ein Hund {n}"} for n in range(4)]
    features = Features({"translation": Translation(["de", "en"])})
    part = Dataset.from_dict({"translation": cells}, features=features)
    data = DataArguments("rows", text_column="en", label_column="de")
    with pytest.raises(InputError, match=r"No column 'en' .* translation\.en.*Set --text_column"):
        TASKS["seq2seq"].examine(Rows(part, part.select([0]), "rows"), data)
