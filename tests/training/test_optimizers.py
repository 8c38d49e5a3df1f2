"""Every optimizer that transformers names takes steps here, or is refused in a sentence that says why."""

from __future__ import annotations

import pytest
import torch
from objective_gradients import prepared
from torch._inductor import config as inductor
from transformers import Trainer
from transformers.training_args import OptimizerNames

from finetune.errors import InputError
from finetune.training.optimizers import COMPILED, ON_CUDA, OWN_WARMUP, check_optimizer
from finetune.training.options import TrainingArguments
from finetune.training.pretraining import FreshTrainer
from finetune.training.trainer import make_trainer

# PyTorch's and transformers' own, which need no further package
HERE = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"}


@pytest.fixture(scope="module")
def made():
    return prepared("mlm")


def options(folder: object, name: str, **further: object) -> TrainingArguments:
    low_rank = name.startswith(("galore", "apollo"))
    return TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, max_steps=2, bf16=False, learning_rate=1e-3,
        eval_strategy="no", save_strategy="no", disable_tqdm=True, optim=name,
        optim_target_modules=["query", "dense"] if low_rank else None, **({"warmup_steps": 0} | further),
    )  # fmt: skip


@pytest.mark.parametrize("name", [one.value for one in OptimizerNames])
def test_an_optimizer_takes_steps_or_says_why_not(name, made, tmp_path):
    row, processor, network, features = made
    before = {key: value.detach().clone() for key, value in network.named_parameters()}
    try:
        trainer = make_trainer(
            row, network, processor, options(tmp_path, name), {"train": features}, kind=FreshTrainer
        )
    except InputError as refused:
        assert name not in HERE
        assert name not in ON_CUDA or "on NVIDIA's GPUs alone, and this run is on CPU" in str(refused)
        assert str(refused).startswith(f"--optim {name} can't be used: ") and "\n" not in str(refused)
        return
    trainer.train()
    after = dict(network.named_parameters())
    # the pooler has no part in this objective
    assert {key for key in before if not before[key].equal(after[key])} >= {
        key for key in before if ".attention." in key and not key.endswith("key.bias")
    }


@pytest.mark.parametrize("name", COMPILED)
def test_an_optimizer_that_is_compiled_wants_a_compiler(name, made, tmp_path, monkeypatch):
    # whether its package is here or not
    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", lambda *given: (None, {}))
    lacking = inductor.patch({"cpp.cxx": (str(tmp_path / "none"),), "force_disable_caches": True})
    wanted = f"^--optim {name} can't be used: .*Install a C.. compiler"
    with lacking, pytest.raises(InputError, match=wanted) as said:
        check_optimizer(options(tmp_path, name), made[2])
    torch.compiler.reset()
    assert "\n" not in str(said.value) and len(str(said.value)) < 400


@pytest.mark.parametrize("name", OWN_WARMUP)
def test_a_share_of_all_steps_is_no_number_of_warm_up_steps(name, made, tmp_path, monkeypatch):
    # whether its package is here or not
    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", lambda *given: (None, {}))
    with pytest.raises(InputError, match="Set --warmup_steps 0, or a number of steps"):
        check_optimizer(options(tmp_path, name, warmup_steps=0.1), made[2])
