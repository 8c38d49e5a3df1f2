"""Log-probabilities made a tile at a time are those of the whole table, their gradients too; frozen
layers cast once are autocast's.
"""

from __future__ import annotations

import pytest
import torch
from bounds import assert_near
from conftest import make_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from finetune import loss
from finetune.alignment.policy import Policy
from finetune.methods import attach
from finetune.models.frozen_head import cast_frozen, plain_head, token_log_probs
from finetune.models.heads import body


def states_and_tokens():
    torch.manual_seed(0)
    return torch.randn(3, 5, 16, requires_grad=True), torch.randint(0, 40, (3, 5))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tile", [1, 100], ids=["a row at a time", "at once"])
def test_values_and_gradients_are_those_of_the_whole_table(monkeypatch, bias, tile):
    monkeypatch.setattr(
        loss, "_slices", lambda table, *_: [slice(i, i + tile) for i in range(0, len(table), tile)]
    )
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


# What each family does between the body's last states and the logits, with a setting that shows it.
PLAIN = ("llama", "gpt2", "phi", "gpt_neox", "falcon", "opt", "mamba", "qwen2_moe")
ALTERED = {
    "gemma2": {"final_logit_softcapping": 30.0},
    "cohere": {"logit_scale": 0.0625},
    "granite": {"logits_scaling": 8.0},
    "minicpm3": {"dim_model_base": 4},
    "falcon_h1": {"lm_head_multiplier": 0.5},
    "nanochat": {"final_logit_softcapping": 15.0},
    "hyperclovax": {"logits_scaling": 4.0},
}
SIZES = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "pad_token_id": 0,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "n_head": 2, "n_layer": 1,
    "n_embd": 16,
    "ffn_dim": 32, "word_embed_proj_dim": 16, "state_size": 4, "max_position_embeddings": 32, "d_model": 16,
    "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8, "kv_lora_rank": 8, "q_lora_rank": 8,
    "mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1,
}  # fmt: skip


def family_of(name: str, **settings: object) -> torch.nn.Module:
    known = AutoConfig.for_model(name).to_dict()
    config = AutoConfig.for_model(name, **{k: v for k, v in SIZES.items() if k in known}, **settings)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).requires_grad_(False)


@pytest.mark.parametrize("family", PLAIN)
def test_a_plain_head_reads_the_last_states_and_gives_the_logits(family):
    network = family_of(family).train()  # dropout doesn't hide it
    chance = torch.get_rng_state()
    head = plain_head(network)
    assert head is network.get_output_embeddings()
    assert torch.equal(torch.get_rng_state(), chance) and network.training
    ids = torch.tensor([[5, 6, 7, 8]])
    network.eval()
    states = body(network)(input_ids=ids, use_cache=False).last_hidden_state
    assert_near(head(states), network(input_ids=ids, use_cache=False).logits)
    head.requires_grad_(True)
    assert plain_head(network) is None  # it is trained


@pytest.mark.parametrize("family", ALTERED)
def test_a_head_whose_states_or_logits_are_scaled_or_capped_is_not_plain(family):
    assert plain_head(family_of(family, **ALTERED[family])) is None


class ScalesStates(torch.nn.Module):
    """A causal model whose head reads other states than the body's last."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.base_model, self.lm_head, self.device = network.base_model, network.lm_head, network.device

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.lm_head

    def forward(self, **inputs):
        return CausalLMOutput(logits=self.lm_head(self.base_model(**inputs).last_hidden_state / 2))


def test_a_head_that_reads_other_states_is_not_plain():
    assert plain_head(ScalesStates(make_model("llama", AutoModelForCausalLM).requires_grad_(False))) is None


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
