"""PPO's arithmetic: penalties, rewards, advantages, losses. Knows tensors; knows no model and no text.

Read it from top to bottom: how far the policy is from the reference, what each token earned, how much better
that was than expected, and the two losses that follow. A step of training (ppo_trainer.py) calls it in this
order.

Everything is [batch, time] over the tokens of the answers, padded on the right; `mask` is 1 on real tokens,
the EOS included.
Losses come as one sum a row: who wants a mean divides by the number of tokens of the whole step, over all
processes.

  Schulman et al. 2016, High-dimensional continuous control using generalized advantage estimation
  Schulman et al. 2017, Proximal policy optimization algorithms
  Ziegler et al. 2019, Fine-tuning language models from human preferences
  Stiennon et al. 2020, Learning to summarize from human feedback
"""

from __future__ import annotations

import torch
from torch import Tensor

from finetune.errors import InputError

ESTIMATORS = ("k1", "k2", "k3")


def kl_estimate(log_probs: Tensor, reference: Tensor, kind: str = "k1") -> Tensor:
    """Estimates of KL(policy ‖ reference) from tokens that the policy sampled (Schulman 2020, Approximating
    KL divergence).

    With r = reference / policy: k1 = -log r (unbiased, can be negative), k2 = (log r)² / 2 (biased, low
    variance), k3 = r - 1 - log r (unbiased, never negative).

    Args:
        log_probs, reference: log-probabilities of the sampled tokens, [batch, time].

    Raises:
        InputError: an estimator that is none of the three.
    """
    log_r = reference - log_probs
    if kind == "k1":
        return -log_r
    if kind == "k2":
        return log_r.square() / 2
    if kind == "k3":
        # expm1 and not exp - 1: r is mostly near 1, where the difference would be rounding alone.
        return torch.expm1(log_r) - log_r
    raise InputError(
        f"Unknown KL estimator '{kind}'; wanted one of: {', '.join(ESTIMATORS)}. Set --kl_estimator"
    )


def adapted(coefficient: float, kl: float, target: float, gain: float = 0.1) -> float:
    """The KL coefficient β for the next step (Ziegler et al. 2019, section 2.2); kl and target are nats a
    sequence.

    e = clip((kl - target) / target, -0.2, 0.2) and β ← β (1 + gain · e): further than the target makes
    distance dearer.
    """
    # Held within a fifth, so that one noisy step can't throw β off.
    error = min(max((kl - target) / target, -0.2), 0.2)
    return coefficient * (1 + gain * error)


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, coefficient: float) -> Tensor:
    """What each token earned: -coefficient · KL, and at the answer's last real token, wherever padding
    begins, its score too.

    Summed over an answer and with k1 it is R = r - β log(policy / reference) (Ziegler et al. 2019, eq. 2;
    Stiennon et al. 2020, section 3.4); a token at a time, the value model can tell which token was dear.

    Args:
        scores: [batch].
        kl: estimates a token, [batch, time].

    Raises:
        ValueError: an answer without any token has no place for its score.
    """
    lengths = mask.sum(1).long()
    if bool((lengths == 0).any()):
        raise ValueError("Every answer needs one token or more: an empty one still has its EOS")
    # Padding earns nothing, whatever stands there.
    rewards = -coefficient * kl * mask
    # Added and not set: the last token has its penalty too.
    return rewards.scatter_add(1, (lengths - 1)[:, None], scores[:, None].to(rewards.dtype))


def advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16); all inputs [batch, time], padding
    masked out.

    How much better a token did than its value promised, δ_t = r_t + γ V_{t+1} - V_t, and how much better its
    followers did, in
    shares that shrink by γλ a token: A_t = Σ_l (γλ)^l δ_{t+l} = δ_t + γλ A_{t+1}, from the last token back to
    the first.
    The value after the last real token is 0: an answer ends there.
    """
    found = torch.zeros_like(rewards)
    next_advantage = next_value = torch.zeros_like(rewards[:, 0])
    # From behind, each from the one after it: one pass instead of a sum a token.
    for t in reversed(range(rewards.shape[1])):
        surprise = rewards[:, t] + gamma * next_value - values[:, t]
        # The mask ends the recursion: what padding holds goes nowhere.
        found[:, t] = next_advantage = (surprise + gamma * lam * next_advantage) * mask[:, t]
        next_value = values[:, t] * mask[:, t]
    return found


def moments(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over real tokens."""
    # Float64: a step has thousands of tokens, and their squares lose digits in float32.
    x, mask = x.double(), mask.double()
    count = mask.sum().clamp(min=1)
    mean = (x * mask).sum() / count
    return mean, ((x - mean).square() * mask).sum() / count


