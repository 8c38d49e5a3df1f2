"""What would tell of rows beside the noise: starts, chance that others know, steps that are left out."""

from __future__ import annotations

import json
from dataclasses import replace

import private_steps
import pytest
import torch
from bounds import assert_near
from conftest import make_model
from gradients import one_step
from private_steps import by_loop, made
from test_train import script, train
from transformers import AutoModelForSequenceClassification

from finetune.artefacts.files import ARGUMENTS, PRIVACY, SEAL
from finetune.artefacts.trained_rows import TRAINED_ROWS
from finetune.cli.parser import parse
from finetune.errors import InputError
from finetune.methods import attach
from finetune.privacy.disclosure import check_start, spent_before
from finetune.privacy.options import PrivacyArguments, check_private
from finetune.privacy.sampling import in_parts
from finetune.training.options import TrainingArguments

BERT, MLM = ("classification", "bert", "lora"), ("mlm", "", "full")


def summed(trainer, units: list[int]) -> torch.Tensor:
    """The clipped gradients of these units, as a step without noise adds them up."""
    collate = in_parts(trainer.data_collator, trainer.rows_at_once if trainer.gradients.together else 1)
    trainer.training_step(trainer.model, collate([trainer.units[unit, 0, True] for unit in units]))
    return torch.cat([p.grad.flatten() for p in trainer.trained]) * trainer.mechanism.expected


@pytest.mark.parametrize("case", [BERT, ("classification", "bert", "full"), MLM])
def test_a_row_moves_a_step_by_no_more_than_the_clip_norm(case, tmp_path):
    trainer = made(*case, "uneven", tmp_path)
    units = list(range(len(trainer.units)))
    whole = summed(trainer, units)
    moved = [float((whole - summed(trainer, units[:one] + units[one + 1 :])).norm()) for one in units]
    assert 0.99 * trainer.mechanism.clip_norm < max(moved) < (1 + 1e-9) * trainer.mechanism.clip_norm


@pytest.mark.parametrize("case", [BERT, MLM])
def test_dropout_and_masks_follow_from_the_key_alone(case, tmp_path):
    """Which masks a row has hangs on the rows beside it: whoever knew them would see more of a row than its
    clipped gradient. --seed stands in the folder, a secret key doesn't."""
    trainer = made(*case, "uneven", tmp_path, key=3)
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    units = list(range(len(trainer.units)))
    first = summed(trainer, units)
    assert torch.equal(summed(trainer, units), first)
    trainer.args.seed += 1
    assert torch.equal(summed(trainer, units), first)
    trainer.mechanism, trainer.units.key = replace(trainer.mechanism, key=4), trainer.units.key and 4
    assert not torch.allclose(summed(trainer, units), first)


def test_blocks_that_are_computed_again_go_row_by_row(tmp_path):
    trainer = made(*BERT, "uneven", tmp_path)
    wanted = by_loop(trainer)
    trainer.args.activation_checkpointing = True
    trainer.gradients = trainer._settle(trainer.model)
    assert not trainer.gradients.together
    trainer.model.activation_checkpointing_enable({"use_reentrant": False})
    summed(trainer, list(range(len(trainer.units))))
    found = {
        name: p.grad * trainer.mechanism.expected
        for name, p in trainer.model.named_parameters()
        if p.grad is not None
    }
    assert_near(found, wanted, 1e-6)


def test_a_batch_of_all_processes_is_one_step(tmp_path, monkeypatch):
    """The Trainer would else gather several private steps and take the last."""
    monkeypatch.setattr(
        private_steps, "one_step", lambda *told: replace(one_step(*told), global_batch_size=9)
    )
    trainer = made(*BERT, "uneven", tmp_path)
    assert trainer.args.gradient_accumulation_steps == 1 and trainer.rows_at_once == 3


def test_what_was_made_without_noise_is_no_start(tmp_path):
    for name in (ARGUMENTS, SEAL, TRAINED_ROWS):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("")
        with pytest.raises(InputError, match="trained before without it"):
            check_start(8.0, False, str(folder))
        check_start(8.0, True, str(folder))
        (folder / PRIVACY).write_text("{}")
        check_start(8.0, False, str(folder))
    check_start(8.0, False, str(tmp_path))


def test_an_adapter_of_any_tool_is_no_start(tmp_path):
    """PEFT's own `save_pretrained` leaves no arguments; what trained it nobody knows."""
    tuned = attach(make_model("bert", AutoModelForSequenceClassification), "lora", {}, "SEQ_CLS")
    tuned.save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="trained before without it"):
        check_start(8.0, False, str(tmp_path / "adapter"))
    check_start(8.0, True, str(tmp_path / "adapter"))


def test_runs_that_follow_each_other_add_up(tmp_path):
    said = {"epsilon": 3.0, "delta": 1e-5, "before": {"epsilon": 8.0, "delta": 1e-5}}
    (tmp_path / PRIVACY).write_text(json.dumps(said))
    assert spent_before(str(tmp_path)) == {"epsilon": 11.0, "delta": 2e-5}
    (tmp_path / PRIVACY).write_text(json.dumps(said | {"before": None}))
    assert spent_before(str(tmp_path)) == {"epsilon": 3.0, "delta": 1e-5}
    assert spent_before(str(tmp_path / "base")) is None
    for damaged in ("", "[]", "{}", '{"epsilon": "much", "delta": 1e-5}'):
        (tmp_path / PRIVACY).write_text(damaged)
        with pytest.raises(InputError, match="privacy.json doesn't say what was spent"):
            spent_before(str(tmp_path))


def test_a_private_adapter_that_is_merged_takes_its_account_along(saved, review_file, tmp_path):
    run = train(saved("bert", AutoModelForSequenceClassification), review_file, tmp_path / "run")
    main, account = script("adapter").main, {"epsilon": 3.0, "delta": 1e-5}

    def merged(name: str) -> str:
        given = ["--action", "into_base", "--adapters", str(run), "--output_dir", str(tmp_path / name)]
        main(*parse(main, given))
        return str(tmp_path / name)

    with pytest.raises(InputError, match="trained before without it"):
        check_start(8.0, False, merged("plain"))
    (run / PRIVACY).write_text(json.dumps(account))
    check_start(8.0, False, merged("private"))
    assert spent_before(str(tmp_path / "private")) == account


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints", "end"])
def test_checkpoints_are_not_pushed_with_what_the_noise_follows_from(strategy, tmp_path):
    training = TrainingArguments(output_dir=str(tmp_path), hub_strategy=strategy)
    training.push_to_hub = True  # which the constructor asks a hub about
    if strategy == "end":
        return check_private(PrivacyArguments(epsilon=8.0), training, None)
    with pytest.raises(InputError, match="--hub_strategy pushes checkpoints"):
        check_private(PrivacyArguments(epsilon=8.0), training, None)
