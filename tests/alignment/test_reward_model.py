"""A reward model: what it learns, the margins of pairs, and whether its confidence is right."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from bounds import near
from conftest import make_model, make_tokenizer
from datasets import Dataset
from test_dpo import PAIRS
from transformers import AutoModelForSequenceClassification

from finetune.alignment.reward_model import (
    RewardTrainingArguments,
    calibration,
    make_reward_trainer,
    pair_margins,
)
from finetune.methods import attach


def test_a_reward_model_learns_which_side_is_chosen(tmp_path: Path):
    torch.manual_seed(0)
    network = attach(
        make_model("llama", AutoModelForSequenceClassification, num_labels=1), "lora", {"r": 4}, "SEQ_CLS"
    )
    assert isinstance(network, peft.PeftModel)
    training = RewardTrainingArguments(
        output_dir=str(tmp_path), bf16=False, learning_rate=1e-2, num_train_epochs=12,
        per_device_train_batch_size=2,
        logging_steps=1, eval_strategy="no", save_strategy="no", max_length=32,
        center_rewards_coefficient=0.01,
    )  # fmt: skip
    trainer = make_reward_trainer(network, make_tokenizer("llama"), training, PAIRS, PAIRS)
    trainer.train()
    margins = pair_margins(network, make_tokenizer("llama"), PAIRS, 32, batch_size=4)
    assert (margins > 0).all()


def test_margins_read_every_turn_of_a_conversation():
    network, processor = (
        make_model("llama", AutoModelForSequenceClassification, num_labels=1),
        make_tokenizer("llama"),
    )
    processor.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}</s>"
    turns = [[{"role": "assistant", "content": text}] for text in ("great", "bad")]
    more = [{"role": "user", "content": "the story"}, *turns[0]]
    pairs = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": "the film"}],
                "chosen": turns[1] + more,
                "rejected": turns[0],
            }
        ]
    )
    ids = [
        processor(text, return_tensors="pt")["input_ids"]
        for text in ("the film bad the story great </s>", "the film great </s>")
    ]
    with torch.no_grad():
        expected = network(input_ids=ids[0]).logits - network(input_ids=ids[1]).logits
    assert near(pair_margins(network, processor, pairs, 32), expected.item())


def test_calibration_by_hand():
    margins = np.array([0.0, 0.0, 2.0, -2.0, 2.0, 2.0]) + 1e-9
    low, high = calibration(margins, bins=2)
    assert low["pairs"] == high["pairs"] == 3
    assert high["confidence"] == pytest.approx(1 / (1 + math.exp(-2)))
    assert high["accuracy"] == pytest.approx(1.0) or high["accuracy"] == pytest.approx(2 / 3)
