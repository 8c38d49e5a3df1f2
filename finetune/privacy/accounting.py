"""Noise ↔ privacy: Opacus' accountants behind two functions. Knows numbers; knows no model and no rows.

The neighbours of a data set have one row more or less, each step takes every row with the same chance by
itself (Poisson sampling), and steps compose: by privacy loss random variables (Gopi et al. 2021) or by
Rényi's divergence (Mironov 2017; Mironov et al. 2019).
"""

from __future__ import annotations

import importlib
import math
import warnings
from functools import cache
from typing import Any

from finetune.errors import InputError


@cache
def noise_multiplier(epsilon: float, delta: float, rate: float, steps: int, accountant: str = "prv") -> float:
    """The noise's standard deviation, in clip norms, with which so many steps spend at most ε.

    Args:
        rate: the chance of each row in each step.

    Raises:
        InputError: no noise is enough, or Opacus isn't installed.
    """
    # imported when asked for: Opacus is an extra, and most runs aren't private
    find = _opacus("accountants.utils").get_noise_multiplier
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return float(
                find(
                    target_epsilon=epsilon, target_delta=delta, sample_rate=rate, steps=steps,
                    accountant=accountant, epsilon_tolerance=min(0.01, epsilon / 100),
                )
            )  # fmt: skip
    except (ValueError, RuntimeError, OverflowError, MemoryError) as error:
        raise InputError(
            f"No noise makes {steps} steps at a sampling rate of {rate:.4g} spend --epsilon {epsilon} at "
            f"--delta {delta} ({error}). Set --epsilon or --delta higher, or fewer steps, or --accountant rdp"
        ) from error


@cache
def epsilon_spent(multiplier: float, delta: float, rate: float, steps: int, accountant: str = "prv") -> float:
    """ε of so many steps with noise of `multiplier` clip norms: 0 for no step, infinite for no noise.

    Raises:
        InputError: Opacus isn't installed.
    """
    # both ends are known without an accountant
    if steps == 0:
        return 0.0
    if multiplier == 0:
        return math.inf
    counted = _opacus("accountants").create_accountant(mechanism=accountant)
    # all steps are alike: one entry instead of so many calls of `step`
    counted.history = [(multiplier, rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(counted.get_epsilon(delta=delta))


def _opacus(part: str) -> Any:
    try:
        return importlib.import_module(f"opacus.{part}")
    except ImportError as error:
        raise InputError(
            "--epsilon counts by Opacus, which isn't installed. "
            'Wanted: pip install "finetune-and-prompt[private]"'
        ) from error
