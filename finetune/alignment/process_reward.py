"""A model's verdicts on the steps of an answer → one score. Knows folders and models; knows no verb.

The score is the least chance of all steps, their product, or the last one's (Lightman et al. 2023, appendix).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from finetune.alignment.graded import joined_marks, scores_at
from finetune.alignment.graded_rows import step_places
from finetune.alignment.model_rewards import load_reward_model
from finetune.alignment.reward_heads import folder_and_rest
from finetune.alignment.rewards import Reward, RewardArguments, RewardPrompt, as_text
from finetune.artefacts.folder import read_artefact
from finetune.device import device
from finetune.errors import InputError

REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "min": torch.amin,
    "product": torch.prod,
    "last": lambda chances: chances[-1],
}


def process_reward(rest: str, settings: RewardArguments) -> Reward:
    """`FOLDER[:min|product|last]` of finetune reward --algorithm process → a score of the chances that each
    step is right; None for an answer without one.

    Raises:
        InputError: a folder of another kind, or another way to make one score of many.
    """
    folder, told = folder_and_rest(rest)
    if (told or "min") not in REDUCTIONS:
        raise InputError(
            f"--reward process:{rest}; wanted FOLDER or FOLDER:HOW, where HOW is one of: "
            f"{', '.join(REDUCTIONS)}"
        )
    reduce = REDUCTIONS[told or "min"]
    processor, network, limit = load_reward_model(folder, "process")
    network.to(device()).eval()
    separator = read_artefact(folder).options.get("step_separator", "\n")

    @torch.inference_mode()
    def reward(prompts: Sequence[RewardPrompt], answers: Sequence[str], **columns: Any) -> list[float | None]:
        found: list[float | None] = []
        for prompt, answer in zip(prompts, answers, strict=True):
            # A blank piece is no step, as none was learnt.
            steps = [step for step in answer.split(separator) if step.strip()]
            if not steps:
                found.append(None)
                continue
            ids, places = step_places(processor, as_text(prompt, "", "full"), steps, separator)
            # From the end: a long question loses its beginning and no step is lost.
            front = max(0, len(ids) - limit)
            seen = [place - front for place in places if place >= front]
            row = {"input_ids": ids[front:], "places": seen, "targets": [[0.0]] * len(seen)}
            batch = {
                name: tensor.to(network.device) for name, tensor in joined_marks([row], processor).items()
            }
            found.append(float(reduce(scores_at(network, batch)[0, :, 0].sigmoid())))
        return found

    return reward
