"""Seq2Seq of recurrent layers: attention by its equations, a source's padding unseen, beams that are scored
right."""

from __future__ import annotations

import itertools

import pytest
import torch
from bounds import assert_near
from transformers import AutoModelForSeq2SeqLM

import finetune.models.own_families  # noqa: F401  (registers what is tested here)
from finetune.models.recurrent_config import ATTENTIONS, RecurrentSeq2SeqConfig
from finetune.models.recurrent_seq2seq import SourceAttention

LENGTHS = (4, 2, 7)
KINDS = list(itertools.product(ATTENTIONS, ("rnn", "gru", "lstm")))


def model(attention, cell="lstm", **entries):
    sizes = {"vocab_size": 30, "embedding_size": 6, "hidden_size": 5, "num_hidden_layers": 2}
    ends = {"eos_token_id": 3, "decoder_start_token_id": 3}
    config = RecurrentSeq2SeqConfig(attention=attention, cell=cell, **(sizes | ends | entries))
    return AutoModelForSeq2SeqLM.from_config(config).eval()


def sources():
    ids = torch.randint(4, 30, (3, 7))
    return ids, (torch.arange(7) < torch.tensor(LENGTHS)[:, None]).long(), torch.randint(4, 30, (3, 6))


@pytest.mark.parametrize("kind", ["additive", "dot"])
def test_attention_is_its_equation(kind):
    """One state and one place at a time, as the papers have it."""
    attention, states, source = SourceAttention(8, 5, kind), torch.randn(1, 2, 5), torch.randn(1, 3, 8)
    seen, weights = attention(states, attention.keys(source), source, None)
    for place, state in enumerate(states[0]):
        keys = [attention.keys.weight @ h for h in source[0]]
        if kind == "dot":
            scores = torch.stack([state @ key for key in keys])
        else:
            asked = attention.query.weight @ state + attention.query.bias
            scores = torch.stack([attention.score.weight[0] @ torch.tanh(asked + key) for key in keys])
        chances = scores.exp() / scores.exp().sum()
        assert_near(weights[0, place], chances, 1e-5)
        assert_near(seen[0, place], sum(c * h for c, h in zip(chances, source[0], strict=True)), 1e-5)


@pytest.mark.parametrize(("attention", "cell"), KINDS)
def test_a_sources_padding_is_unseen(attention, cell):
    network, (ids, mask, target) = model(attention, cell), sources()
    together = network(ids, mask, target).logits
    alone = [network(ids[i : i + 1, :n], None, target[i : i + 1]).logits for i, n in enumerate(LENGTHS)]
    assert_near(together, torch.cat(alone), 1e-5)


def test_padding_gets_no_attention_and_the_rest_sums_to_one():
    network, (ids, mask, target) = model("additive"), sources()
    (weights,) = network(ids, mask, target, output_attentions=True).cross_attentions
    assert weights.shape == (3, 1, 6, 7)
    assert not weights[:, 0][~mask.bool()[:, None].expand(-1, 6, -1)].any()
    assert_near(weights.sum(-1), torch.ones(3, 1, 6), 1e-6)
    with pytest.raises(ValueError, match="attention=none"):
        model("none")(ids, mask, target, output_attentions=True)


@pytest.mark.parametrize(("attention", "cell"), KINDS)
def test_teacher_forcing_is_step_by_step(attention, cell):
    """All of a target at once, and token by token from the states before: the same logits."""
    network, (ids, mask, target) = model(attention, cell), sources()
    whole, states, steps = network(ids, mask, target).logits, None, []
    for place in range(target.shape[1]):
        out = network(ids, mask, target[:, place : place + 1], past_key_values=states)
        states = out.past_key_values
        steps.append(out.logits)
    assert_near(torch.cat(steps, dim=1), whole, 1e-5)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_beams_score_is_the_log_probability_of_its_text(attention):
    """States follow their beams: a score computed anew by teacher forcing is what the search says."""
    network, (ids, mask, _) = model(attention), sources()
    torch.nn.init.normal_(network.lm_head.weight, std=2.0)
    out = network.generate(
        ids, attention_mask=mask, num_beams=4, do_sample=False, max_new_tokens=6, length_penalty=0.0,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    logits = network(ids, mask, out.sequences[:, :-1]).logits.log_softmax(-1)
    each = logits.gather(2, out.sequences[:, 1:, None])[..., 0]
    ended = (out.sequences[:, 1:] == 3).cumsum(1) - (out.sequences[:, 1:] == 3).long() > 0
    assert_near(each.masked_fill(ended, 0).sum(1), out.sequences_scores, 1e-4)


def test_saved_is_loaded_with_one_table_of_vectors(tmp_path):
    network, (ids, mask, target) = model("dot"), sources()
    network.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert loaded.encoder.embeddings.weight is loaded.shared.weight
    assert_near(loaded(ids, mask, target).logits, network(ids, mask, target).logits, 1e-6)


def test_an_unknown_attention_is_named():
    with pytest.raises(ValueError, match="attention is 'luong'; wanted one of: additive, dot, none"):
        model("luong")
