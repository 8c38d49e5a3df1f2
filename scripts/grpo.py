"""GRPO on TRL's trainer with the rewards of scripts/ppo.py, so that they can be compared on the same prompts.

python scripts/grpo.py --model_name_or_path smollm2 --prompt_tokens 8 --reward classifier:runs/reviews_lora --output_dir runs/grpo
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.options import launch

if TYPE_CHECKING:
    from finetune.alignment.groups import GRPOArguments
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
    training: GRPOArguments,
) -> None:
    from finetune.training.plan import keep_freed_memory, world_size

    keep_freed_memory()
    from transformers import set_seed

    from finetune.adapters.artefact import resolved_options, save_artefact
    from finetune.alignment.groups import as_trl_reward, make_group_trainer
    from finetune.alignment.measure import measure
    from finetune.alignment.policy import load_base, make_policy
    from finetune.alignment.prompts import prompts_fingerprint, read_prompts
    from finetune.alignment.rewards import load_reward
    from finetune.alignment.rollout import SamplingArguments
    from finetune.training.checkpoints import open_run

    world_size()
    set_seed(training.seed)  # the adapter's first weights
    with training.main_process_first(desc="reading prompts"):
        processor, network = load_base(model)
        prompts, held_out = read_prompts(data, prompt, processor)
    checkpoint = open_run(
        resolved_options(data, prompt, model, method, reward, training) | {"task": "grpo"}, prompts_fingerprint(prompts)
    )
    policy = make_policy(network, method.method, method.method_kwargs)
    scorer = load_reward(reward)
    trainer = make_group_trainer(policy, processor, training, prompts, as_trl_reward(scorer, reward.empty_score))
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    if trainer.is_world_process_zero():
        sampling = SamplingArguments(max_new_tokens=training.max_completion_length, temperature=training.temperature)
        policy.eval()
        figures, _ = measure(policy, processor, held_out[:128], scorer, sampling=sampling, bf16=bool(training.bf16))
        save_artefact(policy.network, processor, training.output_dir, None, figures)
        print(" | ".join(f"{name} {value:.3f}" for name, value in figures.items()))
        print(training.output_dir)


if __name__ == "__main__":
    launch(main)
