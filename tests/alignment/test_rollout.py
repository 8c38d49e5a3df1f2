"""Sampling and log-probabilities: padding, batches and stops change nothing that they should not."""

from __future__ import annotations

import pytest
import torch
from bounds import assert_near
from conftest import make_model, make_tokenizer
from torch import tensor
from transformers import AutoModelForCausalLM
from trl.trainer import add_fused_lm_head

from finetune.alignment import rollout
from finetune.alignment.rollout import SamplingArguments, draw_uniforms, pick, sample_answers
from finetune.errors import InputError
from finetune.models.frozen_head import plain_head

FAMILIES = ("gpt2", "llama")  # learned and rotary positions
PROMPTS = [[7, 8, 9], [10], [11, 12, 13, 14, 15], [16, 17]]


def lively(family: str, seed: int = 0):
    """A tiny model whose next token depends on what it read: freshly made ones are nearly uniform."""
    network = make_model(family, AutoModelForCausalLM, seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return network


def test_pick_by_hand():
    logits = tensor([[0.25, 0.25, 0.5]]).log().repeat(4, 1)
    assert pick(logits, tensor([0.0, 0.3, 0.5, 0.999])).tolist() == [0, 1, 2, 2]


def test_pick_never_takes_an_impossible_token():
    logits = tensor([[-torch.inf, 0.0, -torch.inf]]).repeat(3, 1)
    assert pick(logits, tensor([0.0, 0.5, 1 - 1e-16], dtype=torch.float64)).tolist() == [1, 1, 1]


def test_pick_follows_the_distribution():
    probabilities = tensor([0.1, 0.2, 0.7])
    uniforms = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    counts = torch.bincount(pick(probabilities.log().repeat(1000, 1), uniforms))
    assert counts.tolist() == pytest.approx([100, 200, 700], abs=1)


def test_narrowed_by_hand():
    logits = tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    kept = rollout.narrowed(logits, SamplingArguments(top_k=2)).isfinite()
    assert kept.tolist() == [[False, False, True, True]]
    kept = rollout.narrowed(logits, SamplingArguments(top_p=0.5)).isfinite()
    assert kept.tolist() == [[False, False, True, True]]  # 0.4 alone is below the line, 0.4 + 0.3 crosses it
    kept = rollout.narrowed(logits, SamplingArguments(top_p=0.4)).isfinite()
    assert kept.tolist() == [[False, False, False, True]]
    torch.testing.assert_close(rollout.narrowed(logits, SamplingArguments(temperature=0.5)), logits * 2)


@pytest.mark.parametrize(
    "option", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_k": -1}, {"max_new_tokens": 0}]
)
def test_options_that_mean_nothing_are_refused(option):
    with pytest.raises(InputError, match=f"--{next(iter(option))}"):
        SamplingArguments(**option)


def test_uniforms_belong_to_rows():
    several, alone = draw_uniforms(1, 2, [5, 9], 4), draw_uniforms(1, 2, [9], 4)
    assert torch.equal(several[1:], alone)
    assert not torch.equal(several[0], several[1])
    assert not torch.equal(draw_uniforms(1, 3, [9], 4), alone)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_answers_as_each_prompt_alone(family):
    network, uniforms = lively(family), draw_uniforms(0, 0, range(4), 12)
    stops = [20, 21, 22, 23, 24]  # so that rows end at different places and leave the batch
    together = sample_answers(network, PROMPTS, uniforms, SamplingArguments(max_new_tokens=12), stops)
    lengths = together.mask.sum(1).tolist()
    assert len(set(lengths)) > 1, "all answers end together: the test shows nothing"
    for i, prompt in enumerate(PROMPTS):
        alone = sample_answers(
            network, [prompt], uniforms[i : i + 1], SamplingArguments(max_new_tokens=12), stops
        )
        assert torch.equal(alone.ids[0], together.ids[i])
        assert torch.equal(alone.mask[0], together.mask[i])


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_sampling_is_sampling_without_a_cache(family):
    network, uniforms = lively(family), draw_uniforms(3, 0, range(4), 6)
    found = sample_answers(network, PROMPTS, uniforms, SamplingArguments(max_new_tokens=6, top_k=7), [0])
    for i, prompt in enumerate(PROMPTS):
        ids = list(prompt)
        for t in range(int(found.mask[i].sum())):
            logits = network(input_ids=tensor([ids])).logits[:, -1]
            ids.append(
                int(pick(rollout.narrowed(logits, SamplingArguments(top_k=7)), uniforms[i, t : t + 1]))
            )
        assert ids[len(prompt) :] == found.ids[i, : len(ids) - len(prompt)].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_no_log_probability(family):
    network = lively(family)
    ids, mask = rollout.pad_left(PROMPTS, 0)
    answers, answer_mask = (
        tensor([[9, 8, 7], [6, 0, 0], [12, 6, 0], [7, 7, 7]]),
        tensor([[1.0, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]]),
    )
    found = rollout.answer_log_probs(network, ids, mask, answers, answer_mask)[0]
    for i, prompt in enumerate(PROMPTS):
        length = int(answer_mask[i].sum())
        whole = tensor([[*prompt, *answers[i, :length].tolist()]])
        expected = (
            network(input_ids=whole)
            .logits[0]
            .log_softmax(-1)[len(prompt) - 1 : -1]
            .gather(1, answers[i, :length, None])[:, 0]
        )
        assert_near(found[i, :length], expected)
        assert found[i, length:].eq(0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_two_tiled_heads_give_the_same(family):
    """PPO's log-probabilities and entropies are those of the head that TRL's trainers put on a model."""
    network, trls = lively(family), lively(family)
    add_fused_lm_head(trls, outputs=("log_probs", "entropy"))
    prompts, answers = tensor([[7, 8, 9], [11, 12, 7]]), tensor([[9, 8, 7], [12, 10, 8]])
    head = plain_head(network.requires_grad_(False))
    ours = rollout.answer_log_probs(
        network, prompts, torch.ones_like(prompts), answers, torch.ones(2, 3), head=head
    )
    labels = torch.cat([torch.full_like(prompts, -100), answers], 1)
    theirs = trls(input_ids=torch.cat([prompts, answers], 1), labels=labels, fused_lm_head=True)
    assert_near(ours[0], theirs.log_probs[:, -3:])
    assert_near(ours[1], theirs.entropy[:, -3:])


def test_an_answer_keeps_its_stop_token_and_nothing_after_it():
    network = lively("llama")
    free = sample_answers(
        network, PROMPTS, draw_uniforms(0, 0, range(4), 8), SamplingArguments(max_new_tokens=8), [0]
    )
    stop = int(free.ids[0, 2])
    cut = sample_answers(
        network, PROMPTS, draw_uniforms(0, 0, range(4), 8), SamplingArguments(max_new_tokens=8), [stop]
    )
    last = free.ids[0].tolist().index(stop)
    assert cut.ids[0, : last + 1].tolist() == free.ids[0, : last + 1].tolist()
    assert cut.mask[0].tolist() == [1.0] * (last + 1) + [0.0] * (7 - last)
    assert bool(cut.ended[0])


def test_answers_without_a_stop_are_marked():
    found = sample_answers(
        lively("gpt2"), PROMPTS, draw_uniforms(0, 0, range(4), 2), SamplingArguments(max_new_tokens=2), [999]
    )
    assert not found.ended.any()
    assert found.mask.all()


def test_temperature_divides_the_logits():
    network = lively("gpt2")
    ids, mask = rollout.pad_left(PROMPTS, 0)
    answers = tensor([[9, 8], [7, 7], [12, 6], [7, 9]])
    found, spread, _ = rollout.answer_log_probs(
        network, ids, mask, answers, torch.ones(4, 2), temperature=2.0
    )
    for i, prompt in enumerate(PROMPTS):
        logits = (
            network(input_ids=tensor([[*prompt, *answers[i].tolist()]])).logits[0, len(prompt) - 1 : -1] / 2
        )
        expected = logits.log_softmax(-1).gather(-1, answers[i, :, None])[:, 0]
        assert_near(found[i], expected)
        assert_near(spread[i], torch.distributions.Categorical(logits=logits).entropy())


def test_prompts_that_do_not_fit_are_refused():
    network = lively("gpt2")
    with pytest.raises(InputError, match="--max_prompt_length"):
        sample_answers(
            network, [[7] * 60], draw_uniforms(0, 0, [0], 8), SamplingArguments(max_new_tokens=8), [0]
        )
    with pytest.raises(InputError, match="no token"):
        sample_answers(
            network, [[7], []], draw_uniforms(0, 0, [0, 1], 8), SamplingArguments(max_new_tokens=8), [0]
        )


def test_stops_hold_the_tokenizers_end_and_the_models_own():
    network, processor = make_model("llama", AutoModelForCausalLM), make_tokenizer("llama")
    network.generation_config.eos_token_id = [5, 9]
    assert rollout.stop_tokens(network, processor) == [0, 5, 6, 9]
