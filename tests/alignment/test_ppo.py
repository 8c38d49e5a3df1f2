"""PPO's arithmetic against hand computation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor

from finetune.alignment import ppo
from finetune.errors import InputError

ONES = torch.ones(1, 3)


def test_advantages_by_hand():
    # last token first: 1-0.3 = 0.7; 0+0.3-0.2 + 0.95·0.7 = 0.765; 0+0.2-0.1 + 0.95·0.765 = 0.82675
    found = ppo.advantages(tensor([[0.0, 0.0, 1.0]]), tensor([[0.1, 0.2, 0.3]]), ONES, gamma=1.0, lam=0.95)
    torch.testing.assert_close(found, tensor([[0.82675, 0.765, 0.7]]))


def test_advantages_discount():
    # γ = 0.5, λ = 0.5: 2-1 = 1; 1+0.5·1-1 + 0.25·1 = 0.75
    found = ppo.advantages(tensor([[1.0, 2.0]]), tensor([[1.0, 1.0]]), torch.ones(1, 2), gamma=0.5, lam=0.5)
    torch.testing.assert_close(found, tensor([[0.75, 1.0]]))


def test_advantages_of_unequal_lengths_are_those_of_each_alone():
    rewards, values = torch.randn(2, 4), torch.randn(2, 4)
    mask = tensor([[1.0, 1, 1, 1], [1, 1, 0, 0]])
    together = ppo.advantages(rewards, values, mask)
    torch.testing.assert_close(
        together[1, :2], ppo.advantages(rewards[1:, :2], values[1:, :2], torch.ones(1, 2))[0]
    )
    assert together[1, 2:].eq(0).all()


def test_lambda_one_is_return_minus_value():
    rewards, values, mask = torch.randn(3, 5), torch.randn(3, 5), torch.ones(3, 5)
    returns = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(ppo.advantages(rewards, values, mask, lam=1.0), returns - values)


def test_kl_estimators_by_hand():
    log_probs, reference = tensor([[math.log(0.5)]]), tensor([[math.log(0.25)]])
    assert ppo.kl_estimate(log_probs, reference, "k1").item() == pytest.approx(math.log(2))
    assert ppo.kl_estimate(log_probs, reference, "k2").item() == pytest.approx(math.log(2) ** 2 / 2)
    assert ppo.kl_estimate(log_probs, reference, "k3").item() == pytest.approx(0.5 - 1 + math.log(2))


def test_kl_estimators_agree_in_expectation():
    generator = torch.Generator().manual_seed(0)
    policy = torch.randn(50, generator=generator).log_softmax(0)
    reference = (policy + 0.05 * torch.randn(50, generator=generator)).log_softmax(0)
    exact = (policy.exp() * (policy - reference)).sum().item()
    expected = {
        kind: (policy.exp() * ppo.kl_estimate(policy, reference, kind)).sum().item()
        for kind in ppo.ESTIMATORS
    }
    assert expected["k1"] == pytest.approx(exact, rel=1e-4)
    assert expected["k3"] == pytest.approx(exact, rel=1e-3)
    assert expected["k2"] == pytest.approx(exact, rel=0.05)  # biased, in the third order only


def test_k3_is_never_negative():
    assert ppo.kl_estimate(torch.randn(1000), torch.randn(1000), "k3").min() >= 0
    assert ppo.kl_estimate(torch.randn(1000), torch.randn(1000), "k1").min() < 0


def test_an_unknown_estimator_is_refused():
    with pytest.raises(InputError, match="--kl_estimator"):
        ppo.kl_estimate(ONES, ONES, "k4")


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(6.0, 0.1), (12.0, 0.102), (0.0, 0.098), (6.6, 0.101)],
    ids=["on target", "held above", "held below", "between"],
)
def test_adaptive_coefficient(kl, expected):
    assert ppo.adapted(0.1, kl, target=6.0) == pytest.approx(expected)


def test_the_score_stands_at_the_last_real_token():
    mask = tensor([[1.0, 1, 1], [1, 0, 0]])
    kl = torch.full((2, 3), 0.5)
    found = ppo.token_rewards(tensor([2.0, 3.0]), kl, mask, coefficient=0.1)
    torch.testing.assert_close(found, tensor([[-0.05, -0.05, 1.95], [2.95, 0, 0]]))


def test_an_answer_without_a_token_has_no_place_for_its_score():
    with pytest.raises(ValueError, match="EOS"):
        ppo.token_rewards(tensor([1.0]), torch.zeros(1, 2), torch.zeros(1, 2), 0.1)


def test_whitening_sees_real_tokens_alone():
    x, mask = tensor([[1.0, 3.0, 1e6], [5.0, 7.0, -1e6]]), tensor([[1.0, 1, 0], [1, 1, 0]])
    found = ppo.whiten(x, mask)
    torch.testing.assert_close(found, tensor([[-3.0, -1, 0], [1, 3, 0]]) / math.sqrt(5))
    unshifted = ppo.whiten(x, mask, shift=False)
    torch.testing.assert_close(unshifted[:, :2], found[:, :2] + 4)
    assert unshifted[:, 2].eq(0).all()


def test_a_steps_share_by_hand():
    scores = tensor([0.0, 2.0])  # deviation 1
    assert ppo.step_share(scores, scores) == 1
    assert ppo.step_share(scores, tensor([0.0, 4.0])) == pytest.approx(0.5)
    assert ppo.step_share(scores, tensor([0.0, 1.0])) == 1  # a penalty may even scores out
    assert ppo.step_share(scores, tensor([0.0, 2000.0])) == 0.1
    assert ppo.step_share(torch.zeros(2), torch.zeros(2)) == 1


def test_policy_loss_by_hand():
    # ratios 1.5, 1.5, 0.5, 0.5 with advantages 1, -1, 1, -1 and clip 0.2: gains are held, losses are not
    ratio, advantage = tensor([[1.5, 1.5, 0.5, 0.5]]), tensor([[1.0, -1.0, 1.0, -1.0]])
    loss, held = ppo.policy_loss(ratio.log(), torch.zeros(1, 4), advantage, torch.ones(1, 4), clip=0.2)
    torch.testing.assert_close(loss, tensor([-1.2 + 1.5 - 0.5 + 0.8]))
    assert held.item() == 2


def test_policy_loss_has_no_gradient_where_it_is_held():
    log_probs = tensor([[math.log(1.5), math.log(1.1)]], requires_grad=True)
    ppo.policy_loss(log_probs, torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2))[0].sum().backward()
    torch.testing.assert_close(log_probs.grad, tensor([[0.0, -1.1]]))


def test_value_loss_by_hand():
    # far from the old value the held one counts (0.2 instead of 1): error 0.8; inside the clip the value
    # itself
    loss, held = ppo.value_loss(
        tensor([[1.0, 0.1]]), tensor([[0.0, 0.0]]), tensor([[1.0, 1.0]]), torch.ones(1, 2), clip=0.2
    )
    torch.testing.assert_close(loss, tensor([0.8**2 / 2 + 0.9**2 / 2]))
    assert held.item() == 1


def test_held_tokens_come_back_and_gains_stop_at_the_clip():
    # ρ = 1.5: beyond the clip a gain has no gradient, a loss has -A ρ
    log_probs = tensor([[math.log(1.5), math.log(1.5)]], requires_grad=True)
    ppo.policy_loss(log_probs, torch.zeros(1, 2), tensor([[1.0, -1.0]]), torch.ones(1, 2))[0].sum().backward()
    torch.testing.assert_close(log_probs.grad, tensor([[0.0, 1.5]]))


@pytest.mark.parametrize("loss", [ppo.policy_loss, ppo.value_loss])
def test_padding_adds_nothing_to_a_loss(loss):
    arguments = [torch.randn(2, 3) for _ in range(3)]
    padded = [torch.cat([a, torch.full((2, 1), 50.0)], 1) for a in arguments]
    mask = torch.ones(2, 3)
    for short, long in zip(
        loss(*arguments, mask), loss(*padded, torch.cat([mask, torch.zeros(2, 1)], 1)), strict=True
    ):
        torch.testing.assert_close(short, long)


def test_entropy():
    assert ppo.entropy(torch.zeros(7)).item() == pytest.approx(math.log(7))
    assert ppo.entropy(tensor([1000.0, 0.0])).item() == pytest.approx(0, abs=1e-6)


def test_explained_variance():
    returns, mask = tensor([[1.0, 2.0, 3.0, 99.0]]), tensor([[1.0, 1, 1, 0]])
    assert ppo.explained_variance(returns, returns, mask) == pytest.approx(1)
    assert ppo.explained_variance(torch.zeros_like(returns), returns, mask) == pytest.approx(0)
    assert ppo.explained_variance(-returns, returns, mask) == pytest.approx(-3)
