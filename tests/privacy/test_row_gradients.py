"""Clipped gradients of rows: every method and head against a loop over the rows."""

from __future__ import annotations

import pytest
import torch
from bounds import assert_near
from conftest import make_model
from covering import covering
from gradients import KeepGradients
from private_steps import by_loop, made
from torch import nn
from transformers import AutoModelForSequenceClassification

from finetune.errors import InputError
from finetune.methods import METHODS, attach
from finetune.privacy.row_gradients import NotByRow, One, Together, agree, clipping

# (task or objective, family, method) → whether rows go together
CASES = {
    ("classification", "bert", "lora"): True,
    ("classification", "bert", "rslora"): True,
    ("classification", "bert", "dora"): False,  # its norms are of weights, not of rows
    ("classification", "bert", "bottleneck"): True,
    ("classification", "bert", "prefix"): True,
    ("classification", "bert", "prompt"): False,  # its vectors are made once and repeated
    ("classification", "llama", "ptuning"): False,
    ("classification", "bert", "ia3"): False,  # vectors outside of any module
    ("classification", "bert", "bitfit"): False,
    ("classification", "bert", "linear_probe"): True,
    ("classification", "bert", "full"): False,  # positions are one line for all rows
    ("classification", "llama", "full"): True,
    ("classification", "gpt2", "lora"): True,
    ("classification", "t5", "lora"): True,
    ("pairs", "bert", "lora"): True,
    ("multilabel", "bert", "lora"): True,
    ("regression", "bert", "bottleneck"): True,
    ("tokens", "bert", "lora"): True,
    ("tokens", "bert", "prefix"): True,
    ("spans", "bert", "lora"): True,
    ("seq2seq", "t5", "lora"): True,
    ("seq2seq", "gpt2", "prefix"): True,
    ("choice", "bert", "lora"): False,  # choices of all rows stand below each other
    ("sft", "llama", "lora"): True,
    ("sft, packed", "llama", "lora"): False,  # rows stand in one line
    ("mlm", "", "lora"): False,  # the head sees masked places alone
    ("mlm", "", "full"): False,
    ("clm", "", "lora"): False,
    ("span_corruption", "", "lora"): True,
    ("infilling", "", "full"): False,
}


@pytest.mark.parametrize(("task", "family", "method"), covering(CASES))
def test_the_clipped_sum_is_that_of_a_loop(task, family, method, tmp_path):
    trainer = made(task, family, method, "uneven", tmp_path)
    assert trainer.gradients.together is CASES[task, family, method]
    hold_against_the_loop(trainer)


def length_of(gradients: dict[str, torch.Tensor]) -> float:
    return sum(float(value.square().sum()) for value in gradients.values()) ** 0.5


def hold_against_the_loop(trainer) -> None:
    """The step's sum is that of a loop, with a clip that the longest of the eight rows is beyond."""
    clip = length_of(by_loop(trainer, clip=float("inf"))) / 16
    trainer.gradients.clip_norm = clip
    wanted = by_loop(trainer, clip=clip)
    keeper = KeepGradients()
    trainer.add_callback(keeper)
    trainer.train()
    found = {name: value * trainer.mechanism.expected for name, value in keeper.gradients.items()}
    assert length_of(wanted) > 0.5 * clip > 0
    assert_near(found, wanted, 1e-6)


IN_4_BITS = {"qlora", "qat_lora"}
# every head once, on the family that takes most methods
HEADS = [
    ("classification", "bert"), ("pairs", "gpt2"), ("multilabel", "bert"), ("regression", "bert"),
    ("tokens", "gpt2"), ("spans", "bert"), ("seq2seq", "bart"), ("seq2seq", "gpt2"), ("choice", "bert"),
    ("sft", "gpt2"), ("sft, packed", "llama"), ("image", "vit"), ("audio", "ast"), ("mlm", ""), ("clm", ""),
    ("span_corruption", ""), ("infilling", ""),
]  # fmt: skip
IN_LINES = ("sft, packed", "clm")  # which take no virtual tokens (`methods.check_packed`)


