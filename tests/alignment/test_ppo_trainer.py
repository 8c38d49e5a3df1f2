"""PPO on a bandit of tiny models where the right token is known; resumed and shared runs are the same run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from bounds import assert_near
from conftest import WORDS, make_model, make_tokenizer
from transformers import AutoModelForCausalLM

from finetune.alignment.experience import Clock, step_prompts
from finetune.alignment.pairs import scored_answers
from finetune.alignment.policy import in_role, make_policy
from finetune.alignment.ppo_options import KLArguments, PPOArguments, ValueArguments
from finetune.alignment.ppo_trainer import Learner
from finetune.alignment.prompts import PromptArguments
from finetune.alignment.rewards import AskedRewards, Part, RewardArguments, Rewards
from finetune.alignment.rollout import SamplingArguments, pad_left, stop_tokens
from finetune.alignment.run import RunArguments
from finetune.errors import InputError

GOOD = "great"
PROMPTS = ["the film was", "a story", "we loved the dull actor in it", "the"]
ROWS = [AskedRewards(prompt) for prompt in PROMPTS]


def share_of_good(prompts, answers):
    """The reward of the bandit: share of the answer's words that are the right one."""
    return [answer.split().count(GOOD) / max(len(answer.split()), 1) for answer in answers]


def each_good(prompts, answers):
    """The same of all three words that an answer has room for: special tokens, which leave none, cost."""
    return [answer.split().count(GOOD) / 3 for answer in answers]


def shuffled(prompts, answers):
    order = torch.randperm(
        len(answers), generator=torch.Generator().manual_seed(len("".join(answers)))
    ).tolist()
    found = share_of_good(prompts, answers)
    return [found[i] for i in order]


def learner(
    reward=share_of_good, family="llama", method="lora", kl=None, value=None, seed=0, rewards=None, **options
):
    torch.manual_seed(seed)
    # a head of its own: through one shared with the embeddings, a step for one prompt moves all the others
    network = make_model(family, AutoModelForCausalLM, tie_word_embeddings=False)
    with torch.no_grad():  # freshly made heads are so small that no state can make a token likely
        network.get_output_embeddings().weight.mul_(30)
    defaults = {
        "learning_rate": 5e-3,  # at twice this rate the policy overshoots for some seeds and stays there
        "rollout_batch_size": 32,
        "minibatch_size": 16,
        "per_device_batch_size": 16,
        "stop_kl": None,
    }
    return Learner(
        make_policy(network, method, {"r": 4} if method == "lora" else None),
        make_tokenizer(family),
        Rewards([Part("reward", reward)], rewards),
        Accelerator(mixed_precision="no", cpu=True),
        settings=PPOArguments(**(defaults | options)),
        kl=kl or KLArguments(kl_coefficient=0.0),
        value=value,
        sampling=SamplingArguments(max_new_tokens=3),
        seed=seed,
    )


def probability_of_good(subject: Learner) -> float:
    """Mean probability of the right word as the first of an answer."""
    prompts, mask = pad_left([subject.processor(p)["input_ids"] for p in PROMPTS], 0)
    answers = torch.full((len(PROMPTS), 1), subject.processor.convert_tokens_to_ids(GOOD))
    with torch.no_grad():
        return subject.policy(prompts, mask, answers, torch.ones(len(PROMPTS), 1))[0].exp().mean().item()


def steps(subject: Learner, count: int) -> list[dict[str, float]]:
    return [subject.learn(step_prompts(ROWS, subject.seed, subject.step, 32)) for _ in range(count)]


def sampled(subject: Learner) -> list[list]:
    """Answers and scores of as many prompts as two processes can't share evenly."""
    found = scored_answers(
        subject.policy.network,
        subject.processor,
        ROWS[:3],
        Rewards.of(good=share_of_good),
        each=3,
        sampling=subject.sampling,
    )
    return [found.texts, found.scores, found.ended]


# A policy that is sure of a wrong word tries no other; a little of the penalty keeps it from being so sure.
EXPLORING = {"reward": each_good, "kl": KLArguments(kl_coefficient=0.05)}


