"""What a processor gains by bf16: measured once, kept by processor, and measured again where that is lost."""

from __future__ import annotations

import json

import pytest
import torch

from finetune.training import calibration


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """(seconds of float32, of bf16) → the gain as a new process finds it, and how often it measured."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    # a whole run of the tests may be held to it
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)

    def found(single: float, half: float) -> tuple[float, int]:
        asked = []
        took = {torch.float32: single, torch.bfloat16: half}
        monkeypatch.setattr(calibration, "_seconds", lambda dtype: asked.append(dtype) or took[dtype])
        calibration.bf16_gain.cache_clear()
        return calibration.bf16_gain(), len(asked)

    yield found
    calibration.bf16_gain.cache_clear()


def test_it_is_measured_once_for_a_machine(measure, tmp_path):
    assert measure(6.0, 1.5) == (4.0, 2)
    assert measure(1.0, 9.0) == (4.0, 0)
    assert list(json.loads((tmp_path / "home" / "bf16_gain.json").read_text()).values()) == [4.0]


def test_kernels_that_are_held_back_are_another_machine(measure, monkeypatch):
    assert measure(6.0, 1.5) == (4.0, 2)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert measure(1.0, 4.0) == (0.25, 2)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert measure(1.0, 9.0) == (4.0, 0)


@pytest.mark.parametrize("text", ["", "[]", '{"x": "y"}', "null"])
def test_a_damaged_file_is_measured_and_written_anew(measure, tmp_path, text):
    file = tmp_path / "home" / "bf16_gain.json"
    file.parent.mkdir()
    file.write_text(text)
    assert measure(3.0, 1.0) == (3.0, 2)
    assert measure(1.0, 1.0) == (3.0, 0)


def test_a_home_that_cannot_be_written_to_is_no_fault(measure, tmp_path):
    (tmp_path / "home").write_text("a file where the folder would be")
    assert measure(3.0, 1.0) == (3.0, 2)
    assert measure(5.0, 1.0) == (5.0, 2)


def test_a_product_is_timed_without_moving_the_runs_chance():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert all(0 < calibration._seconds(dtype) < 10 for dtype in (torch.float32, torch.bfloat16))
    assert torch.equal(torch.get_rng_state(), before)
