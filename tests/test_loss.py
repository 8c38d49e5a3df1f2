"""Sums and counts by hand."""

import math

import pytest
import torch
from bounds import assert_near

from finetune import loss
from finetune.loss import ENTROPY, cross_entropy, items, placed_cross_entropy, token_costs

LOGITS = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])


def test_one_sum_a_row():
    assert cross_entropy(LOGITS, torch.tensor([0, 1])).tolist() == pytest.approx(
        [math.log(4 / 3), math.log(2)]
    )


def test_ignored_labels_count_for_nothing():
    logits = LOGITS.repeat(2, 1, 1)
    labels = torch.tensor([[0, -100], [0, 1]])
    assert cross_entropy(logits, labels).tolist() == pytest.approx(
        [math.log(4 / 3), math.log(4 / 3) + math.log(2)]
    )
    assert items(labels).tolist() == [1, 2]
    assert items(torch.tensor([3, -100])).tolist() == [1, 0]


def test_smoothing_and_weights():
    smoothed = cross_entropy(LOGITS[:1], torch.tensor([0]), smoothing=0.2)
    assert smoothed.item() == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))
    weighted = cross_entropy(LOGITS[:1], torch.tensor([0]), weights=torch.tensor([2.0, 1.0]))
    assert weighted.item() == pytest.approx(2 * math.log(4 / 3))


def test_float32_even_for_bf16_logits():
    assert cross_entropy(LOGITS.bfloat16(), torch.tensor([0, 1])).dtype == torch.float32


@pytest.mark.parametrize("lines", [1, 7, 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_in_parts_is_that_of_the_whole(lines, smoothing, monkeypatch):
    monkeypatch.setattr(
        loss, "_parts", lambda logits: [slice(start, start + lines) for start in range(0, len(logits), lines)]
    )
    labels = torch.tensor([[3, -100, 0], [49, 7, -100], [-100, 1, 1], [2, 2, 2]])
    found, wanted = (
        torch.randn(12, 50, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2)
    )
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0])
    counted = labels.flatten().ne(-100)
    one = loss.packed_cross_entropy(found[counted], labels, smoothing=smoothing)
    other = cross_entropy(wanted.view(4, 3, 50), labels, smoothing=smoothing)
    torch.testing.assert_close(one, other)
    (one * weights).sum().backward()
    (other * weights).sum().backward()
    torch.testing.assert_close(found.grad, wanted.grad)


def test_cross_entropy_of_bf16_logits_is_computed_in_float32():
    logits = (5 * torch.randn(6, 50, generator=torch.Generator().manual_seed(0))).bfloat16().requires_grad_()
    labels = torch.arange(6)[None]
    found = loss.packed_cross_entropy(logits, labels)
    torch.testing.assert_close(found, cross_entropy(logits[None], labels).detach())
    found.sum().backward()
    assert logits.grad.dtype == torch.bfloat16


def test_a_banned_class_costs_nothing_where_it_is_not_the_label():
    """Losses, entropies and slopes are those of the classes that are left."""
    torch.manual_seed(0)
    left, labels = torch.randn(3, 5), torch.tensor([[1, 4, 0]])
    banned = torch.cat([left, torch.full((3, 1), -torch.inf)], dim=1)
    found = []
    for logits in (left, banned):
        logits.requires_grad_()
        costs = token_costs(logits, labels[0], entropies=True)
        value = placed_cross_entropy(costs, labels) + costs[:, ENTROPY].sum()
        (slopes,) = torch.autograd.grad(value.sum(), logits)
        found.append([value.detach(), slopes[:, :5]])
        assert not slopes[:, 5:].any()
    assert_near(found[1], found[0])
