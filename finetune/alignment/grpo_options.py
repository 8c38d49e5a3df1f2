"""Options of policy gradients without a value model: GRPO (Shao et al. 2024), its later losses, RLOO
(Ahmadian et al. 2024).

Knows TRL's options; knows no model and no reward.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import trl

from finetune.alignment.trl_options import GroupOptions
from finetune.errors import InputError

# What each paper changes in TRL's options, where the user has said nothing else.
PRESETS: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo"},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28, "mask_truncated_completions": True},
    "bnpo": {"loss_type": "bnpo"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4,
    "epsilon_high": 4e-4},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "sapo": {"loss_type": "sapo"},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    "vespo": {"loss_type": "vespo"},
}  # fmt: skip
DEFAULTS = {"loss_type": "grpo", "scale_rewards": "group", "importance_sampling_level": "token",
"epsilon": 0.2,
            "mask_truncated_completions": False}  # fmt: skip


@dataclass
class GRPOArguments(GroupOptions, trl.GRPOConfig):
    """TRL's options of group relative policy optimisation and of the losses that came after it."""

    task: str = field(default="grpo")
    algorithm: str = field(
        default="grpo",
        metadata={
            "help": "grpo, dr_grpo, dapo, bnpo, gspo, cispo, sapo, luspo, vespo: the loss and what its paper "
            "sets "
            "beside it; or rloo, which has options of its own (--algorithm rloo --help)."
        },
    )
    tools: str | None = field(
        default=None,
        metadata={
            "help": "FILE.py whose functions the model may call between its turns, or whose class "
            "Environment makes them for "
            "each conversation (TRL's environments); FILE.py is run. The chat template must render tools."
        },
    )
    # --reward_weights and --normalise_rewards say it for every verb
    multi_objective_aggregation: str = field(default="sum_then_normalize", init=False)
    loss_type: str | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "TRL's name of the loss (default: the algorithm's)."}
    )
    scale_rewards: str | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Advantages are divided by the deviation in each group, in the batch, or by none "
            "(default: group)."
        },
    )
    importance_sampling_level: str | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Ratios a token or a sequence (default: token)."}
    )
    epsilon: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Clip of the ratio below 1 (default: 0.2)."}
    )
    mask_truncated_completions: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Answers that were cut teach nothing (default: no; dapo: yes)."}
    )

    def __post_init__(self) -> None:
        if self.algorithm not in PRESETS:
            raise InputError(
                f"--algorithm is '{self.algorithm}'; wanted one of: {', '.join([*PRESETS, 'rloo'])}"
            )
        for name, value in (DEFAULTS | PRESETS[self.algorithm]).items():
            # None tells "not said" from any value; a value that the user gave is kept.
            if vars(self)[name] is None:
                vars(self)[name] = value
        # Last: TRL's own check wants the options filled in.
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
