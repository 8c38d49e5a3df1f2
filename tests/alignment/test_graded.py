"""Reward models on graded answers: rows, what is read where, what is learnt, and one score of many."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import make_model, make_tokenizer
from datasets import Dataset
from scripted import run
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from finetune.alignment.graded import GradedTrainer, joined_marks, scores_at, squares, verdict_cost
from finetune.alignment.graded_rows import grade_spread, step_places
from finetune.alignment.policy import make_policy
from finetune.alignment.reward_heads import head_weights, one_head
from finetune.alignment.reward_kinds import load_reward, load_rewards
from finetune.alignment.rewards import RewardArguments
from finetune.data.graded import lay_out_graded, lay_out_steps
from finetune.data.sources import DataArguments
from finetune.errors import InputError
from finetune.models.load import ModelArguments

DATA = DataArguments(dataset_name=["rows"])
TRAINING = "--bf16 false --num_train_epochs 6 --learning_rate 1e-2 --max_length 32 --disable_tqdm true"


def as_file(folder: Path, rows: list[dict]) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"--dataset_name {file} --eval_dataset_name {file} --output_dir {folder}/out"


def graded(words: str = "great", good: float = 4) -> dict:
    return {"prompt": "the film", "response": f"was {words}", "helpful": good, "long": len(words)}


def test_a_step_is_read_at_its_last_token():
    processor = make_tokenizer("llama")
    ids, places = step_places(processor, "the film", ["was great", "the story"], "\n")
    assert processor.decode([ids[place] for place in places]).split() == ["great", "story"]
    # what stands behind changes nothing
    assert step_places(processor, "the film", ["was great"], "\n")[1] == places[:1]


def test_numbers_may_be_missing_and_must_be_numbers():
    rows = Dataset.from_list([graded(), graded() | {"helpful": None}])
    laid = lay_out_graded(rows, DATA, ["helpful"])
    assert laid.rows["helpful"][:] == [4.0, None] and laid.rows["completion"][:] == ["was great"] * 2
    with pytest.raises(InputError, match=r"'high' in 'helpful'; wanted a number"):
        lay_out_graded(Dataset.from_list([graded() | {"helpful": "high"}]), DATA, ["helpful"])
    with pytest.raises(InputError, match="No column 'kind'.*--attributes"):
        lay_out_graded(rows, DATA, ["helpful", "kind"])
    with pytest.raises(InputError, match="says nothing.*--attributes"):
        grade_spread("helpful", [2.0, None, 2.0])


@pytest.mark.parametrize(
    "labels", [[True], ["true", "perhaps"], None], ids=["another number", "no verdict", "none"]
)
def test_steps_without_a_verdict_each_are_named(labels):
    rows = Dataset.from_dict({"prompt": ["1+1"], "completions": [["one", "two"]], "labels": [labels]})
    with pytest.raises(InputError, match="row 0"):
        lay_out_steps(rows, DATA)


def test_the_loss_is_a_mean_over_grades_whatever_the_batch():
    network, processor = (
        make_model("llama", AutoModelForSequenceClassification, num_labels=2),
        make_tokenizer("llama"),
    )
    rows = [
        {"input_ids": [5, 6, 7], "places": [2], "targets": [[1.0, float("nan")]]},
        {"input_ids": [5, 6, 7, 8], "places": [3], "targets": [[0.5, -1.0]]},
    ]
    whole = joined_marks(rows, processor)
    costs = [
        ((scores_at(network, joined_marks([row], processor)) - torch.tensor([row["targets"]])) ** 2).nansum()
        for row in rows
    ]
    trainer = GradedTrainer(cost=squares, model=network)
    torch.testing.assert_close(trainer.compute_loss(network, whole), sum(costs) / 3)
    # another grade that is missing sends no gradient anywhere
    trainer.compute_loss(network, whole).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
    assert verdict_cost(torch.zeros(2), torch.tensor([0.0, 1.0])).tolist() == pytest.approx(
        [0.6931] * 2, abs=1e-4
    )


def test_heads_are_added_up_by_weights():
    head, states = nn.Linear(4, 3), torch.randn(5, 4)
    weights = head_weights("b=2,c=-0.5", ["a", "b", "c"], "F")
    assert weights.tolist() == [0.0, 2.0, -0.5] and head_weights("", ["a", "b"], "F").tolist() == [1.0, 1.0]
    torch.testing.assert_close(one_head(head, weights)(states)[:, 0], head(states) @ weights)
    for told in ("d=1", "a=x"):
        with pytest.raises(InputError, match="one of: a, b, c"):
            head_weights(told, ["a", "b", "c"], "F")


def test_a_model_of_attributes_and_what_it_rewards(tmp_path: Path, saved):
    base = saved("llama", AutoModelForCausalLM)
    rows = [graded("great", 4), graded("bad", 0), graded("good", 3), graded("dull", 1)]
    run("reward", f"--algorithm attributes --attributes helpful long --model_name_or_path {base}", TRAINING,
        as_file(tmp_path, rows))  # fmt: skip
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert figures["helpful"]["pearson"] > 0.9 and figures["helpful"]["mean"] == 2.0
    folder = str(tmp_path / "out")
    asked = ["the film"] * 2, ["was great", "was bad"]
    helpful = load_reward(f"model:{folder}:helpful=1", RewardArguments())(*asked)
    both = load_reward(f"model:{folder}", RewardArguments())(*asked)
    longer = load_reward(f"model:{folder}:long=1", RewardArguments())(*asked)
    assert helpful[0] > helpful[1]
    assert both == pytest.approx([a + b for a, b in zip(helpful, longer, strict=True)], abs=1e-4)
    # on the policy's own base, by the same weights
    model = ModelArguments(model_name_or_path=str(base))
    policy = make_policy(AutoModelForCausalLM.from_pretrained(base), "lora", None)
    shared = load_rewards(RewardArguments(reward=[f"model:{folder}:helpful=1"]), policy, model)
    assert "reward" in policy.network.peft_config
    assert shared.parts[0].score(*asked) == pytest.approx(helpful, abs=1e-4)
    with pytest.raises(InputError, match=f"--reward model:{folder}"):
        load_reward(f"process:{folder}", RewardArguments())


def test_a_model_of_steps_and_what_it_rewards(tmp_path: Path, saved):
    base = saved("llama", AutoModelForCausalLM)
    rows = [
        {"prompt": "the film", "completions": ["was great", "was bad"], "labels": [True, False]},
        {"prompt": "the film", "completions": ["was bad", "was great"], "labels": [False, True]},
        {"prompt": "the story", "completions": ["was good"], "labels": [True]},
        {"prompt": "the story", "completions": ["was dull"], "labels": [False]},
    ]
    told = f"--algorithm process --model_name_or_path {base}"
    run("reward", told, TRAINING, "--num_train_epochs 40", as_file(tmp_path, rows))
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert figures["accuracy"] == 1.0 and figures["steps"] == 6 and figures["commoner"] == 0.5
    folder = str(tmp_path / "out")
    answers = ["was great\nwas great", "was great\n\nwas bad", " \n"]
    found = {
        how: load_reward(f"process:{folder}:{how}", RewardArguments())(["the film"] * 3, answers)
        for how in ("min", "product", "last")
    }
    assert found["min"][0] > 0.5 > found["min"][1] == found["last"][1] and found["min"][2] is None
    assert found["product"][1] < found["min"][1]
    with pytest.raises(InputError, match="one of: min, product, last"):
        load_reward(f"process:{folder}:mean", RewardArguments())
    with pytest.raises(InputError, match=f"--reward process:{folder}"):
        load_reward(f"model:{folder}", RewardArguments())