@pytest.mark.parametrize(
    ("family", "method", "further"),
    [
        ("llama", "lora", {}),
        pytest.param("gpt2", "full", EXPLORING, marks=pytest.mark.slow),
        pytest.param("llama", "bottleneck", EXPLORING, marks=pytest.mark.slow),
    ],
)
def test_the_right_token_is_found(family, method, further):
    subject = learner(family=family, method=method, **further)
    assert probability_of_good(subject) < 0.1
    figures = [{"reward": 0.0}]
    while (probability_of_good(subject) <= 0.95 or figures[-1]["reward"] < 0.9) and subject.step < 80:
        figures += steps(subject, 5)
    assert probability_of_good(subject) > 0.95
    assert figures[-1]["reward"] > 0.9  # each word of the answer, not only the first
    assert figures[-1]["kl"] > 1


@pytest.mark.parametrize("coefficient", [10.0, pytest.param(1000.0, marks=pytest.mark.slow)])
def test_a_huge_coefficient_holds_the_policy_at_the_reference(coefficient):
    held = learner(
        kl=KLArguments(kl_coefficient=coefficient)
    )  # the rate at which the right word is found in a few steps
    assert max(figures["kl_k3"] for figures in steps(held, 30)) < 0.5
    assert probability_of_good(held) < 0.1


def test_without_a_penalty_the_policy_leaves_the_reference():
    assert steps(learner(kl=KLArguments(kl_coefficient=0.0), learning_rate=2e-3), 30)[-1]["kl"] > 1


def test_no_gradient_of_the_values_reaches_the_policy():
    subject = learner(
        reward=lambda prompts, answers: [0.0] * len(answers), value=ValueArguments(value_learning_rate=0.1)
    )
    with torch.no_grad():
        subject.policy.head.out.bias.fill_(1.0)  # off by one everywhere: all there is to learn is the value
    prompts, mask = pad_left([[7, 8]], 0)
    arguments = (prompts, mask, torch.tensor([[9, 10]]), torch.ones(1, 2))
    _, values, _ = subject.policy(*arguments)
    values.sum().backward()
    assert all(p.grad is None for p in subject.policy.network.parameters())
    assert all(p.grad is not None for p in subject.policy.head.parameters())


def test_the_value_head_comes_to_explain_what_follows_from_the_prompt():
    def long_prompts_pay(prompts, answers):
        return [float(len(prompt.split()) > 2) for prompt in prompts]

    subject = learner(reward=long_prompts_pay, learning_rate=1e-4)
    explained = [figures["explained_variance"] for figures in steps(subject, 40)]
    assert explained[0] == pytest.approx(0, abs=1e-4)
    assert sum(explained[-5:]) / 5 > 0.4


def test_a_shuffled_reward_teaches_nothing():
    subject = learner(reward=shuffled)
    steps(subject, 15)
    assert probability_of_good(subject) < 0.3


def test_the_first_step_starts_at_the_reference():
    figures = steps(learner(epochs=1, minibatch_size=32, per_device_batch_size=32), 1)[0]
    assert figures["kl"] == pytest.approx(0, abs=1e-5)
    assert figures["moved"] == pytest.approx(0, abs=1e-6)
    assert figures["clip_share"] == 0
    assert figures["policy_loss"] == pytest.approx(0, abs=1e-5)  # the mean of whitened advantages
    assert figures["value"] == 0


def test_accumulation_changes_no_update():
    whole, parts = learner(per_device_batch_size=16), learner(per_device_batch_size=3)
    steps(whole, 2), steps(parts, 2)
    assert_near(parts.trained(), whole.trained(), 2e-4)


def test_the_base_and_the_reference_never_move():
    subject = learner()
    before = {n: p.clone() for n, p in subject.policy.named_parameters() if not p.requires_grad}
    names = set(subject.trained())
    steps(subject, 2)
    assert set(subject.trained()) == names
    for name, parameter in subject.policy.named_parameters():
        if name in before:
            assert torch.equal(parameter, before[name]), name


def test_trainable_flags_survive_a_change_of_role():
    policy = make_policy(make_model("llama", AutoModelForCausalLM), "lora", None)
    before = [p.requires_grad for p in policy.parameters()]
    with in_role(policy.network, None):
        pass
    assert [p.requires_grad for p in policy.parameters()] == before
    assert any(before)


def test_the_reference_of_a_whole_policy_is_a_frozen_copy():
    subject = learner(method="full")
    prompts, mask = pad_left([[7, 8]], 0)
    arguments = (prompts, mask, torch.tensor([[9, 10]]), torch.ones(1, 2))
    before = subject.policy.reference_log_probs(*arguments)
    steps(subject, 2)
    assert torch.equal(subject.policy.reference_log_probs(*arguments), before)
    with torch.no_grad():
        assert not torch.allclose(subject.policy(*arguments)[0], before)


