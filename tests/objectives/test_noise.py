"""Damage by eye; chance by counts that it must keep."""

import itertools

import numpy as np
import pytest

from finetune.objectives import noise


def rng(seed=0):
    return np.random.default_rng(seed)


def test_spans_become_sentinels():
    assert noise.corrupt([1, 2, 3, 4, 5, 6], [(1, 3), (4, 5)], [99, 98, 97]) == (
        [1, 99, 4, 98, 6],
        [99, 2, 3, 98, 5, 97],
    )
    assert noise.corrupt([1, 2, 3], [(1, 3)], [99, 0]) == ([1, 99], [99, 2, 3, 0])
    assert noise.corrupt([7], [], [99]) == ([7], [99])


def test_masked_tokens_and_their_labels():
    damaged, labels = noise.mask_tokens([5, 6, 7, 8], [1, 3], [103, 8])
    assert damaged == [5, 103, 7, 8]
    assert labels == [-100, 6, -100, 8]


def test_a_span_of_nothing_is_a_mask_put_in():
    assert noise.infill([1, 2, 3, 4], [(1, 1), (2, 4)], 99) == [1, 99, 2, 99]


def test_sentences_in_another_order():
    assert noise.permute([1, 2, 3, 4, 5, 6], [2, 3, 6], [2, 0, 1]) == [4, 5, 6, 1, 2, 3]


def test_deleted_tokens_leave_no_trace():
    assert noise.delete([1, 2, 3, 4], [0, 2]) == [2, 4]


@pytest.mark.parametrize(("given", "raw", "target"), [(512, 568, 114), (256, 284, 58), (128, 141, 29)])
def test_lengths_of_the_paper(given, raw, target):
    assert noise.raw_length(given, 0.15, 3.0) == (raw, target)
    spans = noise.draw_spans(rng(), raw, 0.15, 3.0)
    damaged, wanted = noise.corrupt(range(raw), spans, [-1] * (len(spans) + 1))
    assert (len(damaged) + 1, len(wanted)) == (given, target)  # one for the input's own end token


def test_spans_keep_their_numbers_wherever_they_fall():
    starts = set()
    for seed in range(50):
        spans = noise.draw_spans(rng(seed), 40, 0.3, 3.0)
        assert (sum(end - start for start, end in spans), len(spans)) == (12, 4)
        borders = [0, *(edge for span in spans for edge in span)]
        assert all(
            one < other for one, other in itertools.pairwise(borders)
        )  # none first, none touching, none empty
        assert spans[-1][1] <= 40
        starts.add(spans[0][0])
    assert len(starts) > 5


def test_a_word_alone_stays_whole():
    assert noise.draw_spans(rng(), 1, 0.15, 3.0) == []
    assert noise.draw_spans(rng(), 2, 0.15, 3.0) == [(1, 2)]


def test_places_are_a_share_of_what_may_be_masked():
    words = [-1, *range(20), -1]
    drawn = [noise.draw_places(rng(seed), words, 0.15) for seed in range(40)]
    assert {len(places) for places in drawn} == {3}
    assert {place for places in drawn for place in places} == set(range(1, 21))
    assert noise.draw_places(rng(), [-1, 0, -1], 0.15) == [1]
    assert noise.draw_places(rng(), [-1, -1], 0.15) == []


def test_whole_words_go_together():
    words = [-1, 0, 0, 0, 1, 2, 2, 3, -1]
    for seed in range(40):
        places = noise.draw_places(rng(seed), words, 0.5, whole_words=True)
        for word in range(4):
            members = [i for i, w in enumerate(words) if w == word]
            assert len(set(members) & set(places)) in (0, len(members))
        assert 1 <= len(places) <= 4


def test_words_of_two_documents_are_two_words():
    words = [-1, 0, -1, -1, 0, -1]
    assert {tuple(noise.draw_places(rng(seed), words, 0.5, whole_words=True)) for seed in range(20)} == {
        (1,),
        (4,),
    }


def test_eighty_ten_ten():
    ids = [5] * 20000
    new = noise.draw_replacements(rng(), ids, range(20000), 103, np.arange(1000, 2000))
    masked, kept = new.count(103), new.count(5)
    assert masked / 20000 == pytest.approx(0.8, abs=0.01)
    assert kept / 20000 == pytest.approx(0.1, abs=0.01)
    assert set(new) <= {103, 5, *range(1000, 2000)}


def test_infilling_takes_the_share_it_was_asked_for():
    sizes = []
    for seed in range(200):
        spans = noise.draw_infilling(rng(seed), 100, 0.3, 3.0)
        assert sum(end - start for start, end in spans) == 30
        assert all(end < start for (_, end), (start, _) in itertools.pairwise(spans))
        assert all(0 <= start <= end <= 100 for start, end in spans)
        sizes += [end - start for start, end in spans]
    assert 0 in sizes
    assert np.mean(sizes) == pytest.approx(3.0, abs=0.25)


def test_infilling_of_short_texts():
    for length in range(6):
        spans = noise.draw_infilling(rng(3), length, 0.3, 3.0)
        assert all(0 <= start <= end <= length for start, end in spans)
