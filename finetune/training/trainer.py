"""Features and a model → a trained model. Knows transformers' Trainer; knows tasks only as the functions of a
row.

Losses are exact: sums divided by the number of items of the whole optimizer step, over all micro-batches and
processes. transformers' own way multiplies the loss of most heads by accumulation steps and processes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction

from finetune.artefacts.checkpoints import Sealer
from finetune.artefacts.runs import started_with
from finetune.data.batching import BatchingArguments, EpochLoader, LengthBatches, Shares
from finetune.errors import InputError
from finetune.methods import trainable_share
from finetune.models.frozen_head import causal_costs, packed_costs, plain_head
from finetune.models.heads import core
from finetune.objectives.streams import Stream
from finetune.tasks.task import Task
from finetune.training.energy import ENERGY, PROCESSOR, EnergyMeter, ProcessorMeter, has_meter
from finetune.training.hub import UNREACHED, unreached
from finetune.training.interrupts import Interrupts, Resuming
from finetune.training.machine import peak_memory_mb
from finetune.training.optimizers import check_optimizer
from finetune.training.options import TrainingArguments
from finetune.training.progress import Progress, announce

logger = logging.getLogger(__name__)


class _LossCheck(TrainerCallback):
    """Losses are looked at once an optimizer step, before it is taken."""

    def __init__(self, trainer: ExactTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.check_losses()


@dataclass(frozen=True)
class Sets:
    """The data set of each evaluation feature, in the model's order, and of each raw row; of texts whose
    bytes are counted, each data set's."""

    features: list[str]
    rows: list[str]
    bytes: dict[str, int] | None = None


