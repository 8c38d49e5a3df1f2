from __future__ import annotations

import pytest
import sacrebleu
from rouge_score import rouge_scorer

from finetune.metrics import texts

GOLD = ["the cat sat on the mat", "there is a dog in the garden", "two men are playing chess"]
SAID = ["the cat sat on a mat", "a dog runs in the garden", "two men playing chess outside"]


def test_figures_are_those_of_sacrebleu_and_rouge_score():
    figures = texts.text_figures(SAID, GOLD)
    assert figures["bleu"] == sacrebleu.corpus_bleu(SAID, [GOLD]).score
    assert figures["chrf"] == sacrebleu.corpus_chrf(SAID, [GOLD]).score
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for name in ("rouge1", "rouge2", "rougeL"):
        mean = sum(scorer.score(gold, said)[name].fmeasure for said, gold in zip(SAID, GOLD, strict=True)) / 3
        assert figures[name] == pytest.approx(mean)


def test_rouge_counted_by_hand():
    figures = texts.text_figures(["the cat sat"], ["the cat lay down"])
    # unigrams: 2 of 3 said, 2 of 4 wanted; bigrams: 1 of 2 said, 1 of 3 wanted; longest common subsequence:
    # "the cat"
    assert figures["rouge1"] == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert figures["rouge2"] == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert figures["rougeL"] == figures["rouge1"]


def test_a_perfect_text_gets_full_marks():
    figures = texts.text_figures(GOLD, [f" {text} " for text in GOLD])
    assert figures == pytest.approx(
        {"rouge1": 1, "rouge2": 1, "rougeL": 1, "bleu": 100, "chrf": 100, "length_ratio": 1, "exact_match": 1}
    )


def test_length_ratio_is_over_the_corpus():
    assert texts.text_figures(["a b c", "d"], ["a b", "c d e f g h"])["length_ratio"] == 4 / 8


def test_empty_texts_score_nothing():
    figures = texts.text_figures(["", ""], ["a b c d", "e f g h"])
    assert set(figures.values()) == {0.0}


def test_unequal_numbers_of_texts_are_refused():
    with pytest.raises(ValueError, match="1 texts and 2 references"):
        texts.text_figures(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="one at least"):
        texts.text_figures([], [])


def test_signatures_name_version_and_settings():
    signatures = texts.signatures()
    assert signatures["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert "nc:6|nw:0" in signatures["chrf_signature"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5-10 of them", 10),
        ("= 12-7=5.", 5),
        ("it fell to -3", -3),
        ("(-4)", -4),
        ("x-7", 7),
        ("$1,234.50", 1234.5),
        ("none", None),
    ],
)
def test_a_minus_is_no_dash(text, number):
    assert texts.final_number(text) == number


def test_a_reference_without_a_number_is_never_met():
    assert texts.ends_in_same_number("#### 7", "so #### 7.0")
    assert not texts.ends_in_same_number("nothing", "#### none")


def test_word_errors_are_counted_by_hand():
    """One replaced, one missing, one too many: 3 of 9 words."""
    said, wanted = ["HH AH0 L OW0", "W ER1 L D X"], ["HH AH1 L OW0 Z", "W ER1 L D"]
    assert texts.word_error_rate(said, wanted) == pytest.approx(3 / 9)
    assert texts.edit_distance("kitten", "sitting") == 3 and texts.edit_distance("", "abc") == 3
    with pytest.raises(ValueError, match="No reference has a word"):
        texts.word_error_rate(["a"], [" "])
