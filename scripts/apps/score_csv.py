"""Classify a column of a CSV file: the same rows with two more columns, label and probability.

python scripts/apps/score_csv.py runs/films reviews.csv scored.csv --column text
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

ROWS = 1024  # read, classified and written at a time: memory stays the same for any file


def scored(rows: Iterator[dict[str, str]], classifier, column: str) -> Iterator[dict[str, str]]:
    """Rows with their label and probability; rows without text get neither."""
    while part := list(islice(rows, ROWS)):
        texts = [row[column] or "" for row in part]
        # rows without text go past the classifier and keep their place
        answers = iter(classifier([text for text in texts if text.strip()]))
        for row, text in zip(part, texts, strict=True):
            answer = next(answers) if text.strip() else {"label": "", "probability": ""}
            yield row | {"label": answer["label"], "probability": answer["probability"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("adapter", help="output folder of scripts/train.py")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--column", default="text")
    options = parser.parse_args()
    from finetune.adapters import load

    with options.source.open(encoding="utf-8", newline="") as source:
        reader = csv.DictReader(source)
        columns = list(reader.fieldnames or [])
        if options.column not in columns:
            sys.exit(
                f"No column '{options.column}' in {options.source}; it has {', '.join(columns)}. Set --column"
            )
        with options.target.open("w", encoding="utf-8", newline="") as target:
            writer = csv.DictWriter(target, [*columns, "label", "probability"])
            writer.writeheader()
            # loaded once the columns are known to be there
            writer.writerows(scored(reader, load(options.adapter), options.column))


if __name__ == "__main__":
    main()
