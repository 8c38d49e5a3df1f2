"""A reward and a batch → one number or None a row, or the rows that it failed on, named. Knows functions;
knows no model.

User's functions raise on one row of a thousand, hang, or give back a word. What is asked here is asked for
all rows at once; only where that fails is each row asked by itself, to tell which it is.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import signal
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from finetune.errors import InputError

logger = logging.getLogger(__name__)

Score = float | bool | None
NAMED = 5  # rows that a message names


def called(
    name: str, reward: Callable[..., Any], prompts: Sequence[Any], answers: Sequence[str],
    columns: Mapping[str, Sequence[Any]], *, stop: bool, limit: float,
) -> list[float | None]:  # fmt: skip
    """What a reward says of each answer.

    Args:
        stop: whether a row that it fails on ends the run; else that row has no score, and the log says how
            many.
        limit: seconds for the whole batch, where the call can be timed.

    Raises:
        InputError: it failed, and `stop`; or it gives another number of scores, for one row as for all.
    """
    try:
        with at_most(limit):
            found: list[Any] = listed(name, _asked(reward, prompts, answers, columns), len(answers))
    except KeyboardInterrupt:
        raise
    # SystemExit and CancelledError too: `sys.exit()` in a reward would end the run as if it were done.
    except BaseException as error:
        # An InputError names its flag already; asking each row would only say it again.
        if stop and isinstance(error, InputError):
            raise
        found = _one_by_one(name, reward, prompts, answers, columns, limit=limit)
        # Each row went well by itself, so that the fault is in the batch and belongs to all of them.
        if not any(isinstance(score, BaseException) for score in found):  # it fails on many rows only
            found = [error] * len(answers)
    scores = [score if isinstance(score, BaseException) else number(score) for score in found]
    failed = [i for i, score in enumerate(scores) if isinstance(score, BaseException)]
    # Failed rows are told together: one line a batch, not a line a row.
    if failed:
        _tell(name, failed, scores, answers, stop)
    return [None if isinstance(score, BaseException) else score for score in scores]


def _asked(
    reward: Callable[..., Any], prompts: Sequence[Any], answers: Sequence[str], columns: Mapping[str, Any]
) -> Any:
    """The reward's answer, awaited where it is to be. A function that names its columns gets those alone."""
    parameters = list(inspect.signature(reward).parameters.values())
    names = [p.name for p in parameters]
    # A reward with **kwargs, as TRL's examples have, gets everything.
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        given = dict(columns)
    else:
        given = {column: values for column, values in columns.items() if column in names}
    # A column may be called `prompts`; the argument of that name comes first.
    given = {
        column: own(values) for column, values in given.items() if column not in ("prompts", "completions")
    }
    # TRL's own rewards name what they read, and some leave the prompts out
    if "completions" in names:
        given["completions"] = list(answers)
        if "prompts" in names or any(p.kind is p.VAR_KEYWORD for p in parameters):
            given["prompts"] = own(prompts)
        _check_given(parameters, given, columns)
        found = reward(**given)
    else:
        # By position: a user's function may name its first two parameters as it likes.
        positional = {p.name for p in parameters[:2]}
        given = {k: v for k, v in given.items() if k not in positional}
        _check_given(parameters[2:], given, columns)
        found = reward(own(prompts), list(answers), **given)
    # TRL takes coroutines too. A loop of its own: none is running in a trainer.
    return asyncio.run(_awaited(found)) if inspect.isawaitable(found) else found


def _check_given(
    parameters: Sequence[inspect.Parameter], given: Mapping[str, Any], columns: Mapping[str, Any]
) -> None:
    # Before the call: Python's own words name the argument and not what there is.
    starred = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    lacking = [
        p.name for p in parameters if p.default is p.empty and p.kind not in starred and p.name not in given
    ]
    if lacking:
        there = ", ".join(columns) or "none beside the prompts"
        raise InputError(
            f"The reward function reads '{lacking[0]}', which is no column of the rows; they have {there}. "
            "Mend --reward or the rows"
        )