def whiten(x: Tensor, mask: Tensor, shift: bool = True) -> Tensor:
    """Variance 1 over the real tokens, and mean 0 where `shift`; padding stays 0.

    Advantages are shifted; rewards, where they are whitened at all, keep their mean, since their sign says
    what is good.
    """
    mean, variance = moments(x, mask)
    # 1e-8 where all are alike: 0 and not a division by it.
    white = (x.double() - mean) * torch.rsqrt(variance + 1e-8)
    return ((white if shift else white + mean) * mask).to(x.dtype)


def step_share(scores: Tensor, penalised: Tensor, start: float = 0.0, least: float = 0.1) -> float:
    """How much of a full step is worth taking: the deviation of the scores in the larger of two, at most 1.

    Whitened advantages, and AdamW after them, make each step as large as any other, whatever it is made of.
    Two times most of it is
    noise: where the penalty outweighs the scores, close to the reference, what is whitened is the noise of
    its estimate, and full steps would carry the policy about however large the coefficient; and where all
    answers have come to score alike, it is the error of the values, and full steps would throw away what was
    learnt. So the scores' deviation is measured in that of scores and penalties together, and in that of the
    start's own scores. This project's own: no paper has it.

    Args:
        scores, penalised: of whole answers, [batch].
        start: deviation of the start's own scores, in the same unit; 0 where it isn't known.
        least: what is always taken, so that a penalty alone leads back to the reference.
    """
    # By all, not by n - 1: one answer alone has a deviation of 0 and not NaN.
    whole = max(start, float(penalised.double().std(correction=0)))
    return min(1.0, max(least, float(scores.double().std(correction=0)) / whole)) if whole > 0 else 1.0


def policy_loss(
    log_probs: Tensor, old: Tensor, advantage: Tensor, mask: Tensor, clip: float = 0.2
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate, to be minimised (Schulman et al. 2017, eq. 7): -min(ρ A, clip(ρ, 1 - ε, 1 + ε)
    A).

    ρ = policy / old policy of the token that was sampled. Past the clip a gain counts no more, and the
    gradient is 0; a loss counts in full, so that a token can always come back.

    Returns:
        Its sum over each answer [batch], and how many tokens were held by the clip [batch].
    """
    # Of log-probabilities: the ratio of two tiny probabilities would lose its digits.
    ratio = torch.exp(log_probs - old)
    free, clipped = -advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)
    # The larger loss, that is the smaller gain: a step is never rewarded for going further than the clip.
    return (torch.maximum(free, clipped) * mask).sum(1), ((clipped > free) * mask).sum(1)


def value_loss(
    values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, clip: float = 0.2
) -> tuple[Tensor, Tensor]:
    """Half the squared error, the worse of the value and the value held within `clip` of the old one.

    The papers don't have it; the code of Schulman et al. 2017 and of Ziegler et al. 2019 does.

    Returns:
        Its sum over each answer [batch], and how many tokens were held by the clip [batch].
    """
    # The clip is in the unit of values and no share, as the policy's is.
    held = old + (values - old).clamp(-clip, clip)
    free, clipped = (values - returns).square() / 2, (held - returns).square() / 2
    return (torch.maximum(free, clipped) * mask).sum(1), ((clipped > free) * mask).sum(1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of the next token's distribution; logits [..., vocabulary]."""
    log_probs = logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over real tokens; 1 is perfect, 0 no better than a
    constant.
    """
    # Returns that don't vary can't be explained; 0 is said and not a division by it.
    spread = moments(returns, mask)[1]
    return float(1 - moments(returns - values, mask)[1] / spread) if spread > 0 else 0.0
