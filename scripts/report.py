"""The page of a run, made from its folder alone; of several runs, side by side.

python scripts/report.py runs/x
python scripts/report.py runs/x --tables true
python scripts/report.py runs/x runs/y --output_file both.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.reports.page import ReportArguments

POSITIONAL = ("runs",)  # finetune report FOLDER


def main(report: ReportArguments) -> None:
    from pathlib import Path

    from finetune.errors import InputError
    from finetune.reports.page import REPORT, page_of, write_tables
    from finetune.reports.run_folder import read_run

    if not report.runs:
        raise InputError("No run; wanted `finetune report FOLDER`, the --output_dir of a run, or several")
    # a page of one run belongs into its folder; of several into none of them
    if report.output_file is None and len(report.runs) > 1:
        raise InputError(f"{len(report.runs)} runs on one page; set --output_file to say where it goes")
    runs = [read_run(folder) for folder in report.runs]
    path = Path(report.output_file) if report.output_file else runs[0].path / REPORT
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page_of(runs), encoding="utf-8")
    print(path)
    for run in runs if report.tables else ():
        folder = path.parent / "tables" / (run.path.name if len(runs) > 1 else "")
        print(f"{folder}: {len(write_tables(run, folder))} files, each table as CSV and LaTeX")


if __name__ == "__main__":
    launch(main)
