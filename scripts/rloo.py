"""RLOO on TRL's trainer with the rewards of scripts/ppo.py, so that they can be compared on the same prompts.

python scripts/rloo.py --model_name_or_path smollm2 --prompt_tokens 8 --reward classifier:runs/reviews_lora --output_dir runs/rloo
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.alignment.grpo import RLOOArguments
    from finetune.alignment.prompts import PromptArguments
    from finetune.alignment.rewards import RewardArguments
    from finetune.data.sources import DataArguments
    from finetune.methods import MethodArguments
    from finetune.models.load import ModelArguments


def main(
    data: DataArguments,
    prompt: PromptArguments,
    model: ModelArguments,
    method: MethodArguments,
    reward: RewardArguments,
    training: RLOOArguments,
) -> None:
    from finetune.alignment.grpo import align

    align(data, prompt, model, method, reward, training)


if __name__ == "__main__":
    launch(main)
