"""Classify rows of a `datasets` file by several adapters on one base, in one pass: a column for each adapter.

python scripts/apps/map_rows.py --base minilm --adapters mood=runs/films topic=runs/news --source rows.parquet
--target out.parquet
"""

from __future__ import annotations

import argparse


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--base", default="minilm")
    parser.add_argument("--adapters", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--source", required=True, help="a .parquet, .csv or .jsonl file")
    parser.add_argument("--target", required=True, help="a .parquet file")
    parser.add_argument("--column", default="text")
    parser.add_argument("--batch_size", type=int, default=32)
    options = parser.parse_args()
    import datasets

    from finetune.pool.pool import AdapterPool

    pool = AdapterPool(options.base)
    for entry in options.adapters:
        name, _, folder = entry.partition("=")
        pool.add(name, folder)
    names = list(pool.adapters())

    def labels(batch: dict[str, list]) -> dict[str, list]:
        texts = batch[options.column]
        # every text once for each adapter, all in one pass over the base
        answers = pool.classify(texts * len(names), [name for name in names for _ in texts], truncate=True)
        found = [answer["label"] for answer in answers]
        return {name: found[i * len(texts) : (i + 1) * len(texts)] for i, name in enumerate(names)}

    kind = {"parquet": "parquet", "csv": "csv", "jsonl": "json", "json": "json"}[
        options.source.rpartition(".")[2]
    ]
    rows = datasets.load_dataset(kind, data_files=options.source, split="train")
    # the pool lives here: rows go through it batch by batch, not through copies of it in other processes
    # a cached result would not know that an adapter's folder has changed
    rows = rows.map(labels, batched=True, batch_size=options.batch_size, load_from_cache_file=False)
    rows.to_parquet(options.target)
    # in pandas the same is: frame[name] = [a["label"] for a in pool.classify(list(frame["text"]), [name] *
    # len(frame))]


if __name__ == "__main__":
    main()
