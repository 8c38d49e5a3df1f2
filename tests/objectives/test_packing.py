"""Pieces and rows by eye."""

import numpy as np
import pytest

from finetune.objectives import packing


def test_pieces():
    assert packing.cut_pieces(7, 3) == [(0, 3), (3, 6), (6, 7)]
    assert packing.cut_pieces(6, 3) == [(0, 3), (3, 6)]
    assert packing.cut_pieces(2, 3) == [(0, 2)]
    assert packing.cut_pieces(7, 4, overlap=1) == [(0, 4), (3, 7)]
    assert packing.cut_pieces(8, 4, overlap=1) == [(0, 4), (3, 7), (6, 8)]
    assert packing.cut_pieces(1, 4, overlap=1) == [(0, 1)]


@pytest.mark.parametrize("length", range(2, 30))
def test_every_token_is_predicted_once(length):
    predicted = [t for start, end in packing.cut_pieces(length, 5, overlap=1) for t in range(start + 1, end)]
    assert predicted == list(range(1, length))


def test_the_fullest_row_with_room_takes_the_next_piece():
    assert packing.fill([5, 3, 2, 4, 1], 6) == [[0, 4], [3, 2], [1]]
    assert packing.fill([], 6) == []


def test_rows_hold_every_piece_once_and_nearly_fill():
    lengths = np.random.default_rng(0).integers(1, 128, 2000).tolist()
    rows = packing.fill(lengths, 128)
    assert sorted(packing.joined(rows)) == list(range(2000))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 128
    assert sum(lengths) / (len(rows) * 128) > 0.98


def test_positions_documents_and_labels_of_a_row():
    assert packing.restarting([2, 3]) == [0, 1, 0, 1, 2]
    assert packing.restarting([2, 1], start=2) == [2, 3, 2]
    assert packing.numbered_documents([2, 3]) == [0, 0, 1, 1, 1]
    assert packing.next_tokens([7, 8, 4, 5, 6], [2, 3]) == [8, -100, 5, 6, -100]
