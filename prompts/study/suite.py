"""Many studies in one run, each with its own entry, data and options; one that fails ends none of the others.

Knows the steps of one study; knows no models.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState

from finetune.artefacts.checkpoints import write_atomically
from finetune.data.places import short_names
from finetune.data.sources import ColumnArguments
from finetune.errors import InputError
from finetune.reports.blocks import Section, Table, Words
from finetune.reports.page import REPORT, leave_behind, sections_page
from finetune.reports.tables import markdown, with_interval
from prompts.study.check import check
from prompts.study.findings import Findings
from prompts.study.instruct import InstructArguments, instructed
from prompts.study.prompts import named_entry
from prompts.study.run import Options, keep_entry, keep_options, study_all
from prompts.study.shown import show_asked
from prompts.study.study import read_parts
from prompts.study.tune import TuneArguments, tune_first
from prompts.study.unused import check_answers, check_used

logger = logging.getLogger(__name__)


def study_once(
    options: Options, data: ColumnArguments, tuning: TuneArguments, instruct: InstructArguments
) -> bool:
    """One study, as the script runs it, or one for each of several evaluation sets in a folder of its own;
    whether anything in it couldn't be done."""
    sets = data.eval_dataset_name or []
    if len(sets) > 1:
        groups = _groups(options, data, tuning, instruct)
        each = [
            # a folder below the run's, whose name is no path of its own
            (name.replace("/", "_"), groups | {"data": replace(data, eval_dataset_name=[one])})
            for name, one in zip(short_names(sets), sets, strict=True)
        ]
        return _run_each(options, each, f"{len(sets)} evaluation sets")
    found = one_study(options, data, tuning, instruct)
    _leave_pages(found, Path(options.study.output_dir))
    return any(one.notes.troubles for one in found)


def _leave_pages(found: Sequence[Findings], folder: Path) -> None:
    """`report.html` beside each report: one process writes, as it wrote what the page is made of."""
    if PartialState().is_main_process:
        for one in found:
            leave_behind(folder / (one.kind if len(found) > 1 else ""), card=False)


def one_study(
    options: Options, data: ColumnArguments, tuning: TuneArguments, instruct: InstructArguments
) -> list[Findings]:
    """Rows, then answers, then a report in the study's folder.

    Raises:
        InputError: options that don't fit, no rows, nothing that could be asked.
    """
    study, folder = options.study, Path(options.study.output_dir)
    # before anything is read or loaded
    check_answers(options.answers)
    check_used(named_entry(study.prompts), study, options.answers, options.endpoint, (tuning, instruct))
    loaded = read_parts(study, data, tuning, options.answers)
    shown = max(options.run.show_rows, 1 if study.check else 0)
    if shown:
        show_asked(loaded, study.prompts, shown)
    if study.check:
        check(loaded, study, options.scoring)
        return []
    if PartialState().is_main_process:
        keep_entry(folder, study.prompts)
        # every option as it stands now, before an adapter joins the models
        keep_options(
            folder,
            study,
            data,
            options.scoring,
            options.answers,
            options.endpoint,
            tuning,
            instruct,
            options.run,
        )
    if tuning.tune:
        if not loaded.prompts:
            raise InputError(f"'{loaded.entry.name}' weighs no labels, which --tune trains on")
        adapter = tune_first(
            loaded.prompts[0], loaded.parts.tuning, study.models[0], folder / f"tuned_{tuning.tune}", tuning
        )
        options = replace(options, study=replace(study, models=[*study.models, adapter]))
    if instruct.instruct:
        loaded = instructed(loaded, options, instruct)
    return study_all(loaded, options)


def run_suite(
    options: Options, data: ColumnArguments, tuning: TuneArguments, instruct: InstructArguments
) -> bool:
    """Every run of a suite file in a folder of its own, and a table of them; whether anything couldn't be
    done.

    Raises:
        InputError: no such file, or an unknown option in it.
    """
    path = Path(str(options.run.suite)).expanduser()
    runs = read_suite(path)
    groups = _groups(options, data, tuning, instruct)
    # all before the first is run: a wrong option of the last is said at once
    made = [overridden(groups, given, path) for given in runs]
    names = [
        str(given.get("name") or Path(str(own["study"].prompts[0])).stem.replace("/", "_"))
        for given, own in zip(runs, made, strict=True)
    ]
    return _run_each(options, list(zip(names, made, strict=True)), f"{path.name}: {len(runs)} runs")


def _groups(
    options: Options, data: ColumnArguments, tuning: TuneArguments, instruct: InstructArguments
) -> dict[str, Any]:
    """All options of a run by their group."""
    return {
        "study": options.study,
        "scoring": options.scoring,
        "answers": options.answers,
        "endpoint": options.endpoint,
        "data": data,
        "tuning": tuning,
        "instruct": instruct,
    }


