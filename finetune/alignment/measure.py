"""A policy and held-out prompts → reward, KL to the reference, length. Knows policies and rewards; trains
nothing.

Every policy is measured with the same uniforms, so that two measurements are pairs, prompt by prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from finetune.alignment.policy import Policy
from finetune.alignment.ppo import kl_estimate
from finetune.alignment.prompts import answer_texts, prompt_ids
from finetune.alignment.rewards import AskedRewards, Rewards
from finetune.alignment.rollout import SamplingArguments, draw_uniforms, pad_left, sample_answers, stop_tokens

SEED = 1_000_003  # the same uniforms for every policy that is measured


@torch.no_grad()
def measure(
    policy: Policy, processor: Any, rows: Sequence[AskedRewards], truth: Rewards, *,
    sampling: SamplingArguments, batch_size: int = 32
) -> tuple[dict[str, float], list[dict[str, Any]]]:  # fmt: skip
    """Figures of sampled answers, and the answers with their scores.

    Returns:
        reward (mean, of those that a reward applies to) with its standard error, each reward's own mean and
        deviation as `rewards/NAME/...`, kl (nats a sequence, by k1) with its error, length (tokens), ended,
        empty (shares). Rewards are added
        up as they are, never normalised: measurements could not be compared otherwise.
    """
    device = policy.network.device
    ids = [prompt_ids(processor, row.prompt, row.tools) for row in rows]
    # Step 0 at every measurement: what differs between two is the policy and not the draw.
    uniforms = draw_uniforms(SEED, 0, range(len(ids)), sampling.max_new_tokens)
    kl: list[float] = []
    # As in training, so that both count KL alike.
    with policy.autocast():
        answers = sample_answers(
            policy.network, ids, uniforms, sampling, stop_tokens(policy.network, processor)
        )
        # In parts: answers are made in batches of their own, and scoring needs memory for whole sequences.
        for start in range(0, len(ids), batch_size):
            part = slice(start, start + batch_size)
            tensors = [t.to(device) for t in (*pad_left(ids[part], 0), answers.ids[part], answers.mask[part])]
            log_probs = policy(*tensors, sampling.temperature, False)[0]
            reference = policy.reference_log_probs(*tensors, sampling.temperature)
            # Summed over an answer: KL of sequences, which is what a target is given in.
            kl += (kl_estimate(log_probs, reference) * tensors[-1]).sum(1).tolist()
    texts = answer_texts(processor, ids, answers.ids, answers.mask)
    empty = np.array([not text.strip() for text in texts])
    scores = truth.plain().combine(truth.ask(rows, texts), empty)
    # Answers that no reward applies to have no part in the mean.
    total = scores.total[~np.isnan(scores.total)].tolist()
    figures = {
        "reward": float(np.mean(total)) if total else 0.0, "error": standard_error(total),
        "kl": float(np.mean(kl)),
        "kl_error": standard_error(kl), "length": float(answers.mask.sum(1).mean()),
        "ended": float(answers.ended.float().mean()), "empty": float(empty.mean()),
        **truth.figures(scores.parts),
    }  # fmt: skip
    told = zip(rows, texts, scores.total.tolist(), answers.ended.tolist(), strict=True)
    return figures, [
        # JSON has no NaN.
        {"prompt": row.prompt, "answer": text, "score": None if math.isnan(score) else score, "ended": ended}
        for row, text, score, ended in told
    ]


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean."""
    # By n - 1: these are a sample of the prompts that there could be.
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
