"""A reward that fails on one row, hangs or says a word: which row it is, and that nothing else is
lost. Sums by hand.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import math
import time

import numpy as np
import pytest
import torch
from test_rewards import asked

from finetune.alignment.rewards import AskedRewards, Part, RewardArguments, Rewards, centre, weighed
from finetune.errors import InputError

SCALES = [-6.0, -1.0, 0.0, 100.0, 1e4]


def nan_equal(found, wanted) -> bool:
    return found == pytest.approx(wanted, nan_ok=True)


def test_a_reward_sees_every_column_of_its_rows():
    def reward(prompts, completions, answer, name, **columns):
        assert columns == {}
        return [float(text == str(gold)) for text, gold in zip(completions, answer, strict=True)]

    assert asked(reward, ["0", "7", "2"]) == [1.0, 0.0, 1.0]


def test_a_reward_that_names_one_column_gets_that_alone():
    assert asked(lambda prompts, texts, name: [float(one.endswith("1")) for one in name]) == [0.0, 1.0]


def test_rewards_written_for_trl_are_taken():
    def by_name(completions, answer, **kwargs):
        return [float(text == str(gold)) for text, gold in zip(completions, answer, strict=True)]

    assert asked(by_name, ["0", "0"]) == [1.0, 0.0]


def test_truth_and_none_are_scores():
    assert nan_equal(asked(lambda p, a: [True, None, False], "abc"), [1.0, math.nan, 0.0])


def test_an_async_reward():
    async def slow(prompts, completions, **columns):
        await asyncio.sleep(0.01)
        return [float(len(text)) for text in completions]

    assert asked(slow, ["a", "bbb"]) == [1.0, 3.0]


def raises_on_b(prompts, completions, **columns):
    if "b" in completions:
        raise KeyError("mine")
    return [1.0] * len(completions)


def test_a_row_that_a_reward_raises_on_is_named():
    said = r"'mine' failed on 1 of 3 answers \(number 1.*'b': KeyError.*--reward_errors none"
    with pytest.raises(InputError, match=said):
        asked(raises_on_b, "abc")


def test_a_row_that_a_reward_raises_on_can_be_left_out(caplog):
    with caplog.at_level(logging.WARNING):
        assert nan_equal(asked(raises_on_b, "abcb", reward_errors="none"), [1.0, math.nan, 1.0, math.nan])
    assert "failed on 2 of 4 answers (number 1, 3" in caplog.text


def test_a_word_for_one_row_is_named_or_left_out():
    def says(prompts, completions, **columns):
        return ["high" if text == "b" else 1.0 for text in completions]

    with pytest.raises(InputError, match=r"1 of 3 answers.*'high'"):
        asked(says, "abc")
    assert nan_equal(asked(says, "abc", reward_errors="none"), [1.0, math.nan, 1.0])


def test_a_reward_that_reads_what_no_row_has_is_told_what_they_have():
    for reward in (lambda completions, gold: [1.0], lambda prompts, texts, gold: [1.0]):
        with pytest.raises(InputError, match="reads 'gold'.*they have answer, name. Mend --reward"):
            asked(reward, "abc")
    assert asked(lambda prompts, texts, gold=0.5, **more: [gold] * len(texts), "abc") == [0.5] * 3


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("it has no words either")


@pytest.mark.parametrize(
    ("error", "said"),
    [(SystemExit(0), "SystemExit"), (asyncio.CancelledError(), "CancelledError"), (Mute(), "Mute")],
)
def test_whatever_a_reward_raises_is_its_rows_affair(error, said):
    def leaves(prompts, completions, **columns):
        if "b" in completions:
            raise error
        return [1.0] * len(completions)

    with pytest.raises(InputError, match=rf"number 1 of the batch.*{said}"):
        asked(leaves, "abc")
    assert nan_equal(asked(leaves, "abc", reward_errors="none"), [1.0, math.nan, 1.0])


def test_a_keyboards_interrupt_ends_the_run():
    def interrupted(prompts, completions, **columns):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asked(interrupted, "abc", reward_errors="none")


@pytest.mark.parametrize(
    "found", [b"abc", "abc", {0: 1, 1: 1, 2: 1}, {1, 2, 3}, (1.0 for _ in "abc"), 1.0, None, [1.0], [1.0] * 9]
)
def test_what_is_no_list_of_a_score_an_answer_is_refused(found):
    with pytest.raises(InputError, match=r"wanted (a list|one each).*--reward"):
        asked(lambda prompts, completions, **columns: found, "abc")


@pytest.mark.parametrize("score", [math.nan, math.inf, 10**400, 1j, "0.5", [1.0], torch.ones(1)])
def test_what_is_no_number_is_named(score):
    def says(prompts, completions, **columns):
        return [score if text == "b" else 1 for text in completions]

    with pytest.raises(InputError, match="number 1 of the batch.*wanted a finite number"):
        asked(says, "abc")
    assert nan_equal(asked(says, "abc", reward_errors="none"), [1.0, math.nan, 1.0])


def test_a_reward_that_writes_into_what_it_gets_changes_no_row():
    def writes(prompts, completions, tags, **columns):
        for prompt, tag in zip(prompts, tags, strict=True):
            prompt.append({"role": "user", "content": "more"})
            prompt[0]["content"], tag["a"] = "other", [2]
        prompts.clear()
        completions[:] = ["other"]
        return [1.0, 2.0]

    rows = [
        AskedRewards([{"role": "user", "content": word}], {"tags": {"a": [1]}}) for word in ("one", "two")
    ]
    before, answers = copy.deepcopy(rows), ["x", "y"]
    assert Rewards.of(mine=writes).ask(rows, answers).tolist() == [[1.0], [2.0]]
    assert rows == before and answers == ["x", "y"]


def test_a_reward_that_hangs_on_a_row_is_stopped():
    def hangs(prompts, completions, **columns):
        if "b" in completions:
            time.sleep(60)
        return [1.0] * len(completions)

    start = time.perf_counter()
    with pytest.raises(InputError, match=r"number 1.*no answer within.*--reward_timeout"):
        asked(hangs, "abc", reward_timeout=0.3)
    assert nan_equal(asked(hangs, "abc", reward_timeout=0.3, reward_errors="none"), [1.0, math.nan, 1.0])
    assert time.perf_counter() - start < 20


def table(*columns) -> np.ndarray:
    return np.array(columns, dtype=float).T


def rewards(*weights: float, **options) -> Rewards:
    return Rewards(
        [Part(f"r{i}", lambda p, a: [], w) for i, w in enumerate(weights)], RewardArguments(**options)
    )


def test_the_sum_by_hand():
    none = np.array([False, False, False])
    found = rewards(1, 0.5).combine(table([1, 2, math.nan], [4, math.nan, math.nan]), none)
    assert nan_equal(found.total.tolist(), [3.0, 2.0, math.nan])


def test_normalised_by_hand():
    none = np.array([False, False])
    found = rewards(1, 0.5, normalise_rewards=True).combine(table([0, 10], [7, 7]), none)
    assert found.total.tolist() == [-1.0, 1.0]
    assert found.parts.tolist() == [[0, 7], [10, 7]]  # the log shows what each reward said


@pytest.mark.parametrize("shift", SCALES)
@pytest.mark.parametrize("scale", [0.01, 1.0, 50.0])
def test_an_empty_answer_never_wins(shift, scale):
    empty = np.array([False, True, False])
    found = rewards(1).combine(table([shift + scale, math.nan, shift]), empty).total
    assert found[1] == pytest.approx(shift - scale / 2)


def test_an_empty_answer_among_equals_is_their_equal_until_some_have_differed():
    subject, empty = rewards(1), np.array([False, True, False])
    assert subject.combine(table([3, math.nan, 3]), empty).total.tolist() == [3, 3, 3]
    subject.combine(table([1, math.nan, 5]), empty)
    assert subject.combine(table([3, math.nan, 3]), empty).total.tolist() == [3, 1, 3]


def test_an_answer_that_was_cut_pays():
    found = rewards(1, missing_eos_penalty=2.0).combine(
        table([3, 3]), np.array([False, False]), np.array([True, False])
    )
    assert found.total.tolist() == [3, 1]


def test_figures_of_each_reward():
    found = rewards(1).figures(table([1, 3, math.nan, 2]))
    assert found == {
        "rewards/r0/mean": 2,
        "rewards/r0/std": pytest.approx(math.sqrt(2 / 3)),
        "rewards/r0/applies": 0.75,
    }


@pytest.mark.parametrize("constant", [0.1, -7.3, 1e6 + 0.1])
def test_a_constant_is_its_own_centre(constant):
    mean, deviation = centre(np.full(37, constant))
    assert mean == constant and deviation == 1.0


def test_names_that_come_twice_get_a_number():
    named = [("length", len), ("length", len), ("other", len)]
    assert [part.name for part in weighed(named, RewardArguments()).parts] == ["length", "length_2", "other"]


@pytest.mark.parametrize("weights", [[1.0], [1.0, 2.0, 3.0], [1.0, math.nan]])
def test_weights_of_another_number_are_refused(weights):
    with pytest.raises(InputError, match="--reward_weights.*2 rewards"):
        weighed([("a", len), ("b", len)], RewardArguments(reward_weights=weights))


def test_no_answer_at_all():
    assert np.isnan(Rewards.of(mine=lambda p, a: 1 / 0).ask([AskedRewards("p")], [" "])).all()
