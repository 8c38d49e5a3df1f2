"""Trainers that sample as they learn: a run that goes on is the one that never stopped, or says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bounds import difference, weights
from conftest import make_tokenizer
from test_ppo_trainer import ROWS
from transformers import AutoModelForCausalLM
from trl.trainer.utils import RepeatSampler

from finetune.alignment.grpo import make_group_trainer
from finetune.alignment.grpo_options import GRPOArguments
from finetune.alignment.online import pad_right
from finetune.alignment.own_sampling import EpochRepeats, _keep, _kept, seed_dropout
from finetune.alignment.policy import make_policy
from finetune.alignment.rewards import Rewards
from finetune.errors import InputError


def length(prompts, answers):
    return [float(len(answer)) for answer in answers]


@pytest.fixture
def train(tmp_path, saved):
    """A folder, the checkpoint in it to go on from, options → a trained trainer."""
    base = saved("llama", AutoModelForCausalLM)

    def made(name: str, checkpoint: str | None = None, **options: Any) -> Any:
        network = AutoModelForCausalLM.from_pretrained(base)
        training = GRPOArguments(
            output_dir=str(tmp_path / name), bf16=False, learning_rate=1e-2, per_device_train_batch_size=4,
            max_completion_length=4, save_strategy="steps", save_steps=1, save_total_limit=None,
            report_to="none", per_device_eval_batch_size=4,
            **{"num_generations": 2, "max_steps": 3} | options,
        )  # fmt: skip
        trainer = make_group_trainer(
            make_policy(network, "full", None), make_tokenizer("llama"), training, ROWS, Rewards.of(l=length),
            held_out=ROWS,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=checkpoint and str(tmp_path / checkpoint))
        trainer.save_model(str(tmp_path / name))
        return trainer

    return made


def test_a_run_goes_on_between_two_steps_that_learn_from_the_same_answers(train, tmp_path: Path):
    """With a reference that follows, and a deviation of scores that was seen in the first step."""
    told = {"num_iterations": 2, "beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1}
    whole = train("whole", **told)
    assert (tmp_path / "whole" / "checkpoint-1" / "answers_0.safetensors").is_file()
    assert not (tmp_path / "whole" / "checkpoint-2" / "answers_0.safetensors").exists()
    again = train("again", "whole/checkpoint-1", **told)
    assert difference(weights(tmp_path / "again"), weights(tmp_path / "whole")) == 0
    assert again.rewards.spread == whole.rewards.spread > 0
    state = tmp_path / "whole" / "checkpoint-1" / "sampling.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"processes": 2}))
    with pytest.raises(InputError, match="written by 2 processes.*the same answers.*--output_dir"):
        train("other", "whole/checkpoint-1", **told)


def test_a_look_at_held_out_prompts_changes_nothing(train, tmp_path: Path):
    train("whole")
    looked = train("looked", eval_strategy="steps", eval_steps=1)
    assert difference(weights(tmp_path / "looked"), weights(tmp_path / "whole")) == 0
    assert [entry["step"] for entry in looked.state.log_history if "eval_loss" in entry] == [1, 2, 3]


def test_a_run_goes_on_in_the_middle_of_a_later_epoch(train, tmp_path: Path):
    """Two steps are an epoch."""
    for name, checkpoint in (("whole", None), ("again", "whole/checkpoint-3")):
        train(name, checkpoint, max_steps=6)
    assert difference(weights(tmp_path / "again"), weights(tmp_path / "whole")) == 0


def test_a_run_that_is_another_on_other_processes_says_so(train, tmp_path: Path):
    trainer = train("run")
    state = tmp_path / "run" / "checkpoint-2" / "sampling.json"
    whole = json.loads(state.read_text())
    for told, option, value, reason in (
        ({"rows": 8}, "steps_per_generation", 2, "a part of each process's answers"),
        ({"processes": 2}, "repetition_penalty", 1.1, "answers are drawn by TRL"),
        ({"processes": 2}, "tools", "mine.py", "with --tools"),
    ):
        before = vars(trainer.args)[option]
        vars(trainer.args)[option] = value
        state.write_text(json.dumps(whole | told))
        with pytest.raises(InputError, match=f"{reason}.*Start it as it was begun"):
            trainer.train(resume_from_checkpoint=str(state.parent))
        vars(trainer.args)[option] = before


def test_answers_are_padded_by_their_lengths():
    ids, mask = pad_right([[5], [6, 7, 0]], pad=0)
    assert ids.tolist() == [[5, 0, 0], [6, 7, 0]]
    assert mask.tolist() == [[1, 0, 0], [1, 1, 1]]


def test_the_order_of_an_epoch_is_known_without_the_ones_before():
    told = {"data_source": range(7), "mini_repeat_count": 2, "batch_size": 2, "repeat_count": 2, "seed": 3}
    theirs, ours = RepeatSampler(**told), EpochRepeats(**told)
    orders = [list(theirs) for _ in range(3)]
    for epoch in (2, 0, 1, 1):
        ours.set_epoch(epoch)
        assert list(ours) == orders[epoch]


def test_prompts_that_make_no_step_are_refused(train):
    with pytest.raises(InputError, match="There are 4 training prompts, and a step takes 8"):
        train("none", gradient_accumulation_steps=4)


def test_dropout_follows_from_the_place_in_the_step():
    drawn = []
    for place in ((0, 1, 0), (0, 1, 1), (0, 1, 0)):
        seed_dropout(*place)
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[2] != drawn[1]


def test_micro_batches_come_back_from_their_file_as_they_were(tmp_path):
    whole = torch.arange(12).view(4, 3)
    # cut from one tensor, as TRL's are, beside what is none
    batches = [
        {"ids": part, "advantages": torch.tensor([0.5, -1.5]), "count": 7, "images": None}
        for part in whole.split(2)
    ]
    _keep(batches, tmp_path / "answers_0.safetensors")
    found = _kept(tmp_path / "answers_0.safetensors", torch.device("cpu"))
    for one, other in zip(found, batches, strict=True):
        assert one.keys() == other.keys() and (one["count"], one["images"]) == (7, None)
        assert torch.equal(one["ids"], other["ids"]) and torch.equal(one["advantages"], other["advantages"])