def test_an_epoch_ends_early_when_the_policy_has_moved():
    free, held = learner(epochs=6, learning_rate=0.1), learner(epochs=6, learning_rate=0.1, stop_kl=0.01)
    assert steps(free, 3)[-1]["updates"] == 12
    assert steps(held, 3)[-1]["updates"] < 12


def test_the_coefficient_follows_its_target():
    subject = learner(kl=KLArguments(kl_coefficient=0.1, kl_target=5.0))
    assert steps(subject, 2)[-1]["kl_coefficient"] == pytest.approx(
        0.1 * 0.98
    )  # below the target: the first step lowers it


def test_resumed_is_uninterrupted(tmp_path: Path):
    options = {"kl": KLArguments(kl_coefficient=0.1, kl_target=1.0)}
    whole = learner(**options)
    steps(whole, 2)
    whole.save(tmp_path)
    later = steps(whole, 2)
    resumed = learner(**options)
    resumed.restore(tmp_path / "checkpoint-2")
    again = steps(resumed, 2)
    for name, tensor in whole.trained().items():
        assert torch.equal(resumed.trained()[name], tensor), name
    assert [(f["reward"], f["kl"], f["kl_coefficient"]) for f in later] == [
        (f["reward"], f["kl"], f["kl_coefficient"]) for f in again
    ]


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path):
    learner(family="gpt2").save(tmp_path)
    with pytest.raises(InputError, match="other trained weights"):
        learner().restore(tmp_path / "checkpoint-0")


def test_every_prompt_comes_equally_often():
    prompts = [str(i) for i in range(10)]
    seen = [p for step in range(5) for p in step_prompts(prompts, 0, step, 4)]
    assert {seen.count(p) for p in prompts} == {2}
    assert seen[:10] != seen[10:]


@pytest.mark.parametrize("method", ["prefix", "prompt", "ptuning"])
def test_made_up_tokens_are_refused(method):
    with pytest.raises(InputError, match="--method"):
        make_policy(make_model("llama", AutoModelForCausalLM), method, None)


def test_where_pad_equals_eos_an_answer_still_ends_in_its_eos():
    subject = learner()
    subject.processor.pad_token = subject.processor.eos_token
    subject.stops = stop_tokens(subject.policy.network, subject.processor)
    end = subject.processor.eos_token_id
    assert subject.stops == [end]
    experience = subject.collect(ROWS * 20, Clock())
    assert experience.ended.any()
    for answer, mask, ended in zip(experience.answers, experience.mask, experience.ended, strict=True):
        real = answer[mask.bool()].tolist()
        assert real.count(end) == int(ended)
        assert (real[-1] == end) == bool(ended)


@pytest.mark.parametrize("offset", [-10.0, -6.0, 0.0, 1.0, 10.0])
def test_empty_answers_are_counted_and_never_win(offset):
    subject = learner(reward=lambda prompts, answers: [offset + 0.1 * len(a) for a in answers])
    subject.sampling = SamplingArguments(
        max_new_tokens=1
    )  # now and then a special token, which leaves no text
    experience = subject.collect(ROWS * 20, Clock())
    empty, said = experience.empty.numpy(), experience.parts.numpy()
    assert 0 < empty.mean() < 1
    assert subject.judge(experience)[2]["empty"] == pytest.approx(empty.mean())
    total = subject.rewards.combine(said, empty).total
    assert total[empty].max() < total[~empty].min()


def test_a_score_of_ones_own_for_empty_answers():
    subject = learner(rewards=RewardArguments(empty_score=-3.0))
    subject.sampling = SamplingArguments(max_new_tokens=1)
    experience = subject.collect(ROWS * 20, Clock())
    total = subject.rewards.combine(experience.parts.numpy(), experience.empty.numpy()).total
    assert set(total[experience.empty.numpy()]) == {-3.0}


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [(PPOArguments, name, 0) for name in ("steps", "epochs", "minibatch_size", "per_device_batch_size",
                                          "clip", "stop_kl")]
    + [(PPOArguments, "learning_rate", float("nan")), (PPOArguments, "minibatch_size", 65)]
    + [(KLArguments, "kl_coefficient", -0.1), (KLArguments, "kl_target", 0.0),
    (KLArguments, "kl_estimator", "k4")]
    + [(ValueArguments, "value_clip", 0.0), (ValueArguments, "gamma", 1.5), (ValueArguments, "lam", -0.1)]
    + [(RunArguments, name, 0) for name in ("save_steps", "eval_steps", "eval_prompts")]
    + [(RewardArguments, "reward_batch_size", 0), (PromptArguments, "prompt_tokens", 0),
    (SamplingArguments, "generation_batch_size", 0)],
)  # fmt: skip
def test_numbers_that_mean_nothing_are_refused(kind, option, value):
    told = {"output_dir": "somewhere"} if kind is RunArguments else {}
    with pytest.raises(InputError, match=f"--{option}"):
        kind(**told, **{option: value})


