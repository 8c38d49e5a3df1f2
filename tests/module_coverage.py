"""The report of a run under coverage, and an end with status 1 where a module is below 85 %: `make check`
runs it.

A module that can't reach it stands in `omit` of the coverage settings in pyproject.toml, with its reason.
"""

from __future__ import annotations

import io
import sys

import coverage

LEAST = 85.0


def main() -> None:
    measured = coverage.Coverage()
    measured.load()
    text = io.StringIO()
    # said again: processes that tests started elsewhere took these paths for ones below their own folder
    omit = measured.get_option("run:omit")
    total = measured.report(file=text, skip_empty=True, omit=omit)
    below = []
    for line in text.getvalue().splitlines():
        # between heading and sum: name, statements, misses, share
        words = line.split()
        if len(words) > 1 and words[0].endswith(".py") and float(words[-1].rstrip("%")) < LEAST:
            below.append(line)
    print(f"coverage: {total:.0f} %")
    if below:
        print(f"below {LEAST:.0f} %:", *below, sep="\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
