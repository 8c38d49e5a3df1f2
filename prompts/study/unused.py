"""Options that this run wouldn't read, refused by name: what is set and ignored misleads whoever set it.
Knows options only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from finetune.errors import InputError
from prompts.scoring.connection import EndpointArguments
from prompts.scoring.endpoint import ENDPOINT_PREFIX
from prompts.study.options import AnswerArguments, StudyArguments
from prompts.study.trained import runs_among
from prompts.templates.entries import Entry
from prompts.templates.layout import ON_LONG

OF_ENDPOINTS = tuple(EndpointArguments.__dataclass_fields__)
OF_RESCORING = ("metric", "power", "rescore", "output_dir")
OF_WRITING = ("repeats", "temperature", "top_p", "draw_seed", "judge", "judge_rows")


def check_answers(answers: AnswerArguments) -> None:
    """
    Raises:
        InputError: a number or word that can't be.
    """
    if answers.on_long not in ON_LONG:
        raise InputError(f"--on_long {answers.on_long}; wanted one of: {', '.join(ON_LONG)}")
    if answers.repeats < 1 or answers.temperature < 0 or not 0 < answers.top_p <= 1:
        raise InputError(
            "Wanted --repeats of 1 or more, --temperature of 0 or more, --top_p above 0 and at most 1"
        )


def check_rescored(groups: Iterable[Any], folder: str) -> None:
    """
    Raises:
        InputError: an option that a run which is judged again doesn't read.
    """
    for group in groups:
        default = vars(type(group)())
        idle = next((n for n, v in vars(group).items() if n not in OF_RESCORING and v != default[n]), None)
        if idle:
            raise InputError(
                f"--rescore judges the answers that {folder} holds, by {', '.join(OF_RESCORING[:2])} alone; "
                f"--{idle} has nothing to change. Leave it out"
            )


def check_used(
    entry: Entry,
    study: StudyArguments,
    answers: AnswerArguments,
    endpoint: EndpointArguments,
    others: Iterable[Any],
) -> None:
    """Refuse options that differ from their default where nothing reads them.

    Args:
        others: groups of options behind a switch of the group's own name: `tune` for `tune_rows`.

    Raises:
        InputError: the first of them, with what would read it.
    """
    asked = [
        # the judge may be the only one behind an address
        *study.models,
        answers.judge or "",
        *(str(vars(group).get("instruct") or "") for group in others),
    ]
    # (is it read, where it stands, names, what would read it)
    rules = [
        (
            any(name.startswith(ENDPOINT_PREFIX) for name in asked),
            endpoint,
            OF_ENDPOINTS,
            "--models openai:NAME",
        ),
        ("text" in entry.kinds, answers, OF_WRITING, "an entry whose answers are written"),
        (bool(max(study.shots)), study, ("shot_choice", "shot_seeds", "embedder"), "--shots above 0"),
        (
            study.shot_choice == "nearest" or not max(study.shots),
            study,
            ("embedder",),
            "--shot_choice nearest",
        ),
        (study.search, study, ("search_rows",), "--search"),
    ]
    # an address shows no tokens to count, and asking other models shorter texts would compare unlike things
    behind = [name for name in study.models if name.startswith(ENDPOINT_PREFIX)]
    if behind and study.max_length is not None:
        raise InputError(
            f"--max_length counts tokens, which {behind[0]} behind an address doesn't show; leave it out, or "
            "ask local models in a run of their own"
        )
    rules.append((len(behind) < len(study.models), answers, ("on_long",), "a local model"))
    rules.append((bool(runs_among(study.models)), answers, ("keep_trained_rows",), "--models trained here"))
    # the entry's own judge is asked by the endpoint's options
    if entry.judge is not None and entry.judge.model.startswith(ENDPOINT_PREFIX):
        rules.pop(0)
    for group in others:
        # a group's own switch is what turns the rest on
        switch = next((name for name in ("tune", "instruct") if name in vars(group)), "")
        further = tuple(name for name in vars(group) if name != switch)
        rules.append((bool(vars(group).get(switch)), group, further, f"--{switch}"))
    # what is left at its default was not set
    for is_read, group, names, wanted in rules:
        default = vars(type(group)())
        idle = next((name for name in names if not is_read and vars(group)[name] != default[name]), None)
        if idle:
            raise InputError(f"--{idle} is read with {wanted} alone; leave it out")
