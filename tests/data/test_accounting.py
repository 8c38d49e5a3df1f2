"""What holds text is told from values; labels and sets of labels in the ways that they are published."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TOWNS
from datasets import ClassLabel, Dataset, List

from finetune.data.accounting import holds_text, unread
from finetune.data.labelled import is_multi_hot, lay_out_label_sets, settled_labels, twins
from finetune.data.laying import laid_out
from finetune.data.questions import lay_out_chats
from finetune.data.sources import DataArguments, Rows, load_rows
from finetune.data.tagged import in_usual_signs, tagged, to_iob2
from finetune.errors import InputError
from finetune.tasks import classification, multilabel, tokens


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("id", [f"train-{n}" for n in range(12)]), ("hash", ["5726eb8bf1498d1400e8efe2", "ffee01"] * 6),
        ("url", [f"https://a.org/{t}" for t in TOWNS]),
        ("when", [f"2024-01-{n + 10} 12:00:00" for n in range(12)]), ("mailed",
        ["Mon, 01 Jan 2024 10:00:00 GMT"] * 12),
        ("category", ["closed_qa", "brainstorming", "summarization"] * 4), ("category",
        ["open_qa", "brainstorming", "classification"]),
        ("speaker", ["jackson", "george", "lucas"] * 4), ("price", ["1.50", "2,50", "3 €"] * 4), ("file",
        [f"a/b/{t}.wav" for t in TOWNS]),
        ("language", ["English", "German", "Swiss German"] * 4), ("score", [0.5, 1.5]), ("nothing",
        [None, "", " "]), ("tags", [["NN", "VB"], ["NN", "DT"]] * 6),
    ],
)  # fmt: skip
def test_what_holds_no_text(name, values):
    assert not holds_text(values, name)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("notes", [f"Seen in {t}." for t in TOWNS]), ("input", TOWNS), ("system",
        ["You answer with one word."] * 12), ("topic", [f"a visit to {t}" for t in TOWNS]),
        ("source", [f"The man walked into {t} and said nothing at all." for t in TOWNS]), ("tokens",
        [[t, "is", "far"] for t in TOWNS]),
        ("meta", [{"note": f"Seen in {t} by a friend."} for t in TOWNS]), ("title",
        [f"News of {t}" for t in TOWNS]), ("ja", ["東京は日本の首都です。", "大阪は都市です。"]),
    ],
)  # fmt: skip
def test_what_holds_text(name, values):
    assert holds_text(values, name)


def test_a_text_in_one_row_of_many_is_seen():
    rows = Dataset.from_dict(
        {"text": ["a"] * 5000, "notes": [""] * 4001 + ["Seen by a reader of it."] + [""] * 998}
    )
    assert unread(rows, {"text": ["text"]}, lambda row: row["text"]) == {"notes": "text"}


def both(rows: Dataset) -> Rows:
    return Rows(rows, rows, "rows")


def test_rows_that_nobody_labelled_are_left_out_and_counted(caplog):
    rows = Dataset.from_dict({"text": [f"text of {t}" for t in TOWNS], "label": [0, 1, 2, -1] * 3})
    for part in (rows, rows.cast_column("label", ClassLabel(names=["a", "b", "c"]))):
        found = classification.examine(both(part), DataArguments("rows"), pair=False)
        assert len(found.labels) == 3 and len(found.rows.train) == len(found.rows.eval) == 9
    assert "rows have no label (-1 in 'label') and are left out (rows 3, 7, 11)" in caplog.text
    signs = Dataset.from_dict({"text": TOWNS, "label": [1, -1] * 6})
    assert classification.examine(both(signs), DataArguments("rows"), pair=False).labels == ["-1", "1"]


def test_near_twins_are_named_and_can_be_mended():
    rows = Dataset.from_dict({"text": TOWNS, "label": ["neg", "pos", "NEG", " neg", "pos ", "pos"] * 2})
    with pytest.raises(
        InputError,
        match=r"'pos' \(4\), 'pos ' \(2\); 'neg' \(2\), 'NEG' \(2\), ' neg' \(2\).*--near_labels merge to "
        r"make them 'pos', 'neg'",
    ):
        classification.examine(both(rows), DataArguments("rows"), pair=False)
    for how, labels in (("merge", ["neg", "pos"]), ("keep", [" neg", "NEG", "neg", "pos", "pos "])):
        assert (
            classification.examine(both(rows), DataArguments("rows", near_labels=how), pair=False).labels
            == labels
        )
    assert twins(Counter({"a": 3, "A": 1, "b": 1})) == {"a": ["a", "A"]}
    assert settled_labels([Dataset.from_dict({"label": [0, 1]})], "label", DataArguments("rows"))[0]["label"][
        :
    ] == [0, 1]


@pytest.mark.parametrize(
    ("rows", "labels"),
    [
        ({"labels": [[0, 1, 1], [1, 0, 0], [0, 0, 0]]}, ["0", "1", "2"]), ({"labels": ["b|c", "a", None]},
        ["a", "b", "c"]),
        ({"labels": ['["b", "c"]', '["a"]', "[]"]}, ["a", "b", "c"]),
        ({"a": [0, 1, 0], "b": [1, 0, 0], "c": [1, 0, 0]}, ["a", "b", "c"]),
        ({"labels": [["b", "c"], ["a"], []]}, ["a", "b", "c"]), ({"tags": ["b, c", "a", ""]},
        ["a", "b", "c"]),
    ],
)  # fmt: skip
def test_sets_of_labels(rows, labels):
    part = Dataset.from_dict({"text": ["x of it", "y of it", "z of it"], **rows})
    found = multilabel.examine(both(part), DataArguments("rows"))
    assert found.labels == labels
    sizes = dict(zip(found.rows.train["text"], map(len, found.rows.train[found.columns.label]), strict=True))
    assert sizes == {"x of it": 2, "y of it": 1, "z of it": 0}


def test_vectors_are_told_from_lists_of_classes():
    assert (
        is_multi_hot([[0, 1], [1, 1]])
        and not is_multi_hot([[0, 1], [1]])
        and not is_multi_hot([[0, 2], [1, 1]])
        and not is_multi_hot([["0", "1"]])
    )
    named = lay_out_label_sets(
        Dataset.from_dict({"text": ["a", "b"], "labels": [[0, 1], [1, 0]]}),
        DataArguments("rows", class_names=["x", "y"]),
    )
    assert named.rows.features["labels"] == List(ClassLabel(names=["x", "y"]))
    with pytest.raises(InputError, match="--class_names names 3 classes and 'labels' holds vectors of 2"):
        lay_out_label_sets(
            Dataset.from_dict({"text": ["a"], "labels": [[0, 1]]}),
            DataArguments("rows", class_names=["x", "y", "z"]),
        )


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [
        ("S-A O B-A E-A", "B-A O B-A I-A"), ("B-A I-A E-A S-A", "B-A I-A I-A B-A"), ("U-A B-B I-B L-B",
        "B-A B-B I-B I-B"), ("B-A M-A E-A", "B-A I-A I-A"),
        ("I-A I-A O I-A", "B-A I-A O B-A"), ("I-A B-A I-A", "B-A B-A I-A"), ("I-A I-B", "B-A B-B"),
        ("B-A I-A O", "B-A I-A O"),
    ],
)  # fmt: skip
def test_tags_of_every_scheme(tags, wanted):
    assert " ".join(to_iob2(tags.split())) == wanted


def test_other_signs_of_the_same_schemes_are_entities():
    for tags in ("O B_LOC I_LOC S_PER", "O LOC-B LOC-I PER-S", "O LOC_B LOC_I PER_S"):
        rows = Dataset.from_list([{"tokens": ["In", "New", "York", "Ann"], "ner_tags": tags.split()}] * 2)
        assert tokens.examine(both(rows), DataArguments("rows")).rows.train[0]["ner_tags"] == (
            ["O", "B-LOC", "I-LOC", "B-PER"]
        )
    assert in_usual_signs({"NN", "NN-S", "VB-B"}) is None and in_usual_signs({"O", "B-LOC-I"}) is None


def test_an_empty_label_is_no_class():
    rows = Dataset.from_dict({"text": [f"text of {t}" for t in TOWNS], "label": ["a", "b", " "] * 4})
    with pytest.raises(InputError, match=r"4 evaluation rows .*or none: 'no label' \(4 rows\)"):
        classification.examine(both(rows), DataArguments("rows"), pair=False)
    found = classification.examine(both(rows), DataArguments("rows", drop_empty_rows=True), pair=False)
    assert found.labels == ["a", "b"] and len(found.rows.train) == 8


def test_near_twins_in_sets_are_named():
    rows = Dataset.from_dict({"text": TOWNS, "labels": [["neg"], ["pos", "Neg"], []] * 4})
    with pytest.raises(InputError, match=r"differ by blanks or case alone: 'neg' \(8\), 'Neg' \(8\)"):
        multilabel.examine(both(rows), DataArguments("rows"))
    assert multilabel.examine(both(rows), DataArguments("rows", near_labels="merge")).labels == ["neg", "pos"]


def test_places_of_entities_become_tags():
    words, tags = tagged("In New York-based firms.", [(3, 11, "LOC")])
    assert words == ["In", "New", "York", "-", "based", "firms", "."] and tags == [
        "O",
        "B-LOC",
        "I-LOC",
        "O",
        "O",
        "O",
        "O",
    ]
    assert tagged("Oslotown", [(0, 4, "LOC")]) == (["Oslo", "town"], ["B-LOC", "O"])
    for places in ([(0, 4, "A"), (2, 8, "B")], [(4, 4, "A")], [(0, 99, "A")]):
        with pytest.raises(ValueError, match="the entity"):
            tagged("Oslo town", places)


def test_a_key_that_no_message_has_is_named(tmp_path: Path):
    told = [{"role": "user", "content": "a", "note": "x"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "train.jsonl").write_text("\n".join([json.dumps({"messages": told})] * 4))
    data = DataArguments(str(tmp_path / "train.jsonl"), ignore_columns=["messages.notes"])
    with pytest.raises(
        InputError, match=r"the key 'notes', .* keys are content, note, role\. Did you mean messages\.note\?"
    ):
        laid_out(load_rows(data), data, lay_out_chats)
    right = replace(data, ignore_columns=["messages.note"])
    laid_out(load_rows(right), right, lay_out_chats)
