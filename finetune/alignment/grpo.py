"""Policy gradients without a value model, on TRL's trainers: GRPO (Shao et al. 2024) and RLOO (Ahmadian et al. 2024).

The same rewards as PPO's, so that the three can be compared. Knows TRL; knows no reward's kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import trl
from datasets import Dataset
from transformers import set_seed

from finetune.alignment.measure import measure
from finetune.alignment.policy import Policy, drop_copy, is_adapter, load_base, make_policy
from finetune.alignment.prompts import PromptArguments, prompts_fingerprint, read_prompts
from finetune.alignment.rewards import Prompt, Reward, RewardArguments, checked, load_reward
from finetune.alignment.rollout import SamplingArguments
from finetune.alignment.trl_options import GroupOptions, callbacks, made_by_trl, quiet
from finetune.artefacts.folder import resolved_options, save_artefact
from finetune.artefacts.runs import open_run
from finetune.data.sources import DataArguments
from finetune.errors import InputError
from finetune.methods import MethodArguments
from finetune.models.load import ModelArguments
from finetune.training.allocator import keep_freed_memory
from finetune.training.interrupts import resuming
from finetune.training.machine import world_size

HELD_OUT = 128  # prompts that the finished policy is measured on


# What each paper changes in TRL's options, where the user has said nothing else.
PRESETS: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo"},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28, "mask_truncated_completions": True},
    "bnpo": {"loss_type": "bnpo"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "sapo": {"loss_type": "sapo"},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    "vespo": {"loss_type": "vespo"},
}  # fmt: skip
DEFAULTS = {"loss_type": "grpo", "scale_rewards": "group", "importance_sampling_level": "token", "epsilon": 0.2,
            "mask_truncated_completions": False}  # fmt: skip


@dataclass
class GRPOArguments(GroupOptions, trl.GRPOConfig):
    """TRL's options of group relative policy optimisation and of the losses that came after it."""

    task: str = field(default="grpo")
    algorithm: str = field(
        default="grpo",
        metadata={
            "help": "grpo, dr_grpo, dapo, bnpo, gspo, cispo, sapo, luspo, vespo: the loss and what its paper sets "
            "beside it; or rloo, which has options of its own (--algorithm rloo --help)."
        },
    )
    loss_type: str | None = field(
        default=None, metadata={"help": "TRL's name of the loss (default: the algorithm's)."}
    )
    scale_rewards: str | None = field(
        default=None,
        metadata={
            "help": "Advantages are divided by the deviation in each group, in the batch, or by none (default: group)."
        },
    )
    importance_sampling_level: str | None = field(
        default=None, metadata={"help": "Ratios a token or a sequence (default: token)."}
    )
    epsilon: float | None = field(
        default=None, metadata={"help": "Clip of the ratio below 1 (default: 0.2)."}
    )
    mask_truncated_completions: bool | None = field(
        default=None, metadata={"help": "Answers that were cut teach nothing (default: no; dapo: yes)."}
    )

    def __post_init__(self) -> None:
        if self.algorithm not in PRESETS:
            raise InputError(
                f"--algorithm is '{self.algorithm}'; wanted one of: {', '.join([*PRESETS, 'rloo'])}"
            )
        for name, value in (DEFAULTS | PRESETS[self.algorithm]).items():
            if vars(self)[name] is None:
                vars(self)[name] = value
        super().__post_init__()


@dataclass
class RLOOArguments(GroupOptions, trl.RLOOConfig):
    """TRL's options of REINFORCE leave-one-out."""

    task: str = field(default="rloo")
    algorithm: str = field(default="rloo", metadata={"help": "Always rloo here."})

    def __post_init__(self) -> None:
        if self.algorithm != "rloo":
            raise InputError(f"--algorithm is '{self.algorithm}' and --task rloo; wanted rloo for both")
        super().__post_init__()


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
    kind = resuming(trl.GRPOTrainer if isinstance(training, GRPOArguments) else trl.RLOOTrainer)
    with made_by_trl():
        trainer = kind(
            model=policy.network, reward_funcs=reward, args=training, train_dataset=Dataset.from_dict({"prompt": list(prompts)}),
            processing_class=processor, callbacks=callbacks(training),
        )  # fmt: skip
    drop_copy(policy.network)
    return quiet(trainer)


def align(
    data: DataArguments,
    prompt: PromptArguments,
    model: ModelArguments,
    method: MethodArguments,
    reward: RewardArguments,
    training: GRPOArguments | RLOOArguments,
) -> None:
    """The whole of scripts/grpo.py, whose algorithms differ in `training` alone; figures are of held-out prompts."""
    keep_freed_memory()
    world_size()
    set_seed(training.seed)  # the adapter's first weights
    if method.method == "full" and training.beta and is_adapter(model.model_name_or_path):
        raise InputError(
            "TRL reads a whole model's reference from its base's folder, which is not the tuned model that training starts from. "
            "Set --beta 0, --method lora, or --model_name_or_path to the merged model"
        )
    with training.main_process_first(desc="reading prompts"):
        processor, network = load_base(model)
        prompts, held_out = read_prompts(data, prompt, processor)
    options = resolved_options(data, prompt, model, method, reward, training)
    options.pop(
        "generation_batch_size"
    )  # follows from steps_per_generation, and a recipe with both is refused
    checkpoint = open_run(options, prompts_fingerprint(prompts), network)
    policy = make_policy(network, method.method, method.method_kwargs)
    scorer = load_reward(reward)
    trainer = make_group_trainer(
        policy, processor, training, prompts, as_trl_reward(scorer, reward.empty_score)
    )
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    if trainer.is_world_process_zero():
        sampling = SamplingArguments(
            training.max_completion_length, training.temperature, training.top_k, training.top_p
        )
        policy = policy.to(policy.network.device).eval()  # TRL has moved the network alone
        figures, _ = measure(
            policy, processor, held_out[:HELD_OUT], scorer, sampling=sampling, empty_score=reward.empty_score
        )
        save_artefact(policy.network, processor, str(training.output_dir), None, figures)
        print(" | ".join(f"{name} {value:.3f}" for name, value in figures.items()))
        print(training.output_dir)
