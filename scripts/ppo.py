"""PPO with any reward, or several; one base for policy, reference, values and reward.

python scripts/ppo.py --config scripts/recipes/imdb_ppo.yaml --reward classifier:runs/imdb_lora
torchrun --nproc_per_node 2 scripts/ppo.py --config scripts/recipes/imdb_ppo.yaml \\
    --reward model:runs/imdb_reward
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.alignment.ppo_options import KLArguments, PPOArguments, ValueArguments
    from finetune.alignment.prompts import PromptArguments
    from finetune.alignment.rewards import RewardArguments
    from finetune.alignment.rollout import SamplingArguments
    from finetune.alignment.run import RunArguments
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
    sampling: SamplingArguments,
    ppo: PPOArguments,
    value: ValueArguments,
    kl: KLArguments,
    run: RunArguments,
) -> None:
    from finetune.training.allocator import keep_freed_memory
    from finetune.training.machine import processes

    # before the first tensor, and so before the imports below
    keep_freed_memory()
    processes("ppo")
    import torch

    from finetune.alignment.model_rewards import values_from
    from finetune.alignment.policy import load_start, make_policy
    from finetune.alignment.ppo_trainer import Learner
    from finetune.alignment.prompts import prompts_fingerprint, read_prompts, save_asked_rows, show_prompts
    from finetune.alignment.reward_kinds import load_rewards, true_rewards
    from finetune.alignment.run import make_accelerator, save_policy
    from finetune.alignment.run import run as run_steps
    from finetune.artefacts.folder import resolved_options
    from finetune.artefacts.provenance import provenance_of
    from finetune.artefacts.runs import open_run
    from finetune.data.sources import load_rows
    from finetune.training.machine import describe

    # made first: it joins the processes, and the lines below ask which one they are
    accelerator = make_accelerator(run)
    # one process fills the caches that the others read
    with accelerator.main_process_first():
        processor, network = load_start(model)
        prompts, held_out = read_prompts(data, prompt, processor, read := load_rows(data))
    # --check ends here, with nothing written
    if show_prompts(prompts, held_out, processor, data):
        return
    options = resolved_options(data, prompt, model, method, reward, sampling, ppo, value, kl, run)
    checkpoint = open_run(options, prompts_fingerprint(prompts), network)
    save_asked_rows(str(run.output_dir), provenance_of(read, data), prompts)
    accelerator.init_trackers("ppo", {name: str(value) for name, value in options.items()})
    torch.manual_seed(run.seed)  # the adapter's first weights
    policy = make_policy(network, method.method, method.method_kwargs, bool(run.bf16))
    # after the policy: a reward model may be a second adapter on its base
    rewards = load_rewards(reward, policy, model)
    # over-optimisation shows when another reward than the learnt one is measured
    truth = true_rewards(reward, run.true_reward) or rewards
    # a head that begins as the reward model's knows already which answers are worth something
    if value.value_from == "reward":
        values_from(policy, processor, rewards)
    learner = Learner(
        policy, processor, rewards, accelerator,
        settings=ppo, value=value, kl=kl, sampling=sampling, seed=run.seed,
    )  # fmt: skip
    # weights, optimizer, random states and what the KL controller has come to
    if checkpoint:
        learner.restore(checkpoint)
    if accelerator.is_main_process:
        print(describe(accelerator.num_processes, bool(run.bf16)))
    metrics = run_steps(learner, prompts, held_out, run, truth)
    if accelerator.is_main_process:
        save_policy(learner, run, metrics)
        print(f"\n{run.output_dir}")


if __name__ == "__main__":
    launch(main)