def own(values: Any) -> Any:
    """Lists and mappings as new ones, to whatever depth; what is in them stays itself.

    A reward may write into what it is given, and rows are asked again at later steps.
    """
    if isinstance(values, Mapping):
        return {key: own(value) for key, value in values.items()}
    return [own(value) for value in values] if isinstance(values, list | tuple) else values


async def _awaited(found: Awaitable[Any]) -> Any:
    return await found


def _one_by_one(
    name: str,
    reward: Callable[..., Any],
    prompts: Sequence[Any],
    answers: Sequence[str],
    columns: Mapping[str, Any],
    *,
    limit: float,
) -> list[Any]:
    """Each row's score or what it raised; a row gets twice its share of the time."""
    found: list[Any] = []
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        try:
            # A second at least: a share of a batch of a thousand would be no time to start up in.
            with at_most(max(1.0, 2 * limit / len(answers))):
                row = {column: [values[i]] for column, values in columns.items()}
                found += listed(name, _asked(reward, [prompt], [answer], row), 1)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            found.append(error)
    return found


def listed(name: str, found: Any, wanted: int) -> list[Any]:
    """What a reward gave back, as a list.

    Raises:
        InputError: it is no list, or not one with a score an answer.
    """
    # Arrays and tensors are sequences of their own scalars; a list has Python's.
    found = found.tolist() if isinstance(found, (torch.Tensor, np.ndarray)) else found
    # A string is a sequence of as many characters, bytes one of numbers; both could pass by chance.
    if not isinstance(found, Sequence) or isinstance(found, (str, bytes, bytearray)):
        raise InputError(
            f"The reward '{name}' gave {str(found)[:60]!r}; wanted a list with one number an answer. Mend "
            "--reward"
        )
    if len(found) != wanted:
        raise InputError(
            f"The reward '{name}' gave {len(found)} scores for {wanted} answers; wanted one each. Mend "
            "--reward"
        )
    return list(found)


def number(score: Any) -> float | ValueError | None:
    """A score as a number; None stays; what is neither becomes an error that says so."""
    # 0-dimensional, as a list of tensors has.
    if isinstance(score, (torch.Tensor, np.generic)) and np.ndim(score) == 0:
        score = score.item()
    if score is None:
        return None
    # bool is an int; True and False count. Infinity would make every mean infinite.
    try:
        if isinstance(score, (bool, int, float)) and math.isfinite(score):
            return float(score)
    except OverflowError:  # an int of more digits than a float holds
        return ValueError("gave an integer beyond 1e308; wanted a finite number, True, False or None")
    return ValueError(f"gave {str(score)[:60]!r}; wanted a finite number, True, False or None")


def _tell(
    name: str, failed: Sequence[int], scores: Sequence[Any], answers: Sequence[str], stop: bool
) -> None:
    first = scores[failed[0]]
    # Ours says what was wanted; a stranger's needs its line.
    said = str(first) if isinstance(first, InputError) or not first.__traceback__ else described(first)
    rows = ", ".join(map(str, failed[:NAMED])) + (", ..." if len(failed) > NAMED else "")
    told = (
        f"The reward '{name}' failed on {len(failed)} of {len(answers)} answers (number {rows} of the "
        "batch), "
        f"the first {answers[failed[0]][:80]!r}: {said}"
    )
    if stop:
        raise InputError(
            f"{told}. Mend --reward, or set --reward_errors none to go on without them"
            # The user's own exception stays attached, with its trace.
        ) from first
    logger.warning("%s. They get no score from it", told)


def described(error: BaseException) -> str:
    """An exception with the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    # as a traceback says it: a stranger's exception may fail to say what it is
    return "".join(traceback.format_exception_only(error)).strip() + place


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in what runs longer, where a signal can reach it: in the main thread, on systems
    that have alarms.

    Raises:
        TimeoutError: the time is over.
    """
    # Python runs handlers of signals in the main thread only; Windows has no such alarm.
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def over(*_: Any) -> None:
        raise TimeoutError(f"no answer within {seconds:g} s (--reward_timeout)")

    handler = signal.signal(signal.SIGALRM, over)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        # Before the handler goes back: an alarm in between would meet somebody else's.
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)  # somebody else's alarm goes on