@pytest.mark.parametrize("constant", [0.0, 0.1, 3.0, -7.3])
def test_a_constant_reward_leaves_the_policy_where_it_is(constant):
    subject = learner(
        reward=lambda prompts, answers: [constant] * len(answers), kl=KLArguments(kl_coefficient=0.05)
    )
    before = {name: tensor.clone() for name, tensor in subject.trained().items() if "head" not in name}
    assert max(abs(figures["kl"]) for figures in steps(subject, 5)) < 1e-6
    assert all(torch.equal(subject.trained()[name], tensor) for name, tensor in before.items())


def test_a_constant_and_a_scale_in_the_reward_change_nothing():
    def shifted(prompts, answers):
        return [5 * score - 10 for score in share_of_good(prompts, answers)]

    plain, other = learner(), learner(reward=shifted)
    for one, two in zip(steps(plain, 4), steps(other, 4), strict=True):
        assert two["kl"] == pytest.approx(one["kl"], abs=1e-3)
        assert two["reward"] == pytest.approx(5 * one["reward"] - 10, abs=1e-3)


def test_without_standardising_scores_count_as_they_are():
    subject = learner(
        value=ValueArguments(standardise_rewards=False), reward=lambda prompts, answers: [5.0] * len(answers)
    )
    assert steps(subject, 1)[0]["reward_with_penalties"] == pytest.approx(5, abs=1e-4)


def test_answers_that_no_reward_applies_to_teach_nothing():
    subject = learner(reward=lambda prompts, answers: [None] * len(answers))
    assert max(abs(figures["kl"]) for figures in steps(subject, 3)) < 1e-6


def test_a_minibatch_that_is_left_over_takes_its_share_of_a_step():
    def moved(rows: int) -> float:
        subject = learner(rollout_batch_size=33, minibatch_size=32, per_device_batch_size=32, epochs=1)
        experience = subject.collect((ROWS * 9)[:33], Clock())
        advantage, returns, _ = subject.judge(experience)
        before = {name: tensor.clone() for name, tensor in subject.trained().items()}
        subject._optimizer_step(experience, advantage, returns, list(range(rows)))
        return sum((subject.trained()[name] - tensor).abs().sum().item() for name, tensor in before.items())

    # AdamW's first step is its rate times the gradient's sign: the share of the rate is the share of the way
    assert moved(1) / moved(32) == pytest.approx(1 / 32, rel=0.2)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradient_checkpointing_changes_no_update(family):
    plain, saving = (learner(family=family, gradient_checkpointing=wanted) for wanted in (False, True))
    assert steps(plain, 2)[-1]["kl"] == pytest.approx(steps(saving, 2)[-1]["kl"], abs=1e-4)
    for name, tensor in plain.trained().items():
        torch.testing.assert_close(saving.trained()[name], tensor, atol=2e-4, rtol=1e-3)
    assert not any(module.training for module in saving.policy.network.modules())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_offset_table(seed):
    shares = {}
    for offset in (-10.0, -3.0, 0.0, 3.0, 10.0):
        subject = learner(
            reward=lambda p, a, offset=offset: [offset + score for score in share_of_good(p, a)],
            seed=seed,
            # as users have it: without, a rare empty answer can undo at this rate what was learnt
            stop_kl=0.1,
        )
        shares[offset] = steps(subject, 30)[-1]["reward"] - offset
    assert shares[0.0] > 0.85, shares
    assert all(share == pytest.approx(shares[0.0], abs=0.02) for share in shares.values()), shares


@pytest.mark.slow
def test_a_constant_reward_for_thirty_steps():
    subject = learner(
        reward=lambda prompts, answers: [3.0] * len(answers), kl=KLArguments(kl_coefficient=0.05)
    )
    assert max(abs(figures["kl"]) for figures in steps(subject, 30)) < 1e-6


def test_the_bandits_word_is_one_token():
    assert GOOD in WORDS
