"""A Trainer whose steps are private: Poisson samples, clipped gradients of rows, noise. Knows trainers; knows
no task and no loss by name.

A step's sums are those of all processes, the noise is the same on each, and both follow from the key and the
number of the step: however rows are dealt out to processes and micro-batches, the mechanism is one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from finetune.artefacts.files import PRIVACY, write_atomically
from finetune.data.batching import EpochLoader
from finetune.errors import InputError
from finetune.privacy.disclosure import check_apart
from finetune.privacy.mechanism import Mechanism, continued, plan, steps_an_epoch
from finetune.privacy.options import PrivacyArguments, check_network
from finetune.privacy.row_gradients import One, Together, agree, fits
from finetune.privacy.sampling import Chance, PoissonSteps, Units, generator, in_parts
from finetune.training.pretraining import FreshTrainer
from finetune.training.trainer import ExactTrainer

logger = logging.getLogger(__name__)

PROBED = 3  # rows on which the two ways to a sum are compared


class Ledger(TrainerCallback):
    """Writes what is spent, and what chance goes on from, into each checkpoint before it is sealed."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # key and account are the same on all processes
        if state.is_world_process_zero:
            # the key stays with the checkpoint: only there is it needed again
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            mechanism = self.trainer.mechanism
            said = mechanism.record(state.global_step) | {"key": mechanism.key}
            write_atomically(folder / PRIVACY, json.dumps(said, indent=1))


