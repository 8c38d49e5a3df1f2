"""A run judged again from what it kept, without asking any model; and two runs compared row by row. Knows
files."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from finetune.artefacts.files import write_atomically
from finetune.errors import InputError
from finetune.metrics.bootstrap import draws
from finetune.metrics.significance import Comparison, compare
from finetune.reports.page import leave_behind
from prompts.study.archive import read_study
from prompts.study.asking import Notes
from prompts.study.findings import Findings, Population
from prompts.study.outcomes import Outcome, outcomes
from prompts.study.prompts import named_entry
from prompts.study.report import write_report
from prompts.study.run import ENTRIES, Options, keep_entry
from prompts.study.study import Trial, together
from prompts.study.unused import check_rescored
from prompts.templates.entries import Entry
from prompts.templates.prompt import split_name
from prompts.templates.reading import entry_file
from prompts.templates.template import Template

logger = logging.getLogger(__name__)


def stored_findings(
    folder: Path, metric: str | None = None, power: float | None = None, *, as_kept: bool = False
) -> Findings:
    """A run's findings, made anew from its folder alone, by its entry as it stands now where that is there.

    Args:
        as_kept: by the entry as the run had it, so that figures are those of its report.

    Raises:
        InputError: no run there, or answers that the figure can't be had of.
    """
    arguments = _arguments_of(folder)
    if not arguments.is_file() or not (folder / "findings.json").is_file():
        raise InputError(f"{folder} is no run of prompts: it lacks arguments.yaml or findings.json")
    given = yaml.safe_load(arguments.read_text(encoding="utf-8"))
    known = json.loads((folder / "findings.json").read_text(encoding="utf-8"))
    entry = _entry_of((folder, arguments.parent), given["prompts"], as_kept)
    kind, parts, labels, answers = read_study(folder, entry)
    # scores of labels and choices were kept for one figure; texts can be judged by another
    heading = metric or (entry.metric_of(kind) if kind == "text" else known["metric"])
    # type: ignore[call-arg]
    # the metric is part of a cell of texts, which computes it
    answers = [replace(one, metric=heading) for one in answers] if kind == "text" else answers
    # a filter that takes out something else now makes answers that the judge never saw
    if heading == "judge" and any(
        how not in one.judged.get("unseen", {}) for one in answers for how in one.hows
    ):
        raise InputError(
            f"{folder}: the judge didn't see these answers, which the entry takes out otherwise now; run it "
            "again (what was asked is in its cache), or set --metric"
        )
    notes = Notes()
    # kept with their sort, since a run with troubles ends with status 1 again
    for one in known["notes"]:
        (notes.expect if one["ends_well"] else notes.trouble)(one["model"], one["prompt"], one["what"])
    found = outcomes(answers, parts, labels, heading)
    combined = {}
    if kind == "labels":
        for model in dict.fromkeys(one.cell.model for one in answers):
            combined[model] = together([one for one in answers if one.cell.model == model], parts)
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
        ensembles=combined,
        notes=notes,
        models=known["models"],
        judge=known.get("judge", ""),
        power=power,
        trial=Trial(**known["trial"]) if known.get("trial") else None,
        templates=templates,
    )


def _arguments_of(folder: Path) -> Path:
    own = folder / "arguments.yaml"
    # an entry of several kinds has a folder for each below the run's
    return own if own.is_file() else folder.parent / own.name


def _entry_of(folders: Sequence[Path], names: list[str], as_kept: bool) -> Entry:
    """The entry that a run asked, as it is now or as the run kept it; the other where one isn't there.

    Raises:
        InputError: neither is there.
    """
    file = entry_file(split_name(names[0])[0])
    kept = next((own for folder in folders if (own := folder / ENTRIES / file.name).is_file()), None)
    if kept and (as_kept or not file.is_file()):
        return named_entry([str(kept)])
    return named_entry(names)


def rescore(options: Options, *others: Any) -> bool:
    """Write a run's report anew, in --output_dir or in place; whether anything in it couldn't be asked.

    Args:
        others: further groups of options, of which none is read here.

    Raises:
        InputError: no run, or options that are not read.
    """
    folder = Path(str(options.run.rescore)).expanduser()
    # both look at rows as templates ask them, and here nothing is asked
    for name, given in (("show_rows", options.run.show_rows), ("check", options.study.check)):
        if given:
            raise InputError(
                f"--rescore judges the answers that {folder} holds and asks none of its rows; --{name} has "
                "nothing to show. Leave one out"
            )
    check_rescored([*vars(options).values(), *others], str(folder))
    found = stored_findings(folder, options.answers.metric, options.run.power)
    # left at its default, --output_dir means the run's own folder
    target = (
        folder
        if options.study.output_dir == type(options.study)().output_dir
        else Path(options.study.output_dir)
    )
    write_report(found, target)
    arguments = _arguments_of(folder)
    # a run of its own, which can be judged again and compared
    if target != folder:
        write_atomically(target / arguments.name, arguments.read_text(encoding="utf-8"))
    keep_entry(target, yaml.safe_load(arguments.read_text(encoding="utf-8"))["prompts"], arguments.parent)
    print((target / "report.md").read_text(encoding="utf-8"))
    leave_behind(target, card=False)
    return bool(found.notes.troubles)


def compare_runs(
    first: Path, second: Path, metric: str | None = None
) -> tuple[Comparison, str, dict[str, Any]]:
    """The headings of two runs on the rows that both asked → the first less the second, the figure, and what
    was compared.

    Raises:
        InputError: no run, no rows in common, figures of different kinds.
    """
    one, other = (stored_findings(folder, metric, as_kept=True) for folder in (first, second))
    for folder, found in ((first, one), (second, other)):
        # kept by the user's word then, and no fair comparison with a model that has not seen them
        if found.population.trained_on:
            logger.warning(
                "%s asks about %d rows that a model of its own was trained on (--keep_trained_rows)",
                folder, found.population.trained_on,
            )  # fmt: skip
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
