"""Windows and answers of extractive question answering, read by eye."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import make_tokenizer
from datasets import Dataset
from tokenizers import normalizers

from finetune.data import collate
from finetune.data.columns import Columns
from finetune.errors import InputError
from finetune.tasks.spans import NOWHERE, best_spans, encode, ranked, token_span

COLUMNS = Columns("question", "context", "answers")
CONTEXT = "the film was great and the actor was awful but we loved it"


def asked(question: str, answer: str | None, context: str = CONTEXT) -> dict:
    found = (
        {"text": [answer], "answer_start": [context.index(answer)]}
        if answer
        else {"text": [], "answer_start": []}
    )
    return {"question": question, "context": context, "answers": found}


def test_the_answers_tokens_are_labelled():
    processor = make_tokenizer("bert")
    (row,) = encode(
        Dataset.from_list([asked("was it good", "great and the actor")]), COLUMNS, processor, 32, None
    )
    start, end = row["labels"]
    assert processor.convert_ids_to_tokens(row["input_ids"][start : end + 1]) == [
        "great",
        "and",
        "the",
        "actor",
    ]
    assert [CONTEXT[a:b] for a, b in row["offsets"][start : end + 1]] == ["great", "and", "the", "actor"]
    assert [tuple(place) for place in row["offsets"][:5]] == [NOWHERE] * 5  # [CLS] was it good [SEP]


def test_windows_without_the_whole_answer_point_at_the_first_token():
    processor = make_tokenizer("bert")
    features = encode(
        Dataset.from_list([asked("film", "but we loved")]), COLUMNS, processor, 14, None, stride=3
    )
    # ten tokens of context in the first window, which ends with "but"
    assert features["row"][:] == [0, 0]
    assert features["labels"][0] == [0, 0]
    start, end = features["labels"][1]
    assert processor.convert_ids_to_tokens(features["input_ids"][1][start : end + 1]) == [
        "but",
        "we",
        "loved",
    ]


def test_a_question_without_answer_points_at_the_first_token():
    (row,) = encode(Dataset.from_list([asked("film", None)] * 1), COLUMNS, make_tokenizer("bert"), 32, None)
    assert row["labels"] == [0, 0]


def test_token_span_by_eye():
    offsets = [NOWHERE, (0, 3), (4, 8), (8, 9), NOWHERE]
    assert token_span(offsets, 4, 9) == (2, 3)
    assert token_span(offsets, 5, 7) == (2, 2)  # inside one token
    assert token_span(offsets, 4, 12) == (0, 0)  # goes on behind the window
    assert token_span([NOWHERE, (4, 8)], 0, 8) == (0, 0)  # begins before it
    assert token_span(offsets, -1, -1) == (0, 0)


def test_best_spans_keep_order_length_and_context():
    offsets = np.array([NOWHERE, (0, 1), (2, 3), (4, 5), NOWHERE])
    scores = np.array([[9.0, 9.0], [1.0, 0.0], [3.0, 1.0], [0.0, 2.0], [9.0, 9.0]])
    assert best_spans(scores, offsets, 3, 2) == [(5.0, 2, 5), (4.0, 2, 3), (2.0, 0, 3)]
    assert best_spans(scores, offsets, 9, 1) == [(4.0, 2, 3), (2.0, 4, 5), (1.0, 0, 1)]


def test_answers_of_all_windows_are_ranked_together():
    places = np.array([NOWHERE, (0, 3), (4, 8)])
    one = np.array([[0.0, 0.0], [5.0, 4.0], [0.0, 0.0]])
    two = np.array([[3.0, 3.0], [1.0, 2.0], [2.0, 9.0]])
    answers, none = ranked([(one, places), (two, places)], "the film", 3, 5)
    assert [(answer["text"], answer["score"]) for answer in answers] == [
        ("film", 11.0),
        ("the film", 10.0),
        ("the", 9.0),
    ]
    assert none == 0.0  # the lowest of both windows
    assert sum(answer["probability"] for answer in answers) == pytest.approx(
        1 / (1 + np.exp(-11) / (1 + np.exp(-1) + np.exp(-2)))
    )


def test_long_questions_are_cut_and_counted(caplog):
    (row,) = encode(
        Dataset.from_list([asked("film " * 30, "great")] * 1), COLUMNS, make_tokenizer("bert"), 32, None
    )
    assert row["length"] <= 32
    assert "1 questions are longer than 16 tokens" in caplog.text


def test_a_stride_that_leaves_no_room_is_refused():
    with pytest.raises(InputError, match="--stride 16 leaves nothing of 13 tokens"):
        encode(
            Dataset.from_list([asked("film", "great")]), COLUMNS, make_tokenizer("bert"), 32, None, stride=16
        )


def test_the_collator_stacks_both_ends():
    features = encode(
        Dataset.from_list([asked("film", "great"), asked("was it good", "awful")]),
        COLUMNS,
        make_tokenizer("bert"),
        32,
        None,
    )
    batch = collate.sequences(make_tokenizer("bert"))(list(features))
    assert batch["labels"].shape == (2, 2) and "offsets" not in batch


@pytest.mark.parametrize(("question", "context"), [("\u200b", CONTEXT), ("was it good", "\u200b\u200c")])
def test_texts_without_a_token_are_refused(question, context):
    processor = make_tokenizer("bert")
    processor.backend_tokenizer.normalizer = normalizers.BertNormalizer()
    with pytest.raises(InputError, match="nothing is left of the text"):
        encode(Dataset.from_list([asked(question, None, context)]), COLUMNS, processor, 24, None)
