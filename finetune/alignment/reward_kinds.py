"""What --reward names → rewards. The table of kinds. Knows their names; knows no arithmetic of theirs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace

from finetune.alignment.judge import judge_reward
from finetune.alignment.model_rewards import classifier_reward, model_reward, on_policy_base, prompt_reward
from finetune.alignment.policy import Policy
from finetune.alignment.process_reward import process_reward
from finetune.alignment.ready_rewards import format_reward, length_reward, regex_reward, same_number
from finetune.alignment.rewards import Reward, RewardArguments, Rewards, weighed
from finetune.alignment.tools import load_module
from finetune.alignment.unit_tests import unit_tests
from finetune.errors import InputError
from finetune.models.load import ModelArguments


def function_reward(rest: str, settings: RewardArguments) -> Reward:
    """`FILE.py:NAME` or `MODULE:NAME` → the function of that name, called as f(prompts, completions,
    **columns).
    """
    # The last colon: a path on Windows has one too.
    place, _, name = rest.rpartition(":")
    if place.endswith(".py"):
        module = load_module(place, "--reward function:FILE.py:NAME")
    else:
        try:
            module = importlib.import_module(place)
        except ImportError as error:
            raise InputError(
                f"Cannot import '{place}' ({error}); set --reward function:MODULE:NAME"
            ) from error
    # `vars` and no getattr: a module's own `__getattr__` might make up a name.
    if name not in vars(module) or not callable(vars(module)[name]):
        raise InputError(f"There is no function '{name}' in {place}; set --reward function:{place}:NAME")
    return vars(module)[name]


MAKERS: dict[str, Callable[[str, RewardArguments], Reward]] = {
    "classifier": classifier_reward,
    "model": model_reward,
    "process": process_reward,
    "function": function_reward,
    "prompt": prompt_reward,
    "judge": judge_reward,
    "same_number": same_number,
    "length": length_reward,
    "format": format_reward,
    "regex": regex_reward,
    "unit_tests": unit_tests,
}
ALONE = ("same_number", "unit_tests")  # what follows the colon may be left out


def load_reward(named: str, settings: RewardArguments) -> Reward:
    """The reward that one word of --reward names.

    Raises:
        InputError: an unknown kind, or something that isn't there.
    """
    kind, _, rest = named.partition(":")
    # A kind that needs to be told what has nothing behind its colon.
    if kind not in MAKERS or not (rest or kind in ALONE):
        raise InputError(
            f"--reward names '{named}'; wanted KIND:WHAT, where KIND is one of: {', '.join(MAKERS)} (--help "
            "says what follows each)"
        )
    return MAKERS[kind](rest, settings)


def load_rewards(
    settings: RewardArguments, policy: Policy | None = None, model: ModelArguments | None = None
) -> Rewards:
    """All rewards of the options. A reward model that is an adapter of `policy`'s base, which is `model`,
    shares it.

    Raises:
        InputError: none is named, an unknown kind, weights of another number.
    """
    if not settings.reward:
        raise InputError("No reward; set --reward (for instance classifier:FOLDER, or function:FILE.py:NAME)")
    found = []
    for named in settings.reward:
        kind, _, rest = named.partition(":")
        # By the function's name, which is the figures' name in the log.
        name = rest.rpartition(":")[2] if kind == "function" else kind
        shared = None
        if kind == "model" and policy is not None and model is not None:
            # Before it is loaded by itself, which would bring a second base into memory.
            shared = on_policy_base(policy, model, rest, settings)
        found.append((name, shared or load_reward(named, settings)))
    return weighed(found, settings)


def true_rewards(settings: RewardArguments, named: list[str] | None) -> Rewards | None:
    """Other rewards, read as --reward is, by which answers are measured; None where none are named."""
    # Weights of --reward belong to that list and not to this one.
    return load_rewards(replace(settings, reward=named, reward_weights=None)) if named else None
