"""Energy is metered where its package is installed, and summed over a run and what it was resumed from."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import ClassVar

import pytest

from finetune.training.energy import ENERGY, EnergyMeter


class Meter:
    """codecarbon's tracker as far as it is used."""

    made: ClassVar[list[dict]] = []

    def __init__(self, **options):
        self.made.append(options)
        self.started = False

    def start(self):
        self.started = True

    def stop(self):
        assert self.started
        self.final_emissions_data = SimpleNamespace(energy_consumed=0.002)


@pytest.fixture
def meter(monkeypatch):
    Meter.made = []
    monkeypatch.setitem(sys.modules, "codecarbon", SimpleNamespace(OfflineEmissionsTracker=Meter))
    return Meter


@pytest.mark.parametrize("first", [True, False])
def test_the_main_process_meters(meter, first):
    state = SimpleNamespace(is_world_process_zero=first, log_history=[], global_step=7)
    callback = EnergyMeter()
    callback.on_train_begin(None, state, None)
    callback.on_train_end(None, state, None)
    assert state.log_history == ([{ENERGY: 0.002, "step": 7}] if first else [])
    assert len(meter.made) == first
    assert all(options["output_methods"] == [] for options in meter.made)  # nothing is written or sent


def test_the_packages_own_meter():
    pytest.importorskip("codecarbon")
    state = SimpleNamespace(is_world_process_zero=True, log_history=[], global_step=1)
    callback = EnergyMeter()
    callback.on_train_begin(None, state, None)
    callback.on_train_end(None, state, None)
    assert state.log_history[0][ENERGY] > 0
