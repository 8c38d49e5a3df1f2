"""Objectives through the trainer: resumed is uninterrupted, bad input is said."""

from __future__ import annotations

import pytest
import torch
from conftest import make_model, make_tokenizer
from objective_gradients import prepared
from transformers import AutoModelForMaskedLM, TrainerCallback

from finetune.data.batching import BatchingArguments
from finetune.errors import InputError
from finetune.objectives.contrastive import ContrastiveArguments
from finetune.objectives.options import ObjectiveArguments
from finetune.objectives.table import OBJECTIVES, check_model, check_objective, settle_objective
from finetune.training.options import TrainingArguments
from finetune.training.pretraining import FreshTrainer
from finetune.training.trainer import make_trainer


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step == self.step


def trained(folder, stop=None, resume=None, workers=0, **changes):
    row, processor, network, features = prepared("mlm")
    training = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2, num_train_epochs=2, bf16=False,
        learning_rate=1e-2,
        eval_strategy="no", save_strategy="steps", save_steps=2, save_total_limit=None, disable_tqdm=True,
        dataloader_num_workers=workers, **changes,
    )  # fmt: skip
    trainer = make_trainer(
        row,
        network,
        processor,
        training,
        {"train": features},
        batching=BatchingArguments(),
        kind=FreshTrainer,
    )
    if stop:
        trainer.add_callback(StopAt(stop))
    trainer.train(resume_from_checkpoint=resume and str(resume))
    return {name: value.detach().clone() for name, value in network.named_parameters()}


@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_resumed_run_sees_the_noise_of_the_one_that_was_left(tmp_path, step):
    """In the middle of the first epoch, at its end, and in the middle of the second."""
    whole = trained(tmp_path / "whole")
    resumed = trained(tmp_path / "again", resume=tmp_path / "whole" / f"checkpoint-{step}")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_worker_processes_draw_the_same_noise(tmp_path):
    whole, fetched = (
        trained(tmp_path / "whole"),
        trained(tmp_path / "workers", workers=1, dataloader_persistent_workers=True),
    )
    assert all(torch.equal(whole[name], fetched[name]) for name in whole)


def test_evaluation_is_exact_for_any_batch_size(tmp_path):
    figures = []
    for size in (1, 3, 8):
        row, processor, network, features = prepared("mlm")
        training = TrainingArguments(
            output_dir=str(tmp_path), per_device_eval_batch_size=size, bf16=False, disable_tqdm=True
        )
        trainer = make_trainer(row, network, processor, training, {"eval": features}, kind=FreshTrainer)
        figures.append({k: v for k, v in trainer.evaluate().items() if "second" not in k and "time" not in k})
    assert figures[0]["eval_tokens"] == figures[1]["eval_tokens"] == 13
    for other in figures[1:]:
        assert other == pytest.approx(figures[0], rel=1e-5)
    assert figures[0]["eval_perplexity"] == pytest.approx(2.718281828 ** figures[0]["eval_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "glm"}, "Unknown objective 'glm'.*--objective"),
        ({"objective": "clm", "masking_rate": 0.2}, "'clm' has no use for --masking_rate"),
        ({"objective": "mlm", "masking_rate": 1.5}, "--masking_rate 1.5 is no share"),
        ({"objective": "mlm", "layout": "heap"}, "Unknown layout 'heap'.*--layout"),
        ({"objective": "span_corruption", "mean_span": 0.5}, "--mean_span 0.5 is below 1"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        settle_objective(ObjectiveArguments(**options), ContrastiveArguments(), 0)


def test_options_of_another_objective():
    with pytest.raises(InputError, match=r"'mlm' has no use for --temperature"):
        settle_objective(ObjectiveArguments("mlm"), ContrastiveArguments(temperature=0.1), 0)
    with pytest.raises(InputError, match=r"Unknown pooling 'max'.*--pooling"):
        settle_objective(ObjectiveArguments("contrastive"), ContrastiveArguments(pooling="max"), 0)


@pytest.mark.parametrize(
    ("objective", "family", "fits"),
    [("mlm", "bert", True), ("mlm", "llama", False), ("mlm", "bart", False), ("clm", "gpt2", True),
    ("clm", "bert", False),
     ("nsp", "llama", False), ("nsp", "roberta", False), ("nsp", "albert", True), ("span_corruption", "t5",
     True),
     ("infilling", "gpt2", False), ("contrastive", "llama", True), ("contrastive", "t5", False)],
)  # fmt: skip
def test_models_that_cannot_learn_it_are_refused(objective, family, fits):
    if fits:
        check_model(objective, OBJECTIVES[objective], family)
        return
    with pytest.raises(InputError, match=rf"'{objective}' can't train a model of the family '{family}'"):
        check_model(objective, OBJECTIVES[objective], family)


def test_tokenizers_without_what_the_objective_writes():
    processor, network = make_tokenizer("llama"), make_model("bert", AutoModelForMaskedLM)
    with pytest.raises(InputError, match=r"no sentinels.*finetune tokenizer"):
        check_objective("span_corruption", OBJECTIVES["span_corruption"], network, processor)
    processor.mask_token = None
    with pytest.raises(
        InputError,
        match=r"no mask token, which the objective 'mlm' needs.*finetune tokenizer --objective mlm",
    ):
        check_objective("mlm", OBJECTIVES["mlm"], network, processor)


def test_two_views_need_dropout():
    with pytest.raises(InputError, match=r"no dropout.*--supervised"):
        check_objective(
            "contrastive",
            OBJECTIVES["contrastive"],
            make_model("bert", AutoModelForMaskedLM),
            make_tokenizer("bert"),
        )