class PrivateSteps(Trainer):
    """Stands before a Trainer's class: the same options and losses, with private steps.

    `gradient_accumulation_steps` counts rows a step here, and `per_device_train_batch_size` rows a
    micro-batch: a step takes the product of both and of the processes in the mean.

    Args:
        mechanism: what each step does.
    """

    def __init__(self, *, mechanism: Mechanism, **kwargs: Any) -> None:
        self.mechanism = mechanism
        args = kwargs["args"]
        self.rows_at_once = args.per_device_train_batch_size
        # a batch of the loader is a whole step here; and the Trainer must not clip noise away
        kwargs["args"] = replace(
            args, gradient_accumulation_steps=1, global_batch_size=None, max_grad_norm=0.0
        )
        # first, so that its file is there before others look at the checkpoint
        kwargs["callbacks"] = [Ledger(self), *(kwargs.get("callbacks") or [])]
        super().__init__(**kwargs)
        rows = self.train_dataset
        # windows and turns of one row are one unit: the row is what is protected
        owners = rows["row"][:] if "row" in rows.column_names else range(len(rows))
        self.units = Units(rows, owners, mechanism.key if isinstance(self, FreshTrainer) else None)
        # without the wrapper of several processes, which would average gradients before they are clipped
        network = self.accelerator.unwrap_model(self.model)
        self.trained = [p for p in network.parameters() if p.requires_grad]
        self.gradients = self._settle(network)
        logger.warning(
            "Private: ε ≤ %g at δ = %g; noise %.3f × %g, %d of %d rows a step in the mean, %d steps; "
            "gradients %s",
            mechanism.epsilon, mechanism.delta, mechanism.noise_multiplier, mechanism.clip_norm,
            mechanism.expected, mechanism.units, mechanism.steps,
            "of a batch's rows together" if self.gradients.together else "row by row",
        )  # fmt: skip

    def _settle(self, network: nn.Module) -> One | Together:
        """Rows together where a probe shows that their sum is right and it fits into memory, else one by
        one."""
        one = One(self.trained, self.mechanism.clip_norm)
        rows = min(PROBED, len(self.units))
        # by row needs losses by row, and a batch of one has nothing to gain
        able = isinstance(self, ExactTrainer) and self.units.single and min(rows, self.rows_at_once) > 1
        # blocks that are computed again can't be listened to
        able = able and not self.args.activation_checkpointing
        if not able or not fits(self.trained, self.rows_at_once):
            return one
        together = Together(network, self.trained, self.mechanism.clip_norm)
        # of all lengths: rows of one length show nothing of layers that read the padding
        order = np.argsort(self.units.lengths(), kind="stable")
        chosen = order[np.linspace(0, len(order) - 1, rows).astype(int)]
        features = [self.units[int(number), 0, True][0][0] for number in chosen]

        def losses(chosen: list[Any], together: bool) -> Callable[[], Tensor]:
            return lambda: self._losses_of(self._prepare_inputs(self.data_collator(chosen)), together)

        # dropout would differ between the two ways
        with _still(network):
            same = agree(together, one, losses(features, True), [losses([f], False) for f in features])
        return together if same else one

    def get_train_dataloader(self) -> DataLoader:
        """Steps of this process; a batch of it is a step's whole share, in parts."""
        args, accelerator = self.args, self.accelerator
        chance = Chance(
            self.mechanism.rate, self.mechanism.key, accelerator.num_processes, accelerator.process_index
        )
        an_epoch = steps_an_epoch(len(self.units), self.mechanism.expected)
        return EpochLoader(
            self.units,
            batch_sampler=PoissonSteps(self.units.lengths(), chance, an_epoch),
            collate_fn=in_parts(self.data_collator, self.rows_at_once if self.gradients.together else 1),
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[Any], None]:
        """The step's share; how many items are in it is nobody's business: each row is a mean of its own."""
        # None: the Trainer then scales no loss by the items of a step
        return list(islice(epoch_iterator, num_batches)), None

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """The noisy mean of the step's clipped gradients, left where the optimizer looks for it.

        Returns:
            The mean loss of this process's rows, which has no noise.

        Raises:
            InputError: a gradient is no number.
        """
        self.model.train()
        if callable(getattr(self.optimizer, "train", None)):  # optimizers that have modes
            self.optimizer.train()
        # zeros also where no row was drawn: such a step is noise alone, and must be taken
        sums = [blank(p) for p in self.trained]
        total, seen = torch.zeros((), device=self.args.device), 0
        for number, part in enumerate(inputs["parts"]):
            batch = self._prepare_inputs(part["batch"])
            # set before each part: dropout must not depend on what this process did before
            self._same_chance(batch, number)
            losses = partial(self._losses_of, batch, self.gradients.together)
            if part["counts"]:
                total += self.gradients.add(losses, sums).sum()
                seen += part["units"]
            else:
                losses()  # for what other processes gather meanwhile
        # summed over processes before the noise, which is added once
        self._leave(self.accelerator.reduce(sums, reduction="sum"))
        return total / max(seen, 1)

    def check_losses(self) -> None:
        """Gradients are looked at in the step itself."""

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """The trainer's own; a continued run goes on with the chance of its checkpoint, and a finished one
        leaves what it spent."""
        # a secret key is drawn anew at each start: the checkpoint's goes on
        if isinstance(resume_from_checkpoint, str):
            self.mechanism = continued(self.mechanism, Path(resume_from_checkpoint))
            if self.units.key is not None:
                self.units.key = self.mechanism.key
        output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        if self.is_world_process_zero():
            said = self.mechanism.record(self.state.global_step) | {"together": self.gradients.together}
            write_atomically(Path(str(self.args.output_dir)) / PRIVACY, json.dumps(said, indent=1))
        return output

    def _losses_of(self, batch: dict[str, Any], together: bool) -> Tensor:
        """The loss of each unit of a batch, a mean over its own items: [units], or [1] for one alone."""
        # see `__init__`: unwrapped, so that no hook averages over processes
        network = self.accelerator.unwrap_model(self.model)
        with self.compute_loss_context_manager():
            # a row at a time: its mean loss is a single number
            if not isinstance(self, ExactTrainer):
                return self.compute_loss(network, dict(batch)).reshape(1)
            losses, items, _ = self.measured(network, dict(batch))
            if not together:
                losses, items = losses.sum()[None], items.sum()[None]
            # a mean over the row's own items, as no total over rows may be used without noise
            return losses / items.clamp(min=1)

    def _same_chance(self, batch: dict[str, Any], part: int) -> None:
        """Dropout that follows from the row, whichever process has it, first or again; and from the key, not
        from a seed that the folder tells: one row more changes whose masks are whose, and who knew them all
        would see more of it than `clip_norm`."""
        rows = batch.get("row", [part])
        told = (self.mechanism.key, self.state.global_step, 2, int(rows[0]), len(rows))
        torch.manual_seed(int(np.random.SeedSequence(told).generate_state(1, np.uint64)[0] >> 1))

    def _leave(self, sums: list[Tensor]) -> None:
        """Sums of all processes → noisy means, as the parameters' gradients."""
        mechanism = self.mechanism
        # a NaN has a norm of NaN, and no clip bounds it
        if not all(bool(torch.isfinite(total).all()) for total in sums):
            raise InputError(
                f"A gradient is no number at step {self.state.global_step + 1}. Lower --learning_rate, or "
                "set --bf16 false"
            )
        deviation = mechanism.noise_multiplier * mechanism.clip_norm
        noise = noise_of(self.trained, deviation, mechanism.key, self.state.global_step)
        for parameter, total, added in zip(self.trained, sums, noise, strict=True):
            # by the expected number: the drawn one is private itself
            parameter.grad = ((total + added) / mechanism.expected).to(parameter.dtype)


