"""BLEU by length of the source, of several runs on the same rows: what a single vector between encoder and
decoder keeps of long texts.

  finetune train --config multi30k_seq2seq --save_predictions true --output_dir runs/with
  finetune train --config multi30k_seq2seq --config_overrides hidden_size=256,attention=none,merge=sum \
      --save_predictions true --output_dir runs/without
  python scripts/benchmarks/translation_lengths.py runs/with runs/without

Bahdanau et al. 2015, figure 2: without attention BLEU falls with the length. Quarters of the rows by words of
the source; intervals by sacrebleu's bootstrap over rows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from sacrebleu import BLEU

PARTS, SAMPLES = 4, 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", help="Folders with predictions.jsonl (--save_predictions true).")
    options = parser.parse_args()
    tables = {Path(run).name: rows_of(Path(run)) for run in options.runs}
    first = next(iter(tables.values()))
    # figures of other rows would not compare
    if any([row["text"] for row in rows] != [row["text"] for row in first] for rows in tables.values()):
        raise SystemExit("The runs were evaluated on different rows")
    words = np.array([len(row["text"].split()) for row in first])
    print(f"| words of the source | rows | {' | '.join(tables)} |")
    print(f"|---|---:|{'---:|' * len(tables)}")
    # stable, so that rows of one length are dealt out alike in every call
    for part in np.array_split(np.argsort(words, kind="stable"), PARTS):
        cells = [bleu([rows[place] for place in part]) for rows in tables.values()]
        print(f"| {words[part].min()}–{words[part].max()} | {len(part)} | {' | '.join(cells)} |")
    print(f"| all | {len(first)} | {' | '.join(bleu(rows) for rows in tables.values())} |")


def rows_of(run: Path) -> list[dict[str, str]]:
    lines = (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def bleu(rows: list[dict[str, str]]) -> str:
    texts, gold = [row["prediction"] for row in rows], [row["gold"] for row in rows]
    # rows are resampled: BLEU of a corpus is no mean of rows
    found = BLEU().corpus_score(texts, [gold], n_bootstrap=SAMPLES)
    return f"{found.score:.1f} (± {found._ci:.1f})"


if __name__ == "__main__":
    main()
