"""One optimizer step → the gradients that the optimizer sees: what tasks and objectives are held to."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from finetune.training.options import TrainingArguments

Gradients = dict[str, torch.Tensor]
# (rows a micro-batch, accumulation); eight rows a step
SPLITS = {"batch": (8, 1), "accumulation": (1, 8), "uneven": (3, 3), "processes": (4, 1)}


def one_step(split: str, folder: Path) -> TrainingArguments:
    """Options of a single step of plain gradient descent, the rows dealt out as `split` says."""
    rows, accumulation = SPLITS[split]
    return TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=rows, gradient_accumulation_steps=accumulation,
        max_steps=1,
        bf16=False, optim="sgd", learning_rate=0.1, max_grad_norm=0.0, eval_strategy="no", save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )  # fmt: skip


class KeepGradients(TrainerCallback):
    """What the optimizer is about to see, after accumulation and over all processes."""

    def __init__(self) -> None:
        self.gradients: Gradients = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        model = getattr(model, "module", model)
        self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def trained(trainer) -> Gradients:
    """The gradients of the step, and its logged loss under the key `loss`."""
    keeper = KeepGradients()
    trainer.add_callback(keeper)
    trainer.train()
    return keeper.gradients | {"loss": torch.tensor(trainer.state.log_history[0]["loss"])}


def write(found: dict[str, Gradients], folder: Path) -> None:
    """The gradients of each case in one file, written by the first of several processes."""
    if os.environ.get("RANK", "0") == "0":
        flat = {
            f"{case}/{name}": value for case, gradients in found.items() for name, value in gradients.items()
        }
        save_file(flat, folder / "gradients.safetensors")


def written(folder: Path) -> dict[str, Gradients]:
    """What `write` wrote."""
    found: dict[str, Gradients] = {}
    for key, value in load_file(folder / "gradients.safetensors").items():
        case, _, name = key.rpartition("/")
        found.setdefault(case, {})[name] = value
    return found


def relative_difference(one: Gradients, other: Gradients, least: float = 1e-5) -> float:
    """Norm of the difference over the norm of `one`, which must be above `least`: gradients that are
    nothing are always alike.
    """
    assert one.keys() == other.keys()
    norm = torch.stack([value.norm() for name, value in one.items() if name != "loss"]).norm()
    assert norm > least
    return float(torch.stack([(one[name] - other[name]).norm() for name in one]).norm() / norm)
