"""Rows that a task can't learn from are refused before any training, by the row and the flag that
mends it.
"""

from __future__ import annotations

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from finetune.data.sources import DataArguments, FewShotArguments, Rows
from finetune.errors import InputError
from finetune.tasks import choice, classification, multilabel, regression, seq2seq, sft, spans, tokens

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def both(rows: list[dict], features: Features | None = None, held_out: list[dict] | None = None) -> Rows:
    return Rows(
        Dataset.from_list(rows, features), Dataset.from_list(held_out or rows, features), "rows.jsonl"
    )


def tagged(*tags: str, words: int | None = None) -> Rows:
    feature = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=TAGS))})
    row = {
        "tokens": ["w"] * (len(tags) if words is None else words),
        "ner_tags": [TAGS.index(tag) for tag in tags],
    }
    return both([{"tokens": ["a"], "ner_tags": [0]}, row], feature)


def test_tags_keep_their_names_and_order():
    rows, columns, labels, *_ = tokens.examine(tagged("B-PER", "I-PER", "B-PER", "O"), DataArguments())
    assert labels == TAGS and columns.text == "tokens" and columns.label == "ner_tags"
    assert len(rows.train) == 2


@pytest.mark.parametrize(
    "tags", [("O", "I-PER"), ("I-PER",), ("B-LOC", "I-PER"), ("B-PER", "I-PER", "O", "I-PER")]
)
def test_tags_that_break_iob2_are_refused(tags):
    with pytest.raises(
        InputError, match=r"training row 1 break IOB2: 'I-PER' at word \d \('w'\) follows .* wanted 'B-PER'"
    ):
        tokens.examine(tagged(*tags), DataArguments())


def test_tags_of_words_that_are_not_there_are_refused():
    with pytest.raises(InputError, match="training row 1 has 3 words and 2 tags"):
        tokens.examine(tagged("O", "O", words=3), DataArguments())


def test_parts_of_speech_are_no_entities():
    rows = both([{"tokens": ["a", "dog"], "pos_tags": ["I", "NN"]}])
    assert tokens.examine(rows, DataArguments())[2] == ["I", "NN"]
    assert tokens.are_entities(TAGS) and not tokens.are_entities(["O", "NN", "B-X"])


def test_a_tag_never_seen_in_training_is_refused():
    rows = both(
        [{"tokens": ["a"], "tags": ["O"]}, {"tokens": ["a"], "tags": ["B-X"]}],
        held_out=[{"tokens": ["a"], "tags": ["B-Y"]}],
    )
    with pytest.raises(InputError, match="evaluation row 0 has the tag 'B-Y'"):
        tokens.examine(rows, DataArguments())


def test_a_label_column_without_lists_is_refused():
    with pytest.raises(InputError, match="wanted a list a row"):
        tokens.examine(both([{"tokens": ["a"], "tags": "O"}]), DataArguments())


def answered(text: str, start: int) -> dict:
    return {
        "question": "who",
        "context": "anna saw a film",
        "answers": {"text": [text], "answer_start": [start]},
    }


@pytest.mark.parametrize(("text", "start"), [("a film", 8), ("dog", 0), ("", 0), ("film", -4), ("film", 99)])
def test_answers_that_are_not_in_the_context_are_refused(text, start):
    with pytest.raises(InputError, match=r"training row 1 says that .* stands at character"):
        spans.examine(both([answered("anna", 0), answered(text, start)]), DataArguments())


def test_answers_in_another_shape_and_none_at_all_are_refused():
    with pytest.raises(
        InputError, match="In row 0, column 'answers': the answer 'c' stands nowhere in its context"
    ):
        spans.examine(both([{"question": "a", "context": "b", "answers": "c"}]), DataArguments())
    features = Features(
        {
            "question": Value("string"),
            "context": Value("string"),
            "answers": {"text": List(Value("string")), "answer_start": List(Value("int64"))},
        }
    )
    with pytest.raises(InputError, match="No training row has an answer"):
        spans.examine(
            both([{"question": "a", "context": "b", "answers": {"text": [], "answer_start": []}}], features),
            DataArguments(),
        )


def test_questions_without_answer_are_counted(caplog):
    none = {"question": "who", "context": "b", "answers": {"text": [], "answer_start": []}}
    spans.examine(both([answered("anna", 0), none]), DataArguments())
    assert "1 of 2 training questions have no answer" in caplog.text


def test_empty_references_are_refused_or_left_out():
    rows = both([{"source": "a", "target": "b"}, {"source": "a", "target": " "}])
    with pytest.raises(InputError, match="1 of 2 training rows have no text in source or target"):
        seq2seq.examine(rows, DataArguments())
    kept, columns, *_ = seq2seq.examine(rows, DataArguments(drop_empty_rows=True))
    assert len(kept.train) == 1 and columns.pair is None


