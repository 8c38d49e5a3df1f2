"""What a run leaves for its page: pairs of measurements, warnings in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune.alignment import record


def log(count: int, first: dict, last: dict) -> list[dict]:
    """Steps that go in a straight line from some figures to others."""
    same = {"step": 0, "true_reward": 0.1, "true_reward_error": 0.01, "held_out_kl": 0.0}
    lines = [same]
    for step in range(1, count + 1):
        part = (step - 1) / (count - 1)
        lines.append(
            {"step": step} | {name: first[name] + part * (last[name] - first[name]) for name in first}
        )
    lines[-1] |= {"true_reward": 0.5, "true_reward_error": 0.01, "held_out_kl": 2.0}
    return lines


CALM = {"reward": 0.0, "kl": 0.0, "empty": 0.0, "ended": 0.9, "entropy": 2.0, "explained_variance": 0.5}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"reward": 1.0, "kl": 14.0}, "far"),
        ({"empty": 0.4}, "empty"),
        ({"ended": 0.0}, "cut"),
        ({"explained_variance": -0.1}, "values"),
        ({"entropy": 0.05}, "silent"),
    ],
)
def test_what_goes_wrong_is_said_in_words(change, name):
    found = record.warnings_of(log(40, CALM, CALM | change))
    assert [warning["name"] for warning in found] == [name]
    assert len(found[0]["text"]) > 40


@pytest.mark.parametrize("change", [{}, {"reward": 1.0, "kl": 5.0}, {"reward": -1.0, "kl": 14.0}])
def test_what_is_well_is_not_warned_of(change):
    assert record.warnings_of(log(40, CALM, CALM | change)) == []


def test_a_reward_that_never_differs_is_said():
    lines = [line | {"reward_std": 0.0} for line in log(10, CALM, CALM)]
    assert [warning["name"] for warning in record.warnings_of(lines)] == ["flat"]


def test_a_reward_that_applies_to_nothing_is_said():
    told = {"rewards/mine/applies": 0.0, "rewards/other/applies": 0.5}
    found = record.warnings_of([line | told for line in log(10, CALM, CALM)])
    assert [warning["name"] for warning in found] == ["unscored mine"]


def test_differences_are_paired_by_prompt():
    found = record.paired([0.0, 1.0, 2.0, None], [0.5, 1.5, 2.5, 9.0])
    assert found == {"mean": 0.5, "interval": [0.5, 0.5], "prompts": 3}
    assert record.paired([None], [None]) == {"prompts": 0}


def test_a_summary_is_written_and_lines_are_read_again(tmp_path: Path):
    lines = log(10, CALM, CALM)
    answers = [
        {"step": step, "answers": [], "scores": [0.0, score], "kl": 0.0}
        for step, score in ((0, 0.0), (10, 1.0))
    ]
    record.write_lines(tmp_path / record.LOG, lines)
    assert record.lines_before(tmp_path / record.LOG, 4) == lines[:5]
    assert record.lines_before(tmp_path / record.LOG, 0) == []
    found = record.write_summary(tmp_path, "ppo", lines, answers)
    assert json.loads((tmp_path / record.SUMMARY).read_text()) == found
    assert found["difference"]["mean"] == 0.5 and found["prompts"] == 2
    assert found["before"]["true_reward"] == 0.1 and found["after"]["true_reward"] == 0.5
