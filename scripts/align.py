"""Align a model by any algorithm there is: online DPO, distillation, and by name those of grpo and dpo, which
run as these verbs do.

python scripts/align.py --algorithm online_dpo --model_name_or_path smollm2 \\
    --dataset_name prompts.jsonl --reward classifier:runs/reviews_lora --output_dir runs/online
python scripts/align.py --algorithm distill --model_name_or_path smollm2 \\
    --dataset_name prompts.jsonl --teacher_model_name_or_path LARGER --output_dir runs/distill
python scripts/align.py --algorithm dr_grpo --config scripts/recipes/gsm8k_grpo.yaml
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.alignment.online import DistillArguments, OnlineDPOArguments
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
    training: OnlineDPOArguments,
) -> None:
    # inside, as in every script: `--help` shall answer before torch is imported
    from finetune.alignment.online import align_online

    align_online(data, prompt, model, method, reward=reward, training=training)


def distill(
    data: DataArguments,
    prompt: PromptArguments,
    model: ModelArguments,
    method: MethodArguments,
    training: DistillArguments,
) -> None:
    from finetune.alignment import online

    online.distill(data, prompt, model, method, training)


# The others have a verb of their own, whose script says their options.
ALGORITHMS = {
    "online_dpo": main,
    "distill": distill,
    "grpo": "grpo",
    "dr_grpo": "grpo",
    "dapo": "grpo",
    "bnpo": "grpo",
    "gspo": "grpo",
    "cispo": "grpo",
    "sapo": "grpo",
    "luspo": "grpo",
    "vespo": "grpo",
    "rloo": "grpo",
    "dpo": "dpo",
    "kto": "dpo",
    "orpo": "dpo",
    "cpo": "dpo",
    "simpo": "dpo",
    "attributes": "reward",
    "process": "reward",
}


if __name__ == "__main__":
    launch(main)
