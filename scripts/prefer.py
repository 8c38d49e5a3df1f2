r"""Make preference pairs: sample answers to prompts, score them by any reward, keep the best and the worst of each.

python scripts/prefer.py --model_name_or_path smollm2 --dataset_name reviews --prompt_tokens 8 --output_dir pairs \
    --reward classifier:runs/reviews_lora
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.options import launch

if TYPE_CHECKING:
    from finetune.alignment.prompts import PromptArguments
    from finetune.alignment.rewards import RewardArguments
    from finetune.alignment.rollout import SamplingArguments
    from finetune.alignment.sampling import PreferArguments
    from finetune.data.sources import DataArguments
    from finetune.models.load import ModelArguments


def main(
    data: DataArguments,
    prompt: PromptArguments,
    model: ModelArguments,
    reward: RewardArguments,
    sampling: SamplingArguments,
    prefer: PreferArguments,
) -> None:
    from finetune.training.plan import keep_freed_memory

    keep_freed_memory()
    import json
    from pathlib import Path

    import torch

    from finetune.alignment.policy import load_base
    from finetune.alignment.prompts import read_prompts
    from finetune.alignment.rewards import load_reward
    from finetune.alignment.sampling import make_pairs
    from finetune.errors import InputError
    from finetune.training.checkpoints import write_atomically

    folder = Path(str(prefer.output_dir))
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; set --output_dir to a new folder")
    processor, network = load_base(model)
    network = network.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    parts = read_prompts(data, prompt, processor)
    scorer = load_reward(reward)
    folder.mkdir(parents=True, exist_ok=True)
    for name, prompts, seed in zip(("train", "test"), parts, (prefer.seed, prefer.seed + 1), strict=True):
        pairs = make_pairs(
            network, processor, prompts, scorer, prefer.answers_per_prompt,
            sampling=sampling, seed=seed, empty_score=reward.empty_score, bf16=prefer.bf16,
        )  # fmt: skip
        write_atomically(folder / f"{name}.jsonl", "".join(json.dumps(pair) + "\n" for pair in pairs))
        margin = sum(pair["margin"] for pair in pairs) / max(len(pairs), 1)
        print(f"{folder / name}.jsonl: {len(pairs)} pairs from {len(prompts)} prompts, mean margin {margin:.3f}")


if __name__ == "__main__":
    launch(main)
