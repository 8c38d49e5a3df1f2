"""What the steps of a private run do, planned before it and gone on with after a stop: noise, sampling rate,
key. Knows options and numbers; knows no model and no Trainer.
"""

from __future__ import annotations

import json
import math
import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from finetune.artefacts.files import PRIVACY
from finetune.errors import InputError
from finetune.privacy.accounting import epsilon_spent, noise_multiplier
from finetune.privacy.disclosure import spent_before
from finetune.privacy.options import PrivacyArguments


@dataclass(frozen=True)
class Mechanism:
    """What each step does, and what it costs.

    Attributes:
        units: rows that there are.
        expected: units of a step in the mean, which its sum is divided by.
        steps: that are planned, and what they may spend: epsilon and delta.
        key: what sampling and noise follow from.
        unit: what is protected, in words.
        before: what the run that training starts from has spent.
    """

    epsilon: float
    delta: float
    clip_norm: float
    accountant: str
    units: int
    expected: int
    steps: int
    noise_multiplier: float
    key: int
    secret: bool
    unit: str
    before: dict[str, Any] | None = None

    @property
    def rate(self) -> float:
        return self.expected / self.units

    def record(self, done: int) -> dict[str, Any]:
        """What privacy.json says after so many steps; nothing that chance follows from."""
        said = {
            name: value for name, value in asdict(self).items() if name not in ("key", "steps", "epsilon")
        }
        spent = epsilon_spent(self.noise_multiplier, self.delta, self.rate, done, self.accountant)
        return {"epsilon": spent, "epsilon_allowed": self.epsilon, "steps": done, "steps_planned": self.steps,
                "sampling_rate": self.rate, "neighbours": "one unit more or less", **said}  # fmt: skip


def steps_an_epoch(units: int, expected: int) -> int:
    """Steps in which each unit is drawn once in the mean."""
    return max(1, round(units / expected))


def plan(privacy: PrivacyArguments, training: Any, units: int, unit: str, start: str | None) -> Mechanism:
    """The mechanism of a run, with as little noise as its steps allow.

    Args:
        training: transformers' options; rows a step are their batch × accumulation × processes.

    Raises:
        InputError: more rows a step than there are, a delta that allows for giving a row away, or an epsilon
            that no noise keeps.
    """
    assert privacy.epsilon is not None and privacy.delta is not None and privacy.clip_norm is not None
    # rows a step in the mean: the real number is drawn, and may be 0
    expected = (
        training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    )
    if expected > units:
        raise InputError(
            f"--epsilon {privacy.epsilon}: a step of {expected} rows wants at least as many, and there are "
            f"{units}. Set --per_device_train_batch_size or --gradient_accumulation_steps lower"
        )
    # δ = 1/n is met by publishing one row at random
    if privacy.delta >= 1 / units:
        raise InputError(
            f"--delta {privacy.delta} allows for one of {units} rows to be given away whole; wanted below "
            f"{1 / units:.2g}"
        )
    # 0 or less: epochs say how long
    planned = training.max_steps
    if planned <= 0:
        planned = math.ceil(training.num_train_epochs * steps_an_epoch(units, expected))
    rate, accountant = expected / units, str(privacy.accountant)
    noise = noise_multiplier(privacy.epsilon, privacy.delta, rate, planned, accountant)
    # a seed that arguments.yaml tells can be repeated, and the noise with it
    key = [secrets.randbits(128) if privacy.secret_noise else training.seed]
    return Mechanism(
        privacy.epsilon, privacy.delta, privacy.clip_norm, accountant, units, expected, planned, noise,
        broadcast_object_list(key)[0], privacy.secret_noise, unit, spent_before(start),
    )  # fmt: skip


def continued(mechanism: Mechanism, checkpoint: Path) -> Mechanism:
    """The mechanism with the chance that a checkpoint goes on from.

    Raises:
        InputError: the checkpoint was made by another mechanism, or without one.
    """
    file = checkpoint / PRIVACY
    said = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    # steps may be more than were planned; what each step does may not change
    wanted = {name: vars(mechanism)[name] for name in ("noise_multiplier", "clip_norm", "units", "expected")}
    differing = next((name for name, value in wanted.items() if said.get(name) != value), None)
    if differing is not None:
        raise InputError(
            f"{checkpoint} was made with {differing} {said.get(differing)}, and this run has "
            f"{wanted[differing]}: what both spend nobody counts. Set --output_dir to a new folder"
        )
    return replace(mechanism, key=said["key"])