class ExactTrainer(Resuming):
    """transformers' Trainer with exact losses, batches by length, and an end to runs whose loss is no number.

    After an evaluation `losses` holds the summed loss and number of items of each feature, [features, 2].

    Args:
        row: the task, which brings loss, items and metrics.
        names: label names, handed to the metrics.
        batching: how rows are put together.
        shape_loss: keyword arguments of the row's loss for training (smoothing, weights); evaluation has none
            of them.
        answer: (what evaluation kept, network) → one answer a raw row; they stand in `answers` after each
            evaluation.
        sets: which data set each evaluation row is of, where there are several.
    """

    def __init__(
        self,
        *,
        row: Task,
        names: list[str] | None,
        batching: BatchingArguments,
        shape_loss: dict[str, Any] | None = None,
        answer: Callable[[Any, Any], list[dict[str, Any]]] | None = None,
        sets: Sets | None = None,
        **kwargs: Any,
    ) -> None:
        self.sets = sets
        self.row, self.names, self.batching, self.shape_loss = row, names, batching, shape_loss or {}
        self.answer = answer
        self.answers: list[dict[str, Any]] = []
        self.losses = np.zeros((0, 2))
        super().__init__(compute_metrics=self._figures, **kwargs)
        if self.row.forward in (packed_costs, causal_costs):
            plain_head(core(self.model))  # asked now: inside a step it would meet noise and sharded weights
        # transformers' word for: divided by the items of the whole step already
        self.loss_is_scaled_for_ga = True
        # made before the device was known, and met by every batch's logits
        self.shape_loss = {
            k: v.to(self.args.device) if torch.is_tensor(v) else v for k, v in self.shape_loss.items()
        }
        self._losses: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        self.add_callback(_LossCheck(self))  # after all micro-batches, before the optimizer

    def get_train_dataloader(self) -> DataLoader:
        """Batches of this process. accelerate must not deal them out again, so that it never sees the
        loader.
        """
        args = self.args
        processes, process = self.accelerator.num_processes, self.accelerator.process_index
        if isinstance(self.train_dataset, Stream):  # it knows no lengths, and its share is cut already
            return DataLoader(
                self.train_dataset.share(processes, process),
                args.per_device_train_batch_size,
                collate_fn=self.data_collator,
                pin_memory=args.dataloader_pin_memory,
            )
        at_first = [started_with(Path(str(args.output_dir))) or processes]  # resumed: the deal it began with
        shares = Shares(
            args.per_device_train_batch_size, args.gradient_accumulation_steps, processes, process,
            broadcast_object_list(at_first)[0],  # the main process alone may see it
        )  # fmt: skip
        batches = LengthBatches(
            self.train_dataset["length"][:],  # one by one, a column on disk is slow
            shares,
            args.seed if args.data_seed is None else args.data_seed,
            budget=self.batching.tokens_per_batch,
            group=self.batching.group_by_length,
        )
        return EpochLoader(
            self.train_dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict], torch.Tensor | int | None]:
        """The micro-batches of one optimizer step and the number of items in them over all processes."""
        samples = list(islice(epoch_iterator, num_batches))  # the last step of an epoch may have fewer
        # a tensor on the device even without a batch: every process has to take part in the gather
        total = sum((self.row.items(batch["labels"]).sum() for batch in samples), torch.tensor(0)).to(device)
        return samples, self.accelerator.gather(total).sum()

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """transformers' own, with chance that follows from the rows: whichever process has them, first or
        again.
        """
        if "row" in inputs:
            # the first row and the number tell micro-batches of one step apart, on every process alike
            first, count = int(inputs["row"][0]), len(inputs["row"])
            drawn = np.random.SeedSequence(
                (self.args.seed, self.state.global_step, first, count)
            ).generate_state(1, np.uint64)
            torch.manual_seed(int(drawn[0] >> 1))
        return super().training_step(model, inputs, *args, **kwargs)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The row's summed losses over the step's items."""
        rows = inputs.get("row")
        losses, _, logits = self.measured(model, inputs)
        # distributed training takes the mean of the processes' gradients
        share = torch.as_tensor(num_items_in_batch).clamp(min=1) / self.accelerator.num_processes
        loss = losses.sum() / share
        self._losses.append((loss.detach(), rows))
        return (loss, {"logits": logits}) if return_outputs else loss

    def measured(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """The summed loss and number of items of each training row, both [batch], and the logits."""
        labels = inputs.pop("labels")
        inputs.pop("row", None)  # for the check of losses alone
        logits = self.row.forward(model, inputs, labels)
        return self.row.loss(logits, labels, **self.shape_loss), self.row.items(labels), logits

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """None: transformers counts a model's weights anew for each micro-batch, and its figure is read by
        nothing here.
        """
        return 0

    def check_losses(self) -> None:
        """Look at all losses of an optimizer step at once: each look waits for a GPU.

        Raises:
            InputError: one is no number; names the step and the rows, before any weight has moved.
        """
        losses, self._losses = self._losses, []  # emptied first: an error leaves none to the next step
        values = torch.stack([loss for loss, _ in losses]).tolist()
        for value, (_, rows) in zip(values, losses, strict=True):
            if not math.isfinite(value):
                named = "" if rows is None else f" on the training rows {rows.tolist()}"
                raise InputError(
                    f"The loss is {value} at step {self.state.global_step + 1}{named}. Lower "
                    "--learning_rate or --max_grad_norm, set --bf16 false, or mend the rows; checkpoints "
                    "before it are whole"
                )

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, Any, Any]:
        """What is kept of the logits, and each row's summed loss and number of items: what an exact mean over
        any batches needs.
        """
        inputs = self._prepare_inputs(inputs)
        inputs.pop("row", None)
        labels = inputs.pop("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = self.row.forward(model, inputs, labels).float()  # numpy knows no bf16
        return (
            None,
            (self.row.keep(logits, labels), self.row.loss(logits, labels), self.row.items(labels)),
            self.row.keep_labels(labels),
        )

    def _figures(self, prediction: Any, **further: Any) -> dict[str, Any]:
        kept, losses, items = prediction.predictions
        self.losses = np.stack([losses, items], axis=1).astype(np.float64)  # many are added up
        loss = float(losses.sum(dtype="float64") / max(items.sum(), 1))
        return {"loss": loss, **self.row.metrics(kept, prediction.label_ids, self.names, **further)}

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """transformers' own, and the answers to raw rows with their figures."""
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        if self.answer is not None:
            self.answers = self.answer(output.predictions[0], self.unwrapped())
            figures = self.row.figures(self.answers, self.names) if self.row.figures else {}
            named = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
            output.metrics.update(named)  # type: ignore[union-attr]
        if self.sets is not None and len(self.sets.features) == len(output.predictions[0]):
            output.metrics.update(self._by_set(output, metric_key_prefix))  # type: ignore[union-attr]
        self._want_best(output.metrics or {})
        return output

    def _by_set(self, output: EvalLoopOutput, prefix: str) -> dict[str, float]:
        """The figures of each data set alone, where there are several: `eval_NAME_accuracy`."""
        assert self.sets is not None
        whole = self.losses  # which `_figures` below overwrites
        found: dict[str, float] = {}
        for name in dict.fromkeys(self.sets.features):
            there = np.asarray(self.sets.features) == name
            part = EvalPrediction(tuple(kept[there] for kept in output.predictions), output.label_ids[there])
            counted = {} if self.sets.bytes is None else {"byte_count": self.sets.bytes[name]}
            figures = self._figures(part, **counted)
            answers = [a for a, of in zip(self.answers, self.sets.rows, strict=False) if of == name]
            if answers and self.row.figures:
                figures |= self.row.figures(answers, self.names)
            found |= {f"{prefix}_{name}_{figure}": value for figure, value in figures.items()}
        self.losses = whole
        return found

    def _want_best(self, figures: dict[str, float]) -> None:
        """The figure that tells the better of two models is among those that there are."""
        best = self.args.metric_for_best_model
        if best is not None and f"eval_{best.removeprefix('eval_')}" not in figures:
            there = ", ".join(
                name.removeprefix("eval_") for name, value in figures.items() if isinstance(value, float)
            )
            raise InputError(
                f"No figure '{best}' to tell the best model by; there are: {there}. Set "
                "--metric_for_best_model"
            )

    def last_figures(self) -> dict[str, Any]:
        """Figures of the model as it now is, on the evaluation rows; an evaluation that has just been made is
        not made again.
        """
        history = [entry for entry in self.state.log_history if "eval_loss" in entry]
        fresh = (
            history and history[-1]["step"] == self.state.global_step and not self.args.load_best_model_at_end
        )
        fresh = fresh and (
            self.answer is None or self.answers
        )  # a run that was killed at its very end has no answers any more
        figures = history[-1] if fresh else self.evaluate()
        kept = {k.removeprefix("eval_"): v for k, v in figures.items() if k.startswith("eval_")}
        trained, every = trainable_share(self.unwrapped())
        return kept | {
            "steps": self.state.global_step,
            "epochs": self.state.epoch,
            "seconds": self._logged("train_runtime"),
            PROCESSOR: self._logged(PROCESSOR),
            **({ENERGY: self._logged(ENERGY)} if has_meter() else {}),
            "peak_memory_mb": peak_memory_mb(),
            "trainable": trained,
            "parameters": every,
        }

    def _logged(self, name: str) -> float:
        """Sum over a run and what it was resumed from."""
        return sum(entry[name] for entry in self.state.log_history if name in entry)

    def unwrapped(self) -> Any:
        """The model without what distributed training put around it."""
        return self.accelerator.unwrap_model(self.model)


