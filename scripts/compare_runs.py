"""Compare two runs of prompts row by row: is the first better, or is it chance?

python scripts/compare_runs.py runs/new runs/old
python scripts/compare_runs.py runs/new runs/old --at_least -0.01 --metric accuracy

With --at_least, for tests in CI: status 1 where first less second is below it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from prompts.study.options import CompareRunsArguments

POSITIONAL = ("first", "second")


def main(options: CompareRunsArguments) -> None:
    from pathlib import Path

    from finetune.errors import InputError
    from finetune.reports.tables import with_interval
    from prompts.study.again import compare_runs

    if not options.first or not options.second:
        raise InputError("Two folders of runs are wanted: compare-runs FIRST SECOND")
    # paired by row, since both runs saw the same ones: the interval is far narrower than of two apart
    found, metric, told = compare_runs(Path(options.first), Path(options.second), options.metric)
    print(f"first:  {told['first']}: {metric} {told['first_value']:.3f}")
    print(f"second: {told['second']}: {metric} {told['second_value']:.3f}")
    print(f"{told['rows']} rows of both; {told['only in one']} of one alone")
    print(
        f"difference {with_interval(found.difference, (found.low, found.high))}, {found.test}: first is "
        f"{found.in_words()}"
    )
    if options.at_least is not None:
        held = found.difference >= options.at_least
        sure = found.low >= options.at_least
        # status 1 follows the figure alone; whether chance could be behind it is said in words
        word = (
            "held, and so is its whole interval"
            if sure
            else "held by the figure, not by its whole interval"
            if held
            else "missed"
        )
        print(f"at least {options.at_least:+.3f}: {word}")
        if not held:
            sys.exit(1)


if __name__ == "__main__":
    launch(main)