def test_columns_inside_columns_are_named_with_a_dot():
    rows = both([{"translation": {"en": "a dog", "de": "ein Hund"}}])
    found, columns, *_ = seq2seq.examine(
        rows, DataArguments(text_column="translation.en", label_column="translation.de")
    )
    assert found.train[0][columns.label] == "ein Hund"
    with pytest.raises(InputError, match=r"it has translation\.(de|en).*Set --text_column"):
        seq2seq.examine(rows, DataArguments())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "1 of 2 training rows have no label in 'score'"),
        (float("nan"), "have no label in 'score'"),
        (2.0, "nothing could be learnt"),
        (True, "holds true and false; wanted numbers. Set --task classification"),
    ],
)
def test_targets_that_are_no_numbers_are_refused(value, message):
    with pytest.raises(InputError, match=message):
        regression.examine(
            both([{"text": "a", "score": value if value is True else 2.0}, {"text": "b", "score": value}]),
            DataArguments(),
        )


def test_a_regression_takes_two_texts_where_there_are_two():
    rows = both(
        [
            {"sentence_A": "a", "sentence_B": "b", "relatedness_score": 1.0},
            {"sentence_A": "c", "sentence_B": "d", "relatedness_score": 2.0},
        ]
    )
    _, columns, labels, *_ = regression.examine(rows, DataArguments())
    assert (columns.text, columns.pair, columns.label, labels) == (
        "sentence_A",
        "sentence_B",
        "relatedness_score",
        None,
    )


def test_a_label_that_a_row_says_twice_is_counted_once(capsys):
    found = multilabel.examine(both([{"text": "a", "labels": ["x", "x"]}, {"text": "b", "labels": ["y"]}]),
                               DataArguments())  # fmt: skip
    assert found.labels == ["x", "y"] and "  x 1, 1\n" in capsys.readouterr().out


def test_tags_that_are_numbers_want_names():
    for tags in ([0, 1, 2], ["0", "1", "2"]):
        rows = both([{"tokens": ["In", "New", "York"], "ner_tags": tags}] * 2)
        with pytest.raises(InputError, match=r"numbers \(0, 1, 2\) without names.*Set --class_names"):
            tokens.examine(rows, DataArguments())
        found = tokens.examine(rows, DataArguments(class_names=["O", "B-LOC", "I-LOC"]))
        assert found.labels == ["O", "B-LOC", "I-LOC"]


def test_sets_of_labels_take_their_names_from_training():
    rows = both([{"text": "a", "labels": ["y", "x"]}, {"text": "b", "labels": []}])
    assert multilabel.examine(rows, DataArguments())[2] == ["x", "y"]
    strange = both([{"text": "a", "labels": ["x"]}], held_out=[{"text": "a", "labels": ["z"]}])
    with pytest.raises(InputError, match="evaluation row 0 has labels that no training row has: z"):
        multilabel.examine(strange, DataArguments())


@pytest.mark.parametrize(
    ("offers", "answer", "message"),
    [(["a"], 0, "offers"), (["a", " "], 0, "offers"), (["a", "b"], 2, "wanted 0 to 1")],
)
def test_choices_that_cannot_be_chosen_are_refused(offers, answer, message):
    with pytest.raises(InputError, match=message):
        choice.examine(both([{"text": "t", "choices": offers, "answer": answer}]), DataArguments())


def test_chats_without_an_answer_are_refused():
    with pytest.raises(InputError, match="row 0 has no message of the role assistant"):
        sft.examine(both([{"messages": [{"role": "user", "content": "a"}]}]), DataArguments())


def test_shots_want_classes():
    with pytest.raises(InputError, match="--shots_per_class wants a task with one class a row"):
        tokens.examine(tagged("O"), FewShotArguments(shots_per_class=2))


def test_labels_inside_records_are_lists_of_labels():
    """As the built-in reviews have them: aspects, each with what is said of it."""
    rows = Dataset.from_list(
        [
            {
                "text": "a film",
                "aspects": [{"aspect": "story", "said": "good"}, {"aspect": "music", "said": "bad"}],
            },
            {"text": "a story", "aspects": []},
        ]
    )
    examined, columns, labels, *_ = multilabel.examine(
        Rows(rows, rows, "x"), DataArguments(label_column="aspects.aspect")
    )
    assert labels == ["music", "story"] and sorted(examined.train[columns.label]) == [[], ["story", "music"]]


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [
        (["S-PER", "O", "B-LOC"], ["B-PER", "O", "B-LOC"]),
        (["B-PER", "E-PER", "S-PER"], ["B-PER", "I-PER", "B-PER"]),
        (["I-PER", "O", "I-PER"], ["B-PER", "O", "B-PER"]),
        (["I-PER", "B-PER", "I-LOC"], ["B-PER", "B-PER", "B-LOC"]),
    ],
)
def test_other_ways_to_mark_entities_are_read_as_iob2(tags, wanted):
    rows, columns, *_ = tokens.examine(both([{"tokens": ["a", "b", "c"], "ner_tags": tags}]), DataArguments())
    assert rows.train[0][columns.label] == wanted


