"""Policy gradients without a value model, on TRL's trainers: GRPO (Shao et al. 2024) and RLOO (Ahmadian et al. 2024).

The same rewards as PPO's, so that the three can be compared. Knows TRL; knows no reward's kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import trl
from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback, set_seed

from finetune.adapters.artefact import resolved_options, save_artefact
from finetune.alignment.measure import measure
from finetune.alignment.policy import Policy, load_base, make_policy
from finetune.alignment.prompts import PromptArguments, prompts_fingerprint, read_prompts
from finetune.alignment.rewards import Prompt, Reward, RewardArguments, checked, load_reward
from finetune.alignment.rollout import SamplingArguments
from finetune.alignment.trl_options import GroupOptions
from finetune.data.sources import DataArguments
from finetune.errors import InputError
from finetune.methods import MethodArguments
from finetune.models.load import ModelArguments
from finetune.training.checkpoints import Sealer, open_run
from finetune.training.progress import Progress

HELD_OUT = 128  # prompts that the finished policy is measured on


@dataclass
class GRPOArguments(GroupOptions, trl.GRPOConfig):
    """TRL's options of group relative policy optimisation."""


@dataclass
class RLOOArguments(GroupOptions, trl.RLOOConfig):
    """TRL's options of REINFORCE leave-one-out."""


def as_trl_reward(reward: Reward, empty_score: float) -> Callable[..., list[float]]:
    """A reward as TRL calls it: completions are texts, or conversations of one message."""

    def scores(prompts: Sequence[Prompt], completions: Sequence[Any], **_: Any) -> list[float]:
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        return checked(reward, prompts, texts, empty_score)

    return scores


def make_group_trainer(
    policy: Policy,
    processor: Any,
    training: GRPOArguments | RLOOArguments,
    prompts: Sequence[Prompt],
    reward: Callable[..., list[float]],
) -> Any:
    """TRL's trainer that the options are of, on a policy's network; the reference is the base with the adapter off."""
    kind = trl.GRPOTrainer if isinstance(training, GRPOArguments) else trl.RLOOTrainer
    share = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    try:
        trainer = kind(
            model=policy.network, reward_funcs=reward, args=training, train_dataset=Dataset.from_dict({"prompt": list(prompts)}),
            processing_class=processor, callbacks=[Sealer(), Progress(share)],
        )  # fmt: skip
    except ValueError as error:
        raise InputError(f"TRL refuses these options: {error}") from error
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer


def align(
    data: DataArguments,
    prompt: PromptArguments,
    model: ModelArguments,
    method: MethodArguments,
    reward: RewardArguments,
    training: GRPOArguments | RLOOArguments,
) -> None:
    """The whole of scripts/grpo.py and scripts/rloo.py, which differ in `training` alone; figures are of held-out prompts."""
    task = "grpo" if isinstance(training, GRPOArguments) else "rloo"
    set_seed(training.seed)  # the adapter's first weights
    with training.main_process_first(desc="reading prompts"):
        processor, network = load_base(model)
        prompts, held_out = read_prompts(data, prompt, processor)
    options = resolved_options(data, prompt, model, method, reward, training) | {"task": task}
    checkpoint = open_run(options, prompts_fingerprint(prompts))
    policy = make_policy(network, method.method, method.method_kwargs)
    scorer = load_reward(reward)
    trainer = make_group_trainer(policy, processor, training, prompts, as_trl_reward(scorer, reward.empty_score))
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    if trainer.is_world_process_zero():
        sampling = SamplingArguments(max_new_tokens=training.max_completion_length or 48, temperature=training.temperature)
        subject = Policy(policy.network, bool(training.bf16))
        figures, _ = measure(subject, processor, held_out[:HELD_OUT], scorer, sampling=sampling, empty_score=reward.empty_score)
        save_artefact(policy.network, processor, str(training.output_dir), None, figures)
        print(" | ".join(f"{name} {value:.3f}" for name, value in figures.items()))
        print(training.output_dir)
