"""What private training may be told, and what can't be private. Knows options; knows no model and no rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from finetune.data.batching import BatchingArguments
from finetune.errors import InputError
from finetune.privacy.disclosure import check_start

SERIES = (
    "series are scaled by means and deviations of all training rows, which have no noise, and windows of one "
    "series share their steps, so that no row is the unit"
)
DELTA, CLIP_NORM, ACCOUNTANT = 1e-5, 1.0, "prv"
ACCOUNTANTS = ("prv", "rdp")


@dataclass
class PrivacyArguments:
    """Differential privacy for the training rows: whoever has the model can hardly tell whether any one row
    was there."""

    epsilon: float | None = field(
        default=None,
        metadata={"help": "Most privacy that training may spend (ε); none trains without. Usual: 3 to 8."},
    )
    delta: float | None = field(
        default=None,
        metadata={"help": "How likely the bound may fail (δ), below one by the rows (default: 1e-5)."},
    )
    clip_norm: float | None = field(
        default=None, metadata={"help": "Longest gradient of a row; longer ones are cut (default: 1.0)."}
    )
    accountant: str | None = field(
        default=None, metadata={"help": "Who counts ε: prv (tight, the default) or rdp; both are Opacus'."}
    )
    secret_noise: bool = field(
        default=False,
        metadata={
            "help": "Sampling and noise from the system's own chance instead of --seed, which the folder "
            "tells: for a model that is given away."
        },
    )
    public_start: bool = field(
        default=False,
        metadata={"help": "The run that training starts from was trained on public rows, not privately."},
    )

    def __post_init__(self) -> None:
        # None means not given, so that an option without --epsilon is found, even at its default
        told = [name for name in ("delta", "clip_norm", "accountant") if vars(self)[name] is not None]
        told += [name for name in ("secret_noise", "public_start") if vars(self)[name]]
        if self.epsilon is None:
            if told:
                raise InputError(f"--{told[0]} is for private training; set --epsilon too, or leave it out")
            return
        # defaults are filled in only here, for the same reason
        self.delta = DELTA if self.delta is None else self.delta
        self.clip_norm = CLIP_NORM if self.clip_norm is None else self.clip_norm
        self.accountant = self.accountant or ACCOUNTANT
        # NaN fails every comparison, and so all of these tests
        if not 0 < self.epsilon < math.inf:
            raise InputError(f"Got --epsilon {self.epsilon}; wanted a number above 0, as 8, or none")
        if not 0 < self.delta < 1:
            raise InputError(f"Got --delta {self.delta}; wanted a chance between 0 and 1, as 1e-5")
        if not 0 < self.clip_norm < math.inf:
            raise InputError(f"Got --clip_norm {self.clip_norm}; wanted a number above 0")
        if self.accountant not in ACCOUNTANTS:
            raise InputError(f"Got --accountant {self.accountant}; wanted {' or '.join(ACCOUNTANTS)}")

    @property
    def wanted(self) -> bool:
        """Whether training shall be private."""
        return self.epsilon is not None


def check_private(
    privacy: PrivacyArguments,
    training: Any,
    start: str | None,
    batching: BatchingArguments | None = None,
    *,
    weights: str | None = None,
    own_noise: bool = False,
) -> None:
    """Options that private training can't keep its word with, said before anything is loaded.

    Args:
        training: transformers' options.
        start: the folder or name of the model that training starts from.
        weights: `--class_weights`.
        own_noise: whether `--neftune_noise_alpha` goes by the length of each row, and not by the batch's.

    Raises:
        InputError: one is set.
    """
    if not privacy.wanted:
        return
    # one reason at a time: each is fatal by itself
    why = _broken(training, batching, weights) or _unread(training, own_noise)
    if why is not None:
        raise InputError(f"--epsilon {privacy.epsilon}: {why}")
    check_start(privacy.epsilon, privacy.public_start, start)


def _broken(training: Any, batching: BatchingArguments | None, weights: str | None) -> str | None:
    """Why there would be no gradient by row, or no known chance of a row."""
    if training.fp16:
        return "--fp16 scales gradients up, clipped or not; set --bf16, or neither"
    if training.fsdp or training.deepspeed:
        return (
            "--fsdp and --deepspeed cut a row's gradient to pieces; leave them out (copies of the model work)"
        )
    if training.resume_from:
        return "the noise was made for the steps of the shorter run; leave --resume_from out"
    if training.torch_compile:
        return "a compiled step has no gradients by row; leave --torch_compile out"
    if batching is not None and batching.tokens_per_batch is not None:
        return (
            "rows are sampled one by one, so that --tokens_per_batch can't say how many there are; set "
            "--per_device_train_batch_size and --gradient_accumulation_steps"
        )
    if weights == "balanced":
        return "balanced weights are counted from the rows, without noise; give --class_weights as JSON"
    if training.push_to_hub and training.hub_strategy in ("checkpoint", "all_checkpoints"):
        return (
            "--hub_strategy pushes checkpoints, which hold what the noise follows from; set it to end or "
            "every_save"
        )
    if training.ignore_data_skip:
        return "--ignore_data_skip draws the same rows again after a stop; leave it out"
    return None


def _unread(training: Any, own_noise: bool) -> str | None:
    """Why one of transformers' options would say something else than what is done."""
    if training.neftune_noise_alpha and not own_noise:
        return (
            "--neftune_noise_alpha goes by the longest row of a batch, so that rows know of each other; "
            "leave it out"
        )
    if training.data_seed is not None:
        return "rows are drawn by --seed, or by the system's chance; leave --data_seed out"
    # 1.0 is transformers' default, which nobody asked for; 0 is none
    if training.max_grad_norm not in (0.0, 1.0):
        return "--max_grad_norm cuts the mean, noise and all; set --clip_norm, which cuts each row's gradient"
    return None