def make_trainer(
    row: Task,
    network: Any,
    processor: Any,
    training: TrainingArguments,
    features: dict[str, Dataset],
    *,
    labels: list[str] | None = None,
    batching: BatchingArguments | None = None,
    shape_loss: dict[str, Any] | None = None,
    answer: Callable[[Any, Any], list[dict[str, Any]]] | None = None,
    patience: int | None = None,
    kind: type[ExactTrainer] | None = None,
    **further: Any,
) -> ExactTrainer:
    """A trainer for a row of TASKS or OBJECTIVES on encoded features {"train": ..., "eval": ...}.

    `kind` is a subclass to make instead, and `further` its own arguments.
    """
    share = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    limit = training.save_total_limit
    training = replace(
        training, save_total_limit=None
    )  # the Sealer keeps it: the old one goes when the new one is whole
    check_optimizer(training, network)
    make = kind or ExactTrainer
    trainer = _made(
        make,
        row=row,
        names=labels,
        batching=batching or BatchingArguments(),
        shape_loss=shape_loss,
        answer=answer,
        model=network,
        args=training,
        train_dataset=features.get("train"),
        eval_dataset=by_length(features["eval"]) if "eval" in features else None,
        processing_class=processor,
        data_collator=row.collate(processor),
        callbacks=[
            Sealer(limit),
            Progress(share),
            ProcessorMeter(),
            *([] if patience is None else [EarlyStoppingCallback(patience)]),
            *([EnergyMeter()] if has_meter() else []),
            Interrupts(training.time_limit),
        ],
        **further,
    )
    trainer.remove_callback(ProgressCallback)  # Progress is both
    trainer.remove_callback(PrinterCallback)
    if trainer.is_world_process_zero():
        announce(network, training)
    return trainer


def _made(make: Callable[..., ExactTrainer], **arguments: Any) -> ExactTrainer:
    """A trainer, which makes its repository on the hub at once where it shall push there.

    Raises:
        InputError: the hub isn't to be reached, or knows nobody by this token.
    """
    try:
        return make(**arguments)
    except UNREACHED as error:
        if not arguments["args"].push_to_hub:  # a full disk is an OSError too
            raise
        raise unreached(error) from error


def by_length(features: Dataset) -> Dataset:
    """Features sorted by length, so that evaluation pads little; their column `row` says where each one
    stood.
    """
    return features.select(np.argsort(features["length"][:], kind="stable"))  # ties alike on every process
