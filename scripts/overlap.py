"""How much of an evaluation set stands in training data: equal rows, near ones, passages of 13 words.

python scripts/overlap.py my_training.jsonl my_test.jsonl
python scripts/overlap.py imdb --second_split test --output_file found.jsonl --at_most 0.01

With --at_most, for tests in CI: status 1 where a larger share of the rows is found.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.provenance.compared import OverlapArguments

POSITIONAL = ("first", "second")


def main(options: OverlapArguments) -> None:
    import json
    from pathlib import Path

    from finetune.artefacts.files import write_atomically
    from finetune.provenance.compared import compare_sets

    counts, entries = compare_sets(options)
    rows = counts["rows"]
    print(f"{rows} rows of the second set; in the first stand")
    for name, said in (
        ("exact", "as a whole, but for case and signs"),
        ("near", f"nearly: at least {options.near:g} of their runs of 5 words in common, the equal ones too"),
        ("passage", "in part: 13 words in a row or more"),
        ("found", "any of these"),
    ):
        print(f"  {counts[name]:>7} ({counts[name] / rows:.2%}) {said}")
    # enough to see of what kind they are; --output_file has all
    for entry in entries[:5]:
        print(f"{entry['row']} {entry['kind']} {entry['in']}: {entry['text'][:80]!r}")
    if options.output_file:
        lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        write_atomically(Path(options.output_file), lines)
        print(options.output_file)
    # status 1, for tests in CI; the findings are printed and written before
    if options.at_most is not None and counts["found"] > options.at_most * rows:
        print(f"at most {options.at_most:.2%} may be found: missed")
        sys.exit(1)


if __name__ == "__main__":
    launch(main)
