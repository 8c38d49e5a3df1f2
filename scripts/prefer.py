r"""Make preference pairs: sample answers, score them by any rewards, keep the best and the worst of each
prompt.

python scripts/prefer.py --model_name_or_path smollm2 --dataset_name reviews --prompt_tokens 8 \
    --reward classifier:runs/reviews_lora --output_dir pairs

Rows, as JSON lines or as a table with these columns (others, and files: docs/data_layouts.md):

    {"prompt": "Capital of Norway?", "answer": "Oslo"}
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.alignment.pairs import PreferArguments
    from finetune.alignment.prompts import PromptArguments
    from finetune.alignment.rewards import RewardArguments
    from finetune.alignment.rollout import SamplingArguments
    from finetune.data.sources import DataArguments
    from finetune.models.load import ModelArguments

# asked for at once: no default of these would fit
REQUIRED = ("model_name_or_path", "dataset_name", "reward", "output_dir")


def main(
    data: DataArguments,
    prompt: PromptArguments,
    model: ModelArguments,
    reward: RewardArguments,
    sampling: SamplingArguments,
    prefer: PreferArguments,
) -> None:
    from finetune.training.allocator import keep_freed_memory
    from finetune.training.machine import join_processes

    keep_freed_memory()
    import json
    from pathlib import Path

    from finetune.alignment.pairs import FILES, claim_pairs, make_pairs
    from finetune.alignment.policy import load_start
    from finetune.alignment.prompts import read_prompts, show_prompts
    from finetune.alignment.reward_kinds import load_rewards
    from finetune.artefacts.files import write_atomically
    from finetune.artefacts.folder import resolved_options

    state, folder = join_processes("prefer"), Path(str(prefer.output_dir))
    # one process fills the caches that the others read
    with state.main_process_first():
        processor, network = load_start(model)
        parts = read_prompts(data, prompt, processor)
    # --check ends here, with nothing written
    if show_prompts(*parts, processor, data):
        return
    # sampling takes hours: the folder is refused or claimed before it
    claim_pairs(folder, resolved_options(data, prompt, model, reward, sampling, prefer))
    network, rewards = network.to(state.device), load_rewards(reward)
    for place, (file, prompts) in enumerate(zip(FILES, parts, strict=True)):
        if (folder / file).is_file():
            continue  # made before the run was stopped
        pairs = make_pairs(
            network, processor, prompts, rewards, prefer.answers_per_prompt,
            # another seed a file, or equal prompts would get equal answers in both
            sampling=sampling, seed=prefer.seed + place, bf16=prefer.bf16,
        )  # fmt: skip
        if state.is_main_process:
            write_atomically(folder / file, "".join(json.dumps(pair) + "\n" for pair in pairs))
            margin = sum(pair["margin"] for pair in pairs) / max(len(pairs), 1)
            print(
                f"{folder / file}: {len(pairs)} pairs from {len(prompts)} prompts, mean margin {margin:.3f}"
            )
        # the next file's `is_file` must mean the same on all processes
        state.wait_for_everyone()


if __name__ == "__main__":
    launch(main)
