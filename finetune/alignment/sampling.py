"""A model and prompts → several scored answers to each. Knows policies and rewards; knows no training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from finetune.alignment.preferences import pairs_of
from finetune.alignment.prompts import answer_texts, prompt_ids
from finetune.alignment.rewards import Prompt, Reward, checked
from finetune.alignment.rollout import SamplingArguments, draw_uniforms, sample_answers, stop_tokens
from finetune.errors import InputError


@dataclass
class PreferArguments:
    """How many answers, and where the pairs go."""

    output_dir: str | None = field(default=None, metadata={"help": "Folder for train.jsonl and test.jsonl."})
    answers_per_prompt: int = field(
        default=4, metadata={"help": "Answers to each prompt; the best and the worst become the pair."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the answers."})
    bf16: bool = field(default=False, metadata={"help": "Sample in bf16."})

    def __post_init__(self) -> None:
        if self.output_dir is None:
            raise InputError("No output folder; set --output_dir")
        if self.answers_per_prompt < 2:
            raise InputError(f"--answers_per_prompt is {self.answers_per_prompt}; wanted 2 or more for a pair")


def scored_answers(
    network: Any, processor: Any, prompts: Sequence[Prompt], reward: Reward, *, each: int, sampling: SamplingArguments,
    seed: int = 0, empty_score: float = -1.0, bf16: bool = False,
) -> tuple[list[list[str]], list[list[float]]]:  # fmt: skip
    """Answers and their scores, both [prompts, each]; answer j to prompt i depends on (seed, i, j) alone."""
    every = [prompt for prompt in prompts for _ in range(each)]
    ids = [prompt_ids(processor, prompt) for prompt in every]
    uniforms = draw_uniforms(seed, 0, range(len(every)), sampling.max_new_tokens)
    with torch.autocast(network.device.type, torch.bfloat16, enabled=bf16):
        answers = sample_answers(network.eval(), ids, uniforms, sampling, stop_tokens(network, processor))
    texts = answer_texts(processor, ids, answers.ids, answers.mask)
    scores = checked(reward, every, texts, empty_score)
    return [texts[i : i + each] for i in range(0, len(texts), each)], [scores[i : i + each] for i in range(0, len(texts), each)]


def make_pairs(
    network: Any, processor: Any, prompts: Sequence[Prompt], reward: Reward, each: int, **options: Any
) -> list[dict[str, Any]]:
    """Preference pairs from `each` answers to each prompt; options as of `scored_answers`."""
    answers, scores = scored_answers(network, processor, prompts, reward, each=each, **options)
    return pairs_of(prompts, answers, scores)
