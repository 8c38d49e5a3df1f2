"""Which device a process takes: asked of a machine that is made up."""

from __future__ import annotations

import pytest
import torch

from finetune.device import computed_in, device


@pytest.mark.parametrize(
    ("there", "told", "wanted"),
    [
        (None, {}, "cpu"),
        ("cuda", {"LOCAL_RANK": "3"}, "cuda:3"),
        ("cuda", {}, "cuda:1"),
        ("cuda", {"ACCELERATE_USE_CPU": "True"}, "cpu"),
        ("mps", {"LOCAL_RANK": "3"}, "mps"),
    ],
)
def test_the_launchers_word_goes_before_the_current_one(there, told, wanted, monkeypatch):
    found = None if there is None else torch.device(there)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 1)
    for name in ("LOCAL_RANK", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert str(device()) == wanted


def test_products_are_computed_in_autocasts_type():
    part = torch.ones(2)
    assert computed_in(part) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert computed_in(part) == torch.bfloat16
