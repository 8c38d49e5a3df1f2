"""Log-probabilities made a tile at a time are those of the whole table, their gradients too; frozen
layers cast once are autocast's.
"""

from __future__ import annotations

import pytest
import torch
from bounds import assert_near
from conftest import make_model
from torch import nn
from transformers import AutoModelForCausalLM, Gemma2Config

from finetune.alignment.policy import Policy
from finetune.methods import attach
from finetune.models import frozen_head
from finetune.models.frozen_head import cast_frozen, plain_head, token_log_probs


def states_and_tokens():
    torch.manual_seed(0)
    return torch.randn(3, 5, 16, requires_grad=True), torch.randint(0, 40, (3, 5))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tile", [40, 10_000], ids=["a row at a time", "at once"])
def test_values_and_gradients_are_those_of_the_whole_table(monkeypatch, bias, tile):
    monkeypatch.setattr(frozen_head, "ENTRIES", tile)
    layer = nn.Linear(16, 40, bias=bias).requires_grad_(False)
    states, tokens = states_and_tokens()
    spread = torch.distributions.Categorical(logits=layer(states) / 0.7)
    to_log_probs, to_entropies = torch.randn(3, 5), torch.randn(3, 5)
    expected = (spread.log_prob(tokens), spread.entropy())
    (expected_gradient,) = torch.autograd.grad(
        (expected[0] * to_log_probs + expected[1] * to_entropies).sum(), states
    )
    found = token_log_probs(layer, states, tokens, temperature=0.7, spread=True)
    (gradient,) = torch.autograd.grad((found[0] * to_log_probs + found[1] * to_entropies).sum(), states)
    for mine, theirs in zip((*found, gradient), (*expected, expected_gradient), strict=True):
        assert_near(mine, theirs)


def test_without_entropies_the_gradient_of_log_probabilities_is_the_same():
    layer = nn.Linear(16, 40, bias=False).requires_grad_(False)
    states, tokens = states_and_tokens()
    gradients = [
        torch.autograd.grad(token_log_probs(layer, states, tokens, spread=s)[0].sum(), states)[0]
        for s in (True, False)
    ]
    torch.testing.assert_close(*gradients)
    assert token_log_probs(layer, states, tokens)[1].eq(0).all()


def test_a_head_is_used_only_where_logits_are_its_product():
    assert plain_head(make_model("llama", AutoModelForCausalLM).requires_grad_(False)) is not None
    assert plain_head(make_model("llama", AutoModelForCausalLM)) is None  # it is trained
    capped = Gemma2Config(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        head_dim=8, intermediate_size=32,
        final_logit_softcapping=0.5, pad_token_id=0,
    )  # fmt: skip
    network = AutoModelForCausalLM.from_config(capped).eval().requires_grad_(False)
    with torch.no_grad():
        network.get_output_embeddings().weight.mul_(30)
    assert plain_head(network) is None


def test_frozen_layers_cast_once_give_what_autocast_gives():
    ids = torch.arange(7, 17)[None]
    networks = [
        attach(make_model("llama", AutoModelForCausalLM), "lora", {"r": 4}, "CAUSAL_LM").eval()
        for _ in range(2)
    ]
    cast_frozen(networks[1])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(networks[0](input_ids=ids).logits, networks[1](input_ids=ids).logits)
    kinds = {p.dtype for p in networks[1].parameters() if p.requires_grad}
    assert kinds == {torch.float32}  # masters stay
    assert networks[1].get_input_embeddings().weight.dtype == torch.float32


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_policy_says_the_same_by_both_ways(family):
    policy = Policy(attach(make_model(family, AutoModelForCausalLM), "lora", {"r": 4}, "CAUSAL_LM"))
    assert policy._plain_heads[0] is not None
    arguments = (torch.tensor([[0, 7, 8], [7, 8, 9]]), torch.tensor([[0, 1, 1], [1, 1, 1]]),
                 torch.tensor([[9, 10], [11, 0]]), torch.tensor([[1.0, 1], [1, 0]]))  # fmt: skip
    lean = policy(*arguments)
    policy._plain_heads[0] = None
    for mine, theirs in zip(lean, policy(*arguments), strict=True):
        assert_near(mine, theirs)