def check_network(epsilon: float, network: nn.Module) -> None:
    """No layer mixes the rows of a batch.

    Raises:
        InputError: one does: statistics over a batch have no gradient by row.
    """
    # frozen ones too: in training they take the batch's statistics
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise InputError(
                f"--epsilon {epsilon}: '{name}' takes statistics over a batch ({type(module).__name__}), in "
                "which rows know of each other. Set --model_name_or_path to a model without"
            )
    if not any(p.requires_grad for p in network.parameters()):
        raise InputError(f"--epsilon {epsilon}: nothing of the model is trained. Set --method")
    # frozen weights may be in 16 bits: no noise is added to them
    if any(p.requires_grad and p.dtype in (torch.bfloat16, torch.float16) for p in network.parameters()):
        raise InputError(f"--epsilon {epsilon}: weights in 16 bits round noise away. Set --dtype float32")


def check_objective_is_private(
    privacy: PrivacyArguments, objective: str, layout: str | None, endless: bool
) -> None:
    """The objective reads each row for itself.

    Args:
        layout: rows or blocks, None where the objective knows no such thing.
        endless: whether rows come from a stream or a mixture.

    Raises:
        InputError: it doesn't, with the unit that its rows would have.
    """
    why = None
    if objective == "contrastive":
        why = "each row of 'contrastive' is told from the others of its batch; set another --objective"
    elif objective == "nsp":
        why = "a pair of 'nsp' may hold two texts; set another --objective"
    elif objective == "masked_series":
        why = f"{SERIES}; leave --epsilon out"
    elif layout == "blocks":
        why = "a block holds pieces of several texts, so that no text is the unit; set --layout rows"
    elif endless:
        why = "of a stream or a mixture nobody knows how likely a row is; leave --streaming and --mixture out"
    if privacy.wanted and why is not None:
        raise InputError(f"--epsilon {privacy.epsilon}: {why}")


def blind(start: Callable | None, privacy: PrivacyArguments, reads: str) -> Callable | None:
    """How a task tells a new head of its training targets; not at all where they are private.

    Args:
        reads: what its inputs are (see `Task.reads`).

    Raises:
        InputError: series, which can't be read without what all training rows say.
    """
    if privacy.wanted and reads == "series":
        raise InputError(f"--epsilon {privacy.epsilon}: {SERIES}; leave --epsilon out")
    # a head that begins at the targets' mean would give that away without noise
    return None if privacy.wanted else start