def test_every_method_is_held_against_the_loop():
    assert {method for _, _, method in CASES} == set(METHODS) - IN_4_BITS


@pytest.mark.slow
@pytest.mark.parametrize(("task", "family"), HEADS)
def test_every_method_that_a_head_takes_is_a_loops(task, family, tmp_path):
    taken = []
    for method in sorted(set(METHODS) - IN_4_BITS):
        if task in IN_LINES and METHODS[method].virtual:
            continue
        try:
            trainer = made(task, family, method, "uneven", tmp_path / method)
        except InputError as refused:
            assert f"The method '{method}' can't tune" in str(refused)
            continue
        hold_against_the_loop(trainer)
        taken.append(method)
    assert {"full", "lora", "rslora", "dora", "bottleneck"} <= set(taken)


def test_a_long_gradient_is_cut_and_a_short_one_is_left():
    norms = torch.tensor([0.0, 0.5, 1.0, 4.0])
    assert (clipping(norms, 1.0) * norms).tolist() == [0.0, 0.5, 1.0, 1.0]


def test_weights_that_are_used_twice_count_once():
    torch.manual_seed(0)
    layer, states, target = nn.Linear(4, 4).double(), torch.randn(3, 4).double(), torch.randn(3, 4).double()

    def losses(rows: slice) -> torch.Tensor:
        return (layer(layer(states[rows]).tanh()) - target[rows]).square().sum(1)

    weights = list(layer.parameters())
    sums = [[torch.zeros_like(p) for p in weights] for _ in range(2)]
    Together(layer, weights, 0.1).add(lambda: losses(slice(None)), sums[0])
    for row in range(3):
        One(weights, 0.1).add(lambda row=row: losses(slice(row, row + 1)), sums[1])
    assert_near(sums[0], sums[1], 1e-12)


def test_a_module_that_sees_no_rows_is_named():
    layer = nn.Linear(4, 4)
    sums = [torch.zeros_like(p) for p in layer.parameters()]
    with pytest.raises(NotByRow, match="Linear"):
        Together(layer, list(layer.parameters()), 1.0).add(
            lambda: layer(torch.randn(1, 4)).expand(3, 4).sum(1), sums
        )


def test_the_probe_sees_rows_of_every_length(tmp_path):
    """A layer that reads the padding looks right on rows of one length."""
    trainer = made("classification", "bert", "lora", "uneven", tmp_path)
    asked = []
    collate = trainer.data_collator

    def listening(features: list[dict]) -> dict:
        asked.extend(len(feature["input_ids"]) for feature in features)
        return collate(features)

    trainer.data_collator = listening
    assert trainer._settle(trainer.model).together
    lengths = trainer.units.lengths()
    assert {min(lengths), max(lengths)} < set(asked)


def test_a_probe_without_gradients_shows_nothing():
    weight = nn.Parameter(torch.ones(2))
    together, one = Together(nn.Linear(2, 2), [weight], 1.0), One([weight], 1.0)
    assert not agree(together, one, lambda: torch.zeros(2, requires_grad=True), [])


def test_a_row_with_nothing_to_learn_adds_nothing():
    weight = nn.Parameter(torch.ones(2))
    sums = [torch.zeros(2)]
    One([weight], 1.0).add(lambda: torch.zeros(1), sums)
    assert sums[0].tolist() == [0.0, 0.0]


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_opacus_finds_the_factors_of_lora():
    module = pytest.importorskip("opacus.grad_sample")
    network = attach(make_model("bert", AutoModelForSequenceClassification), "lora", {}, "SEQ_CLS").train()
    wrapped = module.GradSampleModule(network, strict=False, loss_reduction="sum")
    ids = torch.tensor([[2, 8, 9, 3], [2, 10, 11, 3]])
    wrapped(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.sum().backward()
    trained = [p for p in network.parameters() if p.requires_grad]
    assert trained and all(p.grad_sample.shape == (2, *p.shape) for p in trained)
