"""GRPO and RLOO on TRL's trainers take PPO's rewards and find the bandit's word too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import make_model, make_tokenizer
from test_ppo_trainer import PROMPTS, share_of_good
from transformers import AutoModelForCausalLM

from finetune.alignment.grpo import GRPOArguments, RLOOArguments, as_trl_reward, make_group_trainer
from finetune.alignment.policy import make_policy
from finetune.errors import InputError


def test_a_reward_reads_texts_and_messages():
    reward = as_trl_reward(share_of_good, -1.0)
    assert reward(
        prompts=["p", "q"], completions=["great", [{"role": "assistant", "content": "a great"}]], extra=1
    ) == [1.0, 0.5]


@pytest.mark.parametrize("kind", [GRPOArguments, RLOOArguments])
def test_the_right_word_becomes_likelier(tmp_path: Path, kind):
    torch.manual_seed(0)
    network = make_model("llama", AutoModelForCausalLM)
    with torch.no_grad():
        network.get_output_embeddings().weight.mul_(30)
    policy = make_policy(network, "lora", {"r": 4})
    training = kind(
        output_dir=str(tmp_path), bf16=False, learning_rate=2e-2, per_device_train_batch_size=16, num_generations=8, max_steps=12,
        max_completion_length=3, save_strategy="no", logging_steps=1, beta=0.0, report_to="none",
    )  # fmt: skip
    trainer = make_group_trainer(
        policy, make_tokenizer("llama"), training, PROMPTS * 4, as_trl_reward(share_of_good, -1.0)
    )
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert sum(rewards[-3:]) > sum(rewards[:3])


def test_a_run_without_a_folder_is_refused():
    with pytest.raises(InputError, match="--output_dir"):
        GRPOArguments()
