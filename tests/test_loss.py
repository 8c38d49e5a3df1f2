"""Sums and counts by hand."""

import math

import pytest
import torch

from finetune.loss import cross_entropy, items

LOGITS = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])


def test_one_sum_a_row():
    assert cross_entropy(LOGITS, torch.tensor([0, 1])).tolist() == pytest.approx([math.log(4 / 3), math.log(2)])


def test_ignored_labels_count_for_nothing():
    logits = LOGITS.repeat(2, 1, 1)
    labels = torch.tensor([[0, -100], [0, 1]])
    assert cross_entropy(logits, labels).tolist() == pytest.approx([math.log(4 / 3), math.log(4 / 3) + math.log(2)])
    assert items(labels).tolist() == [1, 2]
    assert items(torch.tensor([3, -100])).tolist() == [1, 0]


def test_smoothing_and_weights():
    smoothed = cross_entropy(LOGITS[:1], torch.tensor([0]), smoothing=0.2)
    assert smoothed.item() == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))
    weighted = cross_entropy(LOGITS[:1], torch.tensor([0]), weights=torch.tensor([2.0, 1.0]))
    assert weighted.item() == pytest.approx(2 * math.log(4 / 3))


def test_float32_even_for_bf16_logits():
    assert cross_entropy(LOGITS.bfloat16(), torch.tensor([0, 1])).dtype == torch.float32
