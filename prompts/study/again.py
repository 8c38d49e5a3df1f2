"""A run judged again from what it kept, without asking any model; and two runs compared row by row. Knows
files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from finetune.errors import InputError
from finetune.metrics.bootstrap import draws
from finetune.metrics.significance import Comparison, compare
from prompts.study.archive import read_study
from prompts.study.asking import Notes
from prompts.study.findings import Findings, Population
from prompts.study.outcomes import Outcome, outcomes
from prompts.study.prompts import named_entry
from prompts.study.report import write_report
from prompts.study.run import Options
from prompts.templates.template import Template


def stored_findings(folder: Path, metric: str | None = None, power: float | None = None) -> Findings:
    """A run's findings, made anew from its rows by its entry as it stands now.

    Raises:
        InputError: no run there, or its prompts are gone.
    """
    arguments = folder / "arguments.yaml"
    if not arguments.is_file():
        # of an entry of several kinds, which has a folder for each
        arguments = folder.parent / "arguments.yaml"
    if not arguments.is_file() or not (folder / "findings.json").is_file():
        raise InputError(f"{folder} is no run of prompts: it lacks arguments.yaml or findings.json")
    given = yaml.safe_load(arguments.read_text(encoding="utf-8"))
    known = json.loads((folder / "findings.json").read_text(encoding="utf-8"))
    entry = named_entry(given["prompts"])
    kind, parts, labels, answers = read_study(folder, entry)
    # scores of labels and choices were kept for one figure; texts can be judged by another
    heading = metric or (entry.metric_of(kind) if kind == "text" else known["metric"])
    # type: ignore[call-arg]
    # the metric is part of a cell of texts, which computes it
    answers = [replace(one, metric=heading) for one in answers] if kind == "text" else answers
    notes = Notes()
    # kept with their sort, since a run with troubles ends with status 1 again
    for one in known["notes"]:
        (notes.expect if one["ends_well"] else notes.trouble)(one["model"], one["prompt"], one["what"])
    found = outcomes(answers, parts, labels, heading)
    population = Population(**known["population"])
    templates = {one["name"]: Template(one["name"], one["text"]) for one in known["templates"] if one["text"]}
    return Findings(
        entry,
        kind,
        heading,
        labels,
        parts,
        found,
        population,
        notes=notes,
        models=known["models"],
        power=power,
        templates=templates,
    )


def rescore(options: Options) -> bool:
    """Write a run's report anew, in --output_dir or in place; whether anything in it couldn't be asked."""
    folder = Path(str(options.run.rescore)).expanduser()
    found = stored_findings(folder, options.answers.metric, options.run.power)
    # left at its default, --output_dir means the run's own folder
    target = (
        folder
        if options.study.output_dir == type(options.study)().output_dir
        else Path(options.study.output_dir)
    )
    write_report(found, target)
    print((target / "report.md").read_text(encoding="utf-8"))
    return bool(found.notes.troubles)


def compare_runs(
    first: Path, second: Path, metric: str | None = None
) -> tuple[Comparison, str, dict[str, Any]]:
    """The headings of two runs on the rows that both asked → the first less the second, the figure, and what
    was compared.

    Raises:
        InputError: no run, no rows in common, figures of different kinds.
    """
    one, other = (stored_findings(folder, metric) for folder in (first, second))
    # a difference of two figures is none
    if one.metric != other.metric:
        raise InputError(f"{first} is headed by {one.metric}, {second} by {other.metric}; set --metric")
    a, b = _by_row(one, one.heading), _by_row(other, other.heading)
    # in the order of the first run
    rows = [key for key in a if key in b]
    if not rows:
        raise InputError(f"{first} and {second} have no rows in common: they are of other data")
    pair = [
        # both on the same rows, so that the test is paired
        outcome.measures[one.metric].of(np.array([places[key] for key in rows], dtype=int))
        for outcome, places in ((one.heading, a), (other.heading, b))
    ]
    told = {
        "first": one.heading.name,
        "second": other.heading.name,
        "rows": len(rows),
        # rows of the first and of the second, less those of both twice
        "only in one": len(a) + len(b) - 2 * len(rows),
        "first_value": pair[0].value,
        "second_value": pair[1].value,
    }
    return compare(pair[0], pair[1], draws(len(rows), 2000, 0)), one.metric, told


def _by_row(found: Findings, one: Outcome) -> dict[str, int]:
    """What a row is known by → its place in an outcome; equal rows by their order."""
    made: dict[str, int] = {}
    for place, row in enumerate(one.places):
        key, times = found.rows[row].identity, 0
        # equal rows are told apart by which one of them it is
        while f"{key}#{times}" in made:
            times += 1
        made[f"{key}#{times}"] = place
    return made
