"""GRPO, its later losses and RLOO on TRL's trainers, with any reward, or several.

python scripts/grpo.py --model_name_or_path smollm2 --dataset_name prompts.jsonl \\
    --reward classifier:runs/reviews_lora --output_dir runs/grpo
python scripts/grpo.py --algorithm rloo --model_name_or_path smollm2 --dataset_name prompts.jsonl \\
    --reward model:runs/reward --output_dir runs/rloo
python scripts/grpo.py --config scripts/recipes/gsm8k_grpo.yaml
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.alignment.grpo_options import GRPOArguments, RLOOArguments
    from finetune.alignment.prompts import PromptArguments
    from finetune.alignment.rewards import RewardArguments
    from finetune.data.sources import DataArguments
    from finetune.methods import MethodArguments
    from finetune.models.load import ModelArguments

# asked for at once: no default of these would fit
REQUIRED = ("model_name_or_path", "dataset_name", "reward", "output_dir")


def main(
    data: DataArguments,
    prompt: PromptArguments,
    model: ModelArguments,
    method: MethodArguments,
    reward: RewardArguments,
    training: GRPOArguments,
) -> None:
    # inside, as in every script: `--help` shall answer before torch and TRL are imported
    from finetune.alignment.grpo import align

    align(data, prompt, model, method, reward=reward, training=training)


def rloo(
    data: DataArguments,
    prompt: PromptArguments,
    model: ModelArguments,
    method: MethodArguments,
    reward: RewardArguments,
    training: RLOOArguments,
) -> None:
    from finetune.alignment.grpo import align

    align(data, prompt, model, method, reward=reward, training=training)


ALGORITHMS = {"rloo": rloo}  # further mains, each with options of its own; an old recipe's task counts too


if __name__ == "__main__":
    launch(main)