def blank(parameter: Tensor) -> Tensor:
    """Zeros for a sum of gradients, in float32 or wider."""
    return torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))


def noise_of(parameters: Sequence[Tensor], deviation: float, key: int, step: int) -> Iterator[Tensor]:
    """Normal noise for each parameter, the same on every process and device: it follows from key and step."""
    # a generator on the CPU, so that all devices have the same numbers
    drawn = torch.Generator().manual_seed(int(generator(key, step, 1).integers(2**63)))
    for parameter in parameters:
        yield torch.randn(parameter.shape, generator=drawn).to(blank(parameter)) * deviation


@contextmanager
def _still(network: nn.Module) -> Iterator[None]:
    """A model without chance while the block runs, which leaves no trace in later chance."""
    # module by module: frozen parts may be in evaluation mode already
    modes = {module: module.training for module in network.modules()}
    devices = [p.device for p in network.parameters() if p.is_cuda][:1]
    with torch.random.fork_rng(devices):
        network.eval()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


def private(kind: type) -> type:
    """A trainer's class with `PrivateSteps` before it."""
    # mixed in front, so that `super()` finds the trainer's own steps
    return type(f"Private{kind.__name__}", (PrivateSteps, kind), {})


ROW = "a row of the training data"


def private_parts(
    privacy: PrivacyArguments,
    training: Any,
    kind: type,
    features: Mapping[str, Any],
    network: nn.Module,
    *,
    start: str = "",
    unit: str = ROW,
) -> dict[str, Any]:
    """What a trainer of this `kind` is made with: {"kind": ...}, and the mechanism where it shall be private.
    Asked for before the run's folder is claimed: a refused run leaves none.

    Args:
        features: of `train`, of which those of one `row` are one unit, and of `eval`.
        network: with its method on it.
        start: what `--model_name_or_path` said.
        unit: what is protected, in words.

    Raises:
        InputError: rows or model can't be trained on privately (`plan`, `check_apart`, `check_network`).
    """
    if not privacy.wanted:
        return {"kind": kind}
    check_network(cast(float, privacy.epsilon), network)
    rows = features["train"]
    check_apart(cast(float, privacy.epsilon), rows, features.get("eval"))
    # rows, not features: several may be of one row
    units = len(set(rows["row"][:])) if "row" in rows.column_names else len(rows)
    return {"kind": private(kind), "mechanism": plan(privacy, training, units, unit, start)}
