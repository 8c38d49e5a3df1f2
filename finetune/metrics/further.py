"""Figures that `evaluate` computes beside a task's own: a hub's metric by name, or a folder's. Knows answers;
knows no models.

A metric of `evaluate` is a script. Naming one runs it: a local folder's as it stands, a hub's after it was
fetched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from finetune.errors import InputError

logger = logging.getLogger(__name__)
Figures = Callable[[Sequence[dict[str, Any]], Sequence[str] | None], dict[str, Any]]


@dataclass
class MetricArguments:
    """Further figures beside the task's own."""

    metrics: list[str] | None = field(
        default=None,
        metadata={
            "help": "Metrics of `evaluate` by their hub name, or a local metric's folder, whose script is "
            "then "
            "run as it "
            "stands: matthews_correlation ./my_metric. A configuration follows a colon: f1:multilabel."
        },
    )


def load_metrics(names: Sequence[str] | None) -> dict[str, Any]:
    """evaluate's metrics by name, or this project's own (`finetune.metrics.own.OWN`).

    Raises:
        InputError: none of that name, or it can't be fetched or run.
    """
    return {name: load_metric(name) for name in names or ()}


def load_metric(name: str) -> Any:
    """One of them, as an `evaluate.EvaluationModule`; it keeps what it is given in memory.

    Raises:
        InputError: as `load_metrics` does.
    """
    from finetune.metrics.own import OWN

    # Before the hub: a name of this project's own needs no network.
    if name in OWN:
        return OWN[name]()
    import evaluate

    path, _, configuration = name.partition(":")
    local = Path(path).expanduser()
    if local.exists():
        logger.warning("--metrics %s runs the code of %s", name, local.resolve())
        path = str(local)
    # Written as a path, it is meant as one; the hub would be asked for a name with dots.
    elif path.startswith((".", "/", "~")):
        raise InputError(f"--metrics {name}: there is no {local}")
    try:
        return evaluate.load(path, configuration or None, keep_in_memory=True)
    # whatever a metric's script raises is of its own kind; offline it is one of several errors of the hub's
    # client
    except Exception as error:
        where = "its script could not be run" if local.exists() else (
            "it is no folder here, and the hub has no metric of that name or can't be reached"
        )  # fmt: skip
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"--metrics {name}: {where} ({type(error).__name__}: {said:.200}). Wanted a hub name, the folder "
            "of a local "
            f"metric (./my_metric with my_metric.py), or one of this project's own: {', '.join(OWN)}"
        ) from error


def with_metrics(figures: Figures | None, names: Sequence[str] | None) -> Figures | None:
    """A task's own figures of answers, and those of the metrics, loaded now so that a wrong name ends no
    training.

    Raises:
        InputError: as `load_metrics` does; the figures raise one where a metric can't take the task's
            answers.
    """
    modules = load_metrics(names)
    if not modules:
        return figures

    def further(answers: Sequence[dict[str, Any]], labels: Sequence[str] | None) -> dict[str, Any]:
        found = dict(figures(answers, labels)) if figures else {}
        for name, module in modules.items():
            for key, value in measure(name, module, answers, labels).items():
                # Two metrics may both say "accuracy".
                found[key if key not in found else f"{Path(name).stem}_{key}"] = value
        return found

    return further


def measure(
    name: str, module: Any, answers: Sequence[dict[str, Any]], labels: Sequence[str] | None
) -> dict[str, Any]:
    """What a metric makes of answers; classes are told by their numbers where it wants numbers.

    Raises:
        InputError: it takes none of the forms that the answers can have, or its script fails on them.
    """
    if not answers:
        raise InputError(f"--metrics {name}: this run gives no answers to rows that a metric could compare")
    said, wanted = ([answer[key] for answer in answers] for key in ("prediction", "gold"))
    refused = ""
    # Classes by number first, as most metrics want them; then as they are.
    for form in _forms(labels):
        try:
            batch = {"predictions": [form(one) for one in said], "references": [form(one) for one in wanted]}
        except (KeyError, TypeError):
            continue
        try:
            module.add_batch(**batch)
        except ValueError as error:  # not the kind of value that the metric declares
            refused = str(error).splitlines()[0]
            module.writer = module.buf_writer = module.data = None  # what it had begun to keep
            continue
        try:
            return {key: _plain(value) for key, value in (module.compute() or {}).items()}
        except Exception as error:
            raise InputError(
                f"--metrics {name} fails on the answers: {type(error).__name__}: {error}"
            ) from error
    raise InputError(f"--metrics {name} can't take this task's answers, as {said[0]!r:.60}: {refused:.200}")


def _forms(labels: Sequence[str] | None) -> Iterator[Callable[[Any], Any]]:
    """Ways to tell a metric an answer: a class by its number, a set of them as zeros and ones, or as
    it is.
    """
    if labels:
        number = {label: place for place, label in enumerate(labels)}
        yield lambda answer: number[answer]
        # A KeyError on purpose: this form isn't the answers', and the next one is tried.
        yield (
            lambda answer: [int(label in answer) for label in labels] if _of(answer, number) else number[None]
        )
    yield lambda answer: answer


def _of(answer: Any, known: dict[str, int]) -> bool:
    return isinstance(answer, list | tuple | set) and set(answer) <= set(known)


def _plain(value: Any) -> Any:
    """Numbers of numpy's as Python's, so that JSON takes them."""
    if isinstance(value, np.generic):
        return value.item()
    return value.tolist() if isinstance(value, np.ndarray) else value
