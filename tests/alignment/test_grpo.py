"""GRPO and RLOO on TRL's trainers take PPO's rewards and find the bandit's word too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import make_model, make_tokenizer
from test_ppo_trainer import ROWS, share_of_good
from transformers import AutoModelForCausalLM

from finetune.alignment.grpo import as_trl_reward, check_begun, make_group_trainer
from finetune.alignment.grpo_options import GRPOArguments, RLOOArguments
from finetune.alignment.policy import make_policy
from finetune.alignment.rewards import AskedRewards, Part, RewardArguments, Rewards
from finetune.errors import InputError


def test_a_reward_reads_texts_and_messages():
    reward = as_trl_reward(Rewards.of(good=share_of_good), [AskedRewards("p"), AskedRewards("q")], [6])
    told = {}
    found = reward(
        prompts=["p", "q"], completions=["great", [{"role": "assistant", "content": "a great"}]], extra=1,
        completion_ids=[[5, 6], [5]], row=[0, 1], log_metric=told.__setitem__,
    )  # fmt: skip
    assert found == [1.0, 0.5]
    assert told["rewards/good/mean"] == 0.75


def test_an_answer_that_was_cut_pays_its_penalty():
    rewards = Rewards([Part("good", share_of_good)], RewardArguments(missing_eos_penalty=2.0))
    reward = as_trl_reward(rewards, [AskedRewards("p")], [6])
    given = {
        "prompts": ["p", "p"],
        "completions": ["great", "great"],
        "row": [0, 0],
        "log_metric": lambda *_: None,
    }
    assert reward(**given, completion_ids=[[5, 6], [5, 5]]) == [1.0, -1.0]


@pytest.mark.parametrize("kind", [GRPOArguments, RLOOArguments])
def test_the_right_word_becomes_likelier(tmp_path: Path, kind):
    torch.manual_seed(0)
    network = make_model("llama", AutoModelForCausalLM)
    with torch.no_grad():
        network.get_output_embeddings().weight.mul_(30)
    policy = make_policy(network, "lora", {"r": 4})
    training = kind(
        output_dir=str(tmp_path), bf16=False, learning_rate=2e-2, per_device_train_batch_size=16,
        num_generations=8, max_steps=12,
        max_completion_length=3, save_strategy="no", logging_steps=1, beta=0.0, report_to="none",
    )  # fmt: skip
    trainer = make_group_trainer(
        policy, make_tokenizer("llama"), training, ROWS * 4, Rewards.of(good=share_of_good)
    )
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert sum(rewards[-3:]) > sum(rewards[:3])


def test_a_run_without_a_folder_is_refused():
    with pytest.raises(InputError, match="--output_dir"):
        GRPOArguments()


@pytest.mark.parametrize(
    ("algorithm", "told", "wanted"),
    [
        ("grpo", {}, {"loss_type": "grpo", "scale_rewards": "group", "epsilon": 0.2}),
        ("dr_grpo", {}, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
        ("dr_grpo", {"scale_rewards": "batch"}, {"loss_type": "dr_grpo", "scale_rewards": "batch"}),
        (
            "dapo",
            {},
            {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28, "mask_truncated_completions": True},
        ),
        ("gspo", {}, {"loss_type": "grpo", "importance_sampling_level": "sequence"}),
    ],
)
def test_an_algorithm_sets_what_its_paper_does_and_nothing_that_was_told(tmp_path, algorithm, told, wanted):
    training = GRPOArguments(
        output_dir=str(tmp_path), bf16=False, report_to="none", algorithm=algorithm, **told
    )
    assert {name: vars(training)[name] for name in wanted} == wanted


def test_an_unknown_algorithm_is_named(tmp_path):
    with pytest.raises(InputError, match="--algorithm is 'grop'; wanted one of: grpo.*rloo"):
        GRPOArguments(output_dir=str(tmp_path), algorithm="grop")


def test_an_unfinished_run_of_an_earlier_version_says_what_it_is(tmp_path: Path):
    told = tmp_path / "arguments.yaml"
    check_begun(tmp_path)
    told.write_text("gradient_accumulation_steps: 4\nsteps_per_generation: 4\n")
    with pytest.raises(
        InputError, match="begun by an earlier version.*steps_per_generation: 4.*--output_dir"
    ):
        check_begun(tmp_path)
    # finished, or asked for: what else is wrong is said elsewhere
    (tmp_path / "metrics.json").write_text("{}")
    check_begun(tmp_path)
    (tmp_path / "metrics.json").unlink()
    told.write_text("gradient_accumulation_steps: 4\nsteps_per_generation: 2\n")
    check_begun(tmp_path)
