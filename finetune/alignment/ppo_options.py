"""PPO's numbers: steps, values, the hold on the policy. Knows options; knows no model.

Each class is read by ppo_trainer.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from finetune.alignment import ppo
from finetune.errors import InputError, check_above, check_least


@dataclass
class PPOArguments:
    """PPO's own numbers."""

    learning_rate: float = field(
        default=1e-4, metadata={"help": "Learning rate of AdamW, constant after ten steps of warm-up."}
    )
    steps: int = field(default=100, metadata={"help": "How often answers are sampled and learnt from."})
    rollout_batch_size: int = field(default=64, metadata={"help": "Answers a step, over all processes."})
    minibatch_size: int = field(
        default=32, metadata={"help": "Answers an optimizer step, over all processes."}
    )
    per_device_batch_size: int = field(
        default=16, metadata={"help": "Answers that go through the model together; the rest accumulates."}
    )
    epochs: int = field(default=2, metadata={"help": "How often a step's answers are gone through."})
    clip: float = field(default=0.2, metadata={"help": "Clip of the policy's ratio."})
    entropy_coefficient: float = field(default=0.0, metadata={"help": "Weight of the entropy bonus."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are scaled down to this norm."})
    gradient_checkpointing: bool = field(
        default=False,
        metadata={"help": "Compute activations again in going back, for less memory and a third more time."},
    )
    stop_kl: float | None = field(
        default=0.1,
        metadata={
            "help": "Leave a step's answers when the policy is this many nats a token away from the one that "
            "made them."
        },
    )

    def __post_init__(self) -> None:
        check_least(self, 1, "steps", "minibatch_size", "per_device_batch_size", "epochs")
        check_above(self, 0, "learning_rate", "clip", "max_grad_norm", "stop_kl")
        check_least(self, 0, "entropy_coefficient")
        # A larger one would never fill, and its learning rate be scaled down without anybody knowing.
        if self.minibatch_size > self.rollout_batch_size:
            raise InputError(
                f"--minibatch_size is {self.minibatch_size} of --rollout_batch_size "
                f"{self.rollout_batch_size}; wanted at most that"
            )


@dataclass
class ValueArguments:
    """How what is to come is valued at each token."""

    gamma: float = field(default=1.0, metadata={"help": "Discount a token."})
    lam: float = field(default=0.95, metadata={"help": "λ of generalised advantage estimation."})
    value_learning_rate: float = field(
        default=3e-3,
        metadata={
            "help": "Learning rate of the value head, which starts from nothing and shares no gradient."
        },
    )
    value_clip: float = field(default=0.2, metadata={"help": "Clip of the value's change."})
    value_from: str = field(
        default="zero",
        metadata={
            "help": "Where values begin: zero, or reward (the reward model's own score at each token; it "
            "must share the policy's "
            "tokenizer)."
        },
    )
    standardise_rewards: bool = field(
        default=True,
        metadata={
            "help": "Count scores in deviations from the mean of the start's own answers, so that neither a "
            "constant nor a "
            "scale in the rewards changes the run; --kl_coefficient is then in deviations a nat."
        },
    )

    def __post_init__(self) -> None:
        check_above(self, 0, "value_learning_rate", "value_clip")
        if self.value_from not in ("zero", "reward"):
            raise InputError(f"--value_from is '{self.value_from}'; wanted zero or reward")
        if not (0 < self.gamma <= 1 and 0 <= self.lam <= 1):
            raise InputError(
                f"--gamma is {self.gamma} and --lam {self.lam}; wanted 0 < gamma ≤ 1 and 0 ≤ lam ≤ 1"
            )


@dataclass
class KLArguments:
    """How the policy is held near the reference."""

    kl_coefficient: float = field(
        default=0.05, metadata={"help": "Penalty a nat of KL; the first value where it adapts."}
    )
    kl_estimator: str = field(default="k1", metadata={"help": "Estimator of the penalty: k1, k2, k3."})
    kl_target: float | None = field(
        default=None,
        metadata={"help": "Adapt the coefficient towards so many nats a sequence (default: fixed)."},
    )
    kl_gain: float = field(default=0.1, metadata={"help": "How fast it adapts."})

    def __post_init__(self) -> None:
        if self.kl_estimator not in ppo.ESTIMATORS:
            wanted = ", ".join(ppo.ESTIMATORS)
            raise InputError(
                f"Unknown KL estimator '{self.kl_estimator}'; wanted one of: {wanted}. Set --kl_estimator"
            )
        check_least(self, 0, "kl_coefficient", "kl_gain")
        check_above(self, 0, "kl_target")