def _run_each(options: Options, runs: Sequence[tuple[str, dict[str, Any]]], title: str) -> bool:
    """Runs by name, each with its groups of options, in folders of their own, and a table of them; whether
    anything couldn't be done."""
    table: list[dict[str, Any]] = []
    pages: list[str] = []
    failed = False
    for number, (name, own) in enumerate(runs):
        # numbered, since two runs may be of one entry
        folder = Path(options.study.output_dir) / f"{number + 1:02d}_{name}"
        own["study"] = replace(own["study"], output_dir=str(folder))
        one = Options(
            own["study"], own["scoring"], own["answers"], own["endpoint"], replace(options.run, suite=None)
        )
        try:
            found = one_study(one, own["data"], own["tuning"], own["instruct"])
            _leave_pages(found, folder)
            failed |= any(part.notes.troubles for part in found)
            table += [_row(name, part, folder) for part in found]
            pages += [_page_of(part, found, folder) for part in found]
        # the others go on; the table says what failed
        except (InputError, OSError) as error:
            logger.error("%s: %s", name, error)
            failed = True
            table.append(
                {
                    "run": name,
                    "rows": "",
                    "metric": "",
                    "figure": "",
                    "prompt": f"**failed**: {str(error)[:300]}",
                    "folder": folder.name,
                }
            )
            pages.append("")
    # one process writes
    if PartialState().is_main_process and table:
        above = Path(options.study.output_dir)
        above.mkdir(parents=True, exist_ok=True)
        report = f"# {title}\n\n{markdown(table)}\n"
        write_atomically(above / "report.md", report)
        write_atomically(above / REPORT, _suite_page(title, table, pages))
        print(report)
    return failed


def _page_of(part: Findings, found: Sequence[Findings], folder: Path) -> str:
    """Where a run's own page lies, from the suite's folder (as `_leave_pages` leaves it)."""
    return "/".join([folder.name, *([part.kind] if len(found) > 1 else []), REPORT])


def _suite_page(title: str, table: Sequence[dict[str, Any]], pages: Sequence[str]) -> str:
    """HTML: the table, each run's name a link to its own page."""
    # the sign of a failure is Markdown's
    plain = [{key: str(value).replace("**", "") for key, value in row.items()} for row in table]
    lost = sum(not page for page in pages)
    words = (
        f"{lost} of {len(pages)} failed: why stands beside each." if lost else "Each name leads to its page."
    )
    blocks: list[Any] = [Words(words, warns=bool(lost)), Table(plain, links=list(pages))]
    return sections_page(title, "", [Section("Runs", blocks)])


def _row(name: str, found: Findings, folder: Path) -> dict[str, Any]:
    line = found.line_of(found.heading)
    bounds = (line[f"{found.metric}_low"], line[f"{found.metric}_high"])
    troubles = f" ({len(found.notes.troubles)} troubles)" if found.notes.troubles else ""
    return {
        "run": name,
        # those that its figure is of: some may not have been asked
        "rows": line["rows"],
        "metric": found.metric,
        "figure": with_interval(line[found.metric], bounds),
        "prompt": found.heading.name + troubles,
        "folder": folder.name,
    }


def read_suite(path: Path) -> list[dict[str, Any]]:
    """The runs that a suite file lists.

    Raises:
        InputError: it can't be read, or lists none.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"Cannot read {path}: {error}. Set --suite") from error
    # a list, or a mapping with nothing but one
    runs = content.get("runs") if isinstance(content, dict) and set(content) == {"runs"} else content
    if not isinstance(runs, list) or not runs or not all(isinstance(run, dict) for run in runs):
        raise InputError(
            f"{path}: wanted a list of runs, each a mapping of options as `prompts: [topic]`. Set --suite"
        )
    return runs


def overridden(groups: dict[str, Any], given: dict[str, Any], path: Path) -> dict[str, Any]:
    """The options of a run: those of the command line, with what the suite says of it.

    Raises:
        InputError: an option that no group has, or that a run of a suite can't have.
    """
    made = dict(groups)
    for key, value in given.items():
        if key == "name":
            continue
        owner = next((name for name, group in groups.items() if key in {f.name for f in fields(group)}), None)
        # folders are the suite's own to give
        if owner is None or key in ("output_dir", "check"):
            raise InputError(f"{path}: unknown option '{key}' of a run. --help lists the options")
        was = vars(groups[owner])[key]
        # one value stands for a list of one
        if isinstance(was, list) and not isinstance(value, list):
            value = [value]
        if isinstance(value, list):
            # YAML makes numbers and true of names that look so
            value = [str(part) if key in ("prompts", "models", "columns") else part for part in value]
        if (
            was is not None
            and value is not None
            # a whole number is a float that was written shortly
            and type(value) is not type(was)
            and not (isinstance(was, float) and isinstance(value, int))
        ):
            raise InputError(f"{path}: `{key}` holds {value!r}; wanted a value as {was!r}")
        made[owner] = replace(made[owner], **{key: value})
    return made
