"""Clipped gradients of pairs: DPO under every method against a loop over the pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bounds import assert_near
from conftest import make_model, make_tokenizer
from datasets import Dataset
from gradients import KeepGradients
from private_steps import CLIP, mechanism, spread
from transformers import AutoModelForCausalLM

from finetune.alignment.dpo import CachedDPOTrainer, DPOTrainingArguments
from finetune.alignment.trl_options import made_by_trl
from finetune.methods import METHODS, attach
from finetune.privacy.trainer import private

PAIRS = [
    {"prompt": f"the {word} was", "chosen": " very great" * times, "rejected": " bad" * (4 - times)}
    for times, word in enumerate(("film", "story", "actor", "it"), start=1)
]
# bitfit: a Llama has no biases; linear_probe: nor a new head
ACCEPTED = sorted(set(METHODS) - {"qlora", "qat_lora", "bitfit", "linear_probe"})


def made(method: str, folder: Path, loss: str):
    torch.manual_seed(0)
    network = attach(make_model("llama", AutoModelForCausalLM), method, {}, "CAUSAL_LM").double()
    training = DPOTrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=1,
        loss_type=[loss], beta=1.0, optim="sgd", learning_rate=0.1, bf16=False, eval_strategy="no",
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    reference = make_model("llama", AutoModelForCausalLM).double() if method == "full" else None
    rows = Dataset.from_list(PAIRS)
    with made_by_trl():
        trainer = private(CachedDPOTrainer)(
            mechanism=mechanism(len(rows), len(rows)), model=network, ref_model=reference, args=training,
            train_dataset=rows, eval_dataset=rows, processing_class=make_tokenizer("llama"),
        )  # fmt: skip
    # after its reference was asked, which the policy shall differ from
    spread(trainer.model)
    return trainer


@pytest.mark.parametrize(
    ("method", "loss"), [*((method, "sigmoid") for method in ACCEPTED), ("lora", "ipo"), ("lora", "sft")]
)
def test_the_clipped_sum_of_pairs_is_that_of_a_loop(method, loss, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    trainer = made(method, tmp_path, loss)
    network = trainer.model.train()
    wanted = {name: torch.zeros_like(p) for name, p in network.named_parameters() if p.requires_grad}
    for pair in trainer.train_dataset:
        network.zero_grad()
        trainer.compute_loss(network, trainer.data_collator([pair])).backward()
        found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        length = sum(float(g.square().sum()) for g in found.values()) ** 0.5
        for name, gradient in found.items():
            wanted[name] += gradient * min(1.0, CLIP / length)
    network.zero_grad()
    keeper = KeepGradients()
    trainer.add_callback(keeper)
    trainer.train()
    summed = {name: value * trainer.mechanism.expected for name, value in keeper.gradients.items()}
    assert sum(float(value.norm()) for value in wanted.values()) > 0.5 * CLIP
    assert_near(summed, wanted, 1e-6)