def test_one_fault_in_iob2_is_no_other_scheme():
    rows = [
        {"tokens": ["a", "b"], "ner_tags": ["B-PER", "O"]},
        {"tokens": ["a", "b"], "ner_tags": ["O", "I-PER"]},
    ]
    with pytest.raises(InputError, match="break IOB2: 'I-PER' at word 1"):
        tokens.examine(both(rows), DataArguments())


def test_a_class_without_a_name_is_no_tag():
    feature = Features({"tokens": List(Value("string")), "ner_tags": List(Value("int64"))})
    rows = Dataset.from_list([{"tokens": ["a", "b"], "ner_tags": [0, -1]}], feature)
    rows = rows.cast(Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=TAGS))}))
    with pytest.raises(InputError, match="Row 0 has the label -1"):
        tokens.examine(Rows(rows, rows, "x"), DataArguments())


def test_words_that_are_no_text_and_answers_without_a_start_are_named():
    with pytest.raises(InputError, match="row 0 holds a word that is no text"):
        tokens.examine(both([{"tokens": ["a", None], "ner_tags": ["O", "O"]}]), DataArguments())
    asked = {"question": "who", "context": "a film", "answers": {"text": ["film"], "answer_start": []}}
    with pytest.raises(InputError, match="as many texts as starts"):
        spans.examine(both([asked]), DataArguments())


def test_an_answer_without_content_is_named():
    chat = [{"role": "user", "content": "well?"}, {"role": "assistant", "content": " "}]
    with pytest.raises(InputError, match="row 0 has an answer without content"):
        sft.examine(both([{"messages": chat}]), DataArguments())


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (["B-A", "X"], "'X' stands beside tags of entities"),
        (["b-a", "o"], "'b-a' stands beside"),
        (["B", "I"], "'B' stands beside"),
        (["B-", "O"], "'B-' stands beside"),
        (["O", "O"], r"one tag only \(O\)"),
    ],
)
def test_tags_that_only_look_like_entities_are_refused(tags, message):
    with pytest.raises(InputError, match=message):
        tokens.examine(both([{"tokens": ["a", "dog"], "ner_tags": tags}] * 2), DataArguments())


def test_what_f1_means_of_parts_of_speech_is_said(caplog):
    tokens.examine(both([{"tokens": ["a", "dog"], "pos_tags": ["DT", "NN"]}]), DataArguments())
    assert "share of words with the right tag" in caplog.text


def test_a_start_that_is_missing_is_named():
    rows = [
        {"question": "q", "context": "a film", "answers": {"text": ["a", "film"], "answer_start": [0, None]}}
    ]
    with pytest.raises(InputError, match="training row 0 has the answers .*wanted as many texts as starts"):
        spans.examine(both(rows), DataArguments())


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "assistant", "content": "hello"}], "begins with an answer"),
        (
            [{"role": "user", "content": None}, {"role": "assistant", "content": "hello"}],
            "user's message without content",
        ),
    ],
)
def test_chats_that_answer_nothing_are_named(messages, message):
    with pytest.raises(InputError, match=f"training row 0 .*{message}"):
        sft.examine(both([{"messages": messages}]), DataArguments())


def test_two_texts_are_not_classified_by_the_first_alone():
    part = Dataset.from_dict(
        {
            "sentence1": [f"a man of the town {n}" for n in range(12)],
            "sentence2": [f"some of the town {n}" for n in range(12)],
            "label": [0, 1] * 6,
        }
    )
    with pytest.raises(InputError, match=r"'sentence2' holds text .*or set --task pairs to read both"):
        classification.examine(Rows(part, part, "rows"), DataArguments("rows"), pair=False)
    assert (
        classification.examine(Rows(part, part, "rows"), DataArguments("rows"), pair=True).columns.pair
        == "sentence2"
    )


def test_answers_with_fewer_places_are_named_by_their_row():
    row = {"question": "q", "context": "a b", "answers": ["a", "b"], "answer_start": [0]}
    with pytest.raises(InputError, match="row 0, column 'answers'"):
        spans.examine(both([row]), DataArguments())


def test_a_row_without_a_token_is_named():
    features = Dataset.from_dict({"row": [0, 1], "words": [[0], []]})
    with pytest.raises(InputError, match="Row 1 has no token"):
        tokens._report_windows(features, 2, 8)
