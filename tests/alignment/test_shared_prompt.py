"""A pair in one line is the pair in two rows: losses and gradients of every kind of TRL's agree."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from bounds import assert_near, near
from conftest import make_model, make_tokenizer
from covering import covering
from datasets import Dataset
from torch import tensor
from transformers import AutoModelForCausalLM, MistralConfig

from finetune.alignment.dpo import DPOTrainingArguments, make_dpo_trainer
from finetune.alignment.grpo import GRPOTrainer
from finetune.alignment.grpo_options import GRPOArguments
from finetune.alignment.shared_prompt import can_share, group_lines, pair_lines
from finetune.loss import IGNORED
from finetune.methods import attach

PAIRS = [
    {"prompt": "the film was", "chosen": " very great and fine", "rejected": " bad"},
    {"prompt": "a", "chosen": " story", "rejected": " dull actor it was"},
    {"prompt": "we loved the story of it", "chosen": " fine", "rejected": " awful"},
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))


def make(folder: Path, family: str = "llama", **options):
    torch.manual_seed(0)
    network = attach(make_model(family, AutoModelForCausalLM), "lora", {"r": 4}, "CAUSAL_LM")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.3
                )
    training = DPOTrainingArguments(
        output_dir=str(folder), bf16=False, max_length=32, report_to="none", **options
    )
    rows = Dataset.from_list(PAIRS)
    return make_dpo_trainer(network, make_tokenizer(family), training, rows, rows)


def loss_and_gradients(trainer):
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(PAIRS))])
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("family", "loss"), covering(product(["llama", "gpt2"], ["sigmoid", "ipo", "sigmoid_norm", "sft"]))
)
def test_losses_and_gradients_are_those_of_two_rows(tmp_path: Path, family, loss):
    together, apart = (
        make(tmp_path / "a", family, loss_type=[loss]),
        make(tmp_path / "b", family, loss_type=[loss]),
    )
    assert together._shares
    apart._shares = False
    (found, gradients), (expected, expected_gradients) = (
        loss_and_gradients(together),
        loss_and_gradients(apart),
    )
    assert_near(found, expected)
    assert_near(gradients, expected_gradients)
    logged = [{k: v[-1] for k, v in t._metrics["train"].items()} for t in (together, apart)]
    assert near(logged[0], logged[1])


def test_references_are_those_of_two_rows(tmp_path: Path, monkeypatch):
    together = make(tmp_path / "a").train_dataset["ref_rejected_logps"][:]
    monkeypatch.setenv("HF_HOME", str(tmp_path / "another"))
    monkeypatch.setattr("finetune.alignment.dpo.can_share", lambda model: False)
    assert near(make(tmp_path / "b").train_dataset["ref_rejected_logps"][:], together)


def test_a_line_by_hand():
    ids = tensor([[1, 2, 3, 4], [1, 2, 5, 0]])
    labels = tensor([[IGNORED, IGNORED, 3, 4], [IGNORED, IGNORED, 5, IGNORED]])
    line = pair_lines(ids, ids.ne(0).long(), labels)
    assert line.ids.tolist() == [[1, 2, 3, 4, 2, 5]]
    assert line.positions.tolist() == [[0, 1, 2, 3, 1, 2]]
    assert line.labels.tolist() == [[IGNORED, IGNORED, 3, 4, IGNORED, 5]]
    assert line.seen[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 1, 0],
        [1, 0, 0, 0, 1, 1],
    ]  # fmt: skip
    assert line.rows(tensor([[0.0, 3.0, 4.0, 0.0, 5.0]])).tolist() == [[0.0, 3.0, 4.0], [0.0, 5.0, 0.0]]


def test_a_group_by_hand():
    # two prompts, padded on the left, answers out of order; the third answer is masked, as one that was cut
    ids = tensor([[0, 7, 3, 4], [1, 2, 5, 0], [1, 2, 6, 6], [0, 7, 8, 0]])
    mask = tensor([[0, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [0, 1, 1, 0]])
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[:, :2] = IGNORED
    line = group_lines(ids, mask, labels, prompt=2, wide=10**6)
    assert line.ids.tolist() == [[7, 3, 4, 7, 8], [1, 2, 5, 2, 0]]
    assert line.positions.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 1, 0]]
    assert line.labels.tolist() == [[IGNORED, 3, 4, IGNORED, 8], [IGNORED, IGNORED, 5, IGNORED, IGNORED]]
    assert line.seen[0, 4].int().tolist() == [0, 0, 0, 1, 1] and line.seen[1, 3].int().tolist() == [
        1, 0, 0, 1, 0,
    ]  # fmt: skip
    found = line.rows(tensor([[3.0, 4.0, 0.0, 8.0], [0.0, 5.0, 0.0, 0.0]])).tolist()
    assert found == [[0.0, 3.0, 4.0], [0.0, 5.0, 0.0], [0.0, 0.0, 0.0], [0.0, 8.0, 0.0]]


@pytest.mark.parametrize("answers", [(1, 2), (1, 1)])
def test_where_rows_cost_less_they_stay_rows(answers):
    # alone in a group nothing is shared, and long answers would look past each other at every step
    ids = torch.cat([tensor(answers)[:, None], torch.ones(2, 60, dtype=torch.long)], 1)
    assert group_lines(ids, torch.ones_like(ids), ids, prompt=1, wide=1) is None


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_numbers_and_gradients_of_groups_are_those_of_rows(family):
    torch.manual_seed(0)
    network = attach(
        make_model(family, AutoModelForCausalLM), "lora", {"r": 4, "init_lora_weights": False}, "CAUSAL_LM"
    )
    trainer = GRPOTrainer(
        model=network, reward_funcs=len, processing_class=make_tokenizer(family),
        args=GRPOArguments(output_dir="none", bf16=False, report_to="none", num_generations=4,
                           per_device_train_batch_size=4),
        train_dataset=Dataset.from_list([{"prompt": "a"}]),
    )  # fmt: skip
    ids = torch.randint(5, 30, (6, 11))
    ids[2], ids[4] = ids[0], ids[0]
    ids[[0, 2, 4], 7:], mask = torch.randint(5, 30, (3, 4)), torch.ones(6, 11, dtype=torch.long)
    mask[2, 9:] = mask[1, 8:] = 0
    if family == "llama":  # positions that are learnt TRL counts from the padding on
        mask[[0, 2, 4], :2] = 0
    sides = []
    for trainer.shares in (True, False):
        network.zero_grad()
        log_probs, entropy, _ = trainer._get_per_token_logps_and_entropies(
            network, ids, mask, 4, compute_entropy=True
        )
        log_probs.square().sum().backward()
        gradients = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
        sides.append((log_probs.detach() * mask[:, 7:], entropy.detach() * mask[:, 7:], gradients))
    assert_near(sides[0], sides[1])


def test_sides_that_begin_differently_stay_apart():
    ids = tensor([[1, 2, 3], [1, 4, 3]])
    labels = tensor([[IGNORED, IGNORED, 3], [IGNORED, IGNORED, 3]])
    assert pair_lines(ids, torch.ones_like(ids), labels) is None


def test_a_sliding_window_is_not_shared():
    windowed = MistralConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2,
                             intermediate_size=32, sliding_window=4)  # fmt: skip
    assert not can_share(AutoModelForCausalLM.from_config(windowed))
