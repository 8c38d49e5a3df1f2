"""Runs → one self-contained HTML page, readable on a telephone, light and dark. Knows sections;
fetches nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from finetune.reports.blocks import Section, Table, is_long, is_picture
from finetune.reports.card import CARD, write_card
from finetune.reports.following import next_commands
from finetune.reports.run_folder import RunFolder, read_run
from finetune.reports.sections import headline, sections_of
from finetune.reports.tables import comma_separated, latex

logger = logging.getLogger(__name__)
REPORT = "report.html"


@dataclass
class ReportArguments:
    """Which runs, and where their page goes."""

    LEADING: ClassVar[str] = "runs"
    runs: list[str] = field(
        default_factory=list, metadata={"help": "Folders of runs; several stand side by side on one page."}
    )
    output_file: str | None = field(
        default=None, metadata={"help": "The page (default: report.html in the folder of a single run)."}
    )
    tables: bool = field(
        default=False, metadata={"help": "Write each table beside the page too, as CSV and as LaTeX."}
    )


def page_of(runs: Sequence[RunFolder], refresh: int | None = None) -> str:
    """The page of one run, or of several beside each other.

    Args:
        refresh: seconds after which a browser asks again, for a run that goes on.
    """
    told = [{"title": run.title, "headline": headline(run), "sections": sections_of(run)} for run in runs]
    title = told[0]["title"] if len(told) == 1 else f"{len(told)} runs side by side"
    return _render(title=title, runs=told, refresh=refresh)


def sections_page(title: str, headline: str, sections: Sequence[Section]) -> str:
    """A page of sections that belong to no single run: a comparison, an audit, a look inside a model."""
    return _render(title=title, runs=[{"title": title, "headline": headline, "sections": list(sections)}])


def list_page(rows: Sequence[dict[str, Any]], title: str, refresh: int | None = None) -> str:
    """A page that lists runs: rows of {"name": what asks for it, "link": address, "cells":
    {heading: text}}."""
    return _render(title=title, list=list(rows), refresh=refresh)


def write_page(folder: str | Path) -> Path:
    """`report.html` of a run, in its own folder.

    Raises:
        InputError: a folder that no script of this project wrote.
    """
    return _write_page(read_run(folder))


def _write_page(run: RunFolder) -> Path:
    path = run.path / REPORT
    path.write_text(page_of([run]), encoding="utf-8")
    return path


def write_tables(run: RunFolder, folder: Path) -> list[Path]:
    """Each table of a run's page as `figures_1.csv` and `figures_1.tex`, named after its section."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for section in sections_of(run):
        name = "_".join("".join(c if c.isalnum() else " " for c in section.title.lower()).split())
        tables = [block for block in section.blocks if isinstance(block, Table)]
        for number, table in enumerate(tables, 1):
            for ending, text in (
                ("csv", comma_separated(table.raw or table.rows)),
                ("tex", latex(table.rows) + "\n"),
            ):
                written.append(folder / f"{name}_{number}.{ending}")
                written[-1].write_text(text, encoding="utf-8")
    return written


def leave_behind(folder: str | Path, card: bool = True) -> None:
    """Page and card of a run that has just finished, and what to do next. A card of the user's own stays as
    it is.

    Neither is a reason to lose a run: what goes wrong here is logged, and `finetune report` makes the page
    again.
    """
    try:
        run = read_run(folder)
        page = _write_page(run)
        # the user may have written into it since
        if card and not (run.path / CARD).is_file():
            write_card(run)
        logger.warning("finished: %s%s", page, f", model card in {CARD}" if card else "")
        for step in next_commands(run):
            logger.warning("next: %s", step)
    except Exception:  # whatever it is, the weights are saved and the run is finished
        logger.exception("The run is finished, but its page could not be made; `finetune report` tries again")


@cache  # a program that makes many runs compiles the page once
def _template() -> Template:
    # autoescape holds for labels and texts of any origin: what a data set says is shown, never run
    environment = Environment(
        # beside this file, wherever the package lies
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        # a name that is misspelt in the template is an error and no empty page
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "csv": comma_separated,
        "latex": latex,
        "is_picture": is_picture,
        "is_long": is_long,
        "breakable": breakable,
    }
    return environment.get_template("page.html")


def breakable(cell: Any) -> Markup:
    """A name that may be broken behind its underscores and dashes, and nowhere within a word."""
    # escaped first: the sign for a break is the only markup in it
    return Markup(re.sub(r"([_/·-])(?=\w)", r"\1<wbr>", str(escape(cell))))


def _render(**values: Any) -> str:
    # StrictUndefined wants every name, and each page has others
    defaults: dict[str, Any] = {"runs": [], "list": [], "refresh": None}
    return _template().render(defaults | values)
