from __future__ import annotations

import pytest

from finetune.metrics.spans import answer_figures, best_threshold, exact_match, normalised_answer, word_f1


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The  Eiffel Tower.", "eiffel tower"),
        ("an apple a day", "apple day"),
        ("U.S.A.", "usa"),
        ("the theatre", "theatre"),
        ("well-known", "wellknown"),
        ("The", ""),
        ("“quoted”", "“quoted”"),  # the script knows ASCII punctuation alone
    ],
)
def test_normalising_follows_the_official_rules(text, wanted):
    assert normalised_answer(text) == wanted


def test_f1_counted_by_hand():
    # said "big red car", wanted "red car park": two words in common, precision 2/3, recall 2/3
    assert word_f1("the big red car", "red car park") == pytest.approx(2 / 3)
    assert word_f1("car car", "car") == pytest.approx(2 * 1 / 3)  # a word counts as often as both have it
    assert word_f1("lorry", "car") == 0
    assert exact_match("The car!", "car") == 1


def test_an_empty_answer_is_right_only_where_there_is_none():
    assert word_f1("", "") == 1
    assert word_f1("", "car") == word_f1("car", "") == 0


def test_the_best_of_several_references_counts():
    assert answer_figures(
        ["Denver Broncos", "42"], [["The Broncos", "denver broncos"], ["forty-two", "42 years"]]
    ) == pytest.approx({"exact_match": 0.5, "f1": (1 + 2 / 3) / 2})


def test_questions_without_answer_are_counted_apart():
    figures = answer_figures(["", "car", "red car"], [[], [], ["car"]])
    assert figures == pytest.approx(
        {
            "exact_match": 1 / 3,
            "f1": (1 + 0 + 2 / 3) / 3,
            "accuracy_unanswerable": 0.5,
            "f1_answerable": 2 / 3,
        }
    )


def test_threshold_leaves_the_right_questions_unanswered():
    # two answerable ones with low margins, two others with high ones; a tie can't be cut in two
    threshold, f1 = best_threshold([-3.0, -1.0, 2.0, 4.0], [1.0, 0.5, 0.0, 0.0], [True, True, False, False])
    assert (threshold, f1) == (-1.0, (1.0 + 0.5 + 2) / 4)
    assert best_threshold([1.0, 1.0], [1.0, 0.0], [True, False])[1] == 0.5
    assert best_threshold([0.0], [0.0], [False]) == (
        -1.0,
        1.0,
    )  # best to leave it unanswered: the threshold lies below its margin


def test_no_reference_and_article_only_reference_want_nothing():
    assert answer_figures(["the"], [["the"]])["exact_match"] == 1
    assert answer_figures([""], [["the"]])["accuracy_unanswerable"] == 1
