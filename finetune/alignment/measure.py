"""A policy and held-out prompts → mean true reward and KL to the reference. Knows policies and rewards; trains nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from finetune.alignment.policy import Policy
from finetune.alignment.ppo import kl_estimate
from finetune.alignment.prompts import answer_texts, prompt_ids
from finetune.alignment.rewards import Prompt, Reward, checked
from finetune.alignment.rollout import SamplingArguments, draw_uniforms, pad_left, sample_answers, stop_tokens

SEED = 1_000_003  # the same uniforms for every policy that is measured


@torch.no_grad()
def measure(
    policy: Policy, processor: Any, prompts: Sequence[Prompt], truth: Reward, *, sampling: SamplingArguments,
    empty_score: float = -1.0, batch_size: int = 32,
) -> tuple[dict[str, float], list[dict[str, Any]]]:  # fmt: skip
    """Mean score with its standard error, mean sequence KL (nats, by k1) and mean length of sampled answers; the answers."""
    device = policy.network.device
    ids = [prompt_ids(processor, prompt) for prompt in prompts]
    uniforms = draw_uniforms(SEED, 0, range(len(ids)), sampling.max_new_tokens)
    kl = []
    with policy.autocast():
        answers = sample_answers(
            policy.network, ids, uniforms, sampling, stop_tokens(policy.network, processor)
        )
        for start in range(0, len(ids), batch_size):
            part = slice(start, start + batch_size)
            tensors = [t.to(device) for t in (*pad_left(ids[part], 0), answers.ids[part], answers.mask[part])]
            log_probs = policy(*tensors, sampling.temperature, False)[0]
            reference = policy.reference_log_probs(*tensors, sampling.temperature)
            kl += (kl_estimate(log_probs, reference) * tensors[-1]).sum(1).tolist()
    texts = answer_texts(processor, ids, answers.ids, answers.mask)
    scores = checked(truth, prompts, texts, empty_score)
    figures = {"reward": float(np.mean(scores)), "error": standard_error(scores), "kl": float(np.mean(kl)),
               "kl_error": standard_error(kl), "length": float(answers.mask.sum(1).mean())}  # fmt: skip
    return figures, [
        {"prompt": p, "answer": t, "score": s} for p, t, s in zip(prompts, texts, scores, strict=True)
    ]


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
