"""Do traces find what they should, and nothing else? A language model that was tuned with marked rows among
others, one that was tuned without, and controls of the second, whose p-values must be uniform.

  python scripts/benchmarks/traces.py --dataset_name ../shared/data/imdb

Controls ask the clean model for secrets that nobody planted: other keys of the watermark, other draws of the
canaries, other halves of rows that it hasn't seen. Uniformity is Kolmogorov's and Smirnov's test.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parents[1]
AT_MOST = 800  # windows that a control of the watermark looks at


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--dataset_name", default="reviews", help="Texts.")
    parser.add_argument("--model_name_or_path", default="smollm2", help="A language model.")
    parser.add_argument("--rows", type=int, default=300, help="Training rows, marked ones among them.")
    parser.add_argument("--marked", type=float, default=0.2, help="Their share.")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=1e-4, help="Learning rate.")
    parser.add_argument("--tokens", type=int, default=64, help="Of a text.")
    parser.add_argument("--controls", type=int, default=50)
    parser.add_argument("--parts", nargs="+", default=("greenlist", "canaries", "inference"))
    parser.add_argument("--output_dir", default="runs/traces", help="A new folder for rows and runs.")
    options = parser.parse_args()
    folder = Path(options.output_dir)
    own, others = texts(options)
    # marked rows take the place of others: all runs learn from as many rows
    count = round(options.rows * options.marked)
    clean = own[: options.rows]
    print("| trace | tuned with it: p | tuned without: p | controls: p < 0.05 | uniform: p |")
    print("|---|---:|---:|---:|---:|")
    # one model is the clean one of all traces
    without = tuned(clean, folder / "clean", options)
    for how in options.parts:
        if how == "inference":
            # the rows themselves are the trace
            found = inferred(without, clean, others, options)
        else:
            marked = mark(how, clean, count, folder / how, options)
            suspect = tuned(clean[: options.rows - count] + marked, folder / f"{how}_run", options)
            found = (
                ask(suspect, folder / how),
                ask(without, folder / how),
                controls(how, without, folder, options),
            )
        print(line(how, *found), flush=True)


def texts(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The first words of rows to train on, and of others of the same source."""
    from finetune.data.sources import load_rows
    from finetune.provenance.marking import text_column
    from finetune.provenance.options import TraceRowsArguments

    data = TraceRowsArguments(options.dataset_name)
    rows = load_rows(data).train
    column = text_column(rows, data)
    # one shuffle of one file: both parts are of one source and one time
    chosen = rows.shuffle(seed=0).select(range(2 * options.rows))[column]
    short = [" ".join(text.split()[: options.tokens * 2 // 3]) for text in chosen]
    return short[: options.rows], short[options.rows :]


def mark(how: str, own: list[str], count: int, folder: Path, options: argparse.Namespace) -> list[str]:
    source = folder.with_suffix(".source.jsonl")
    written(source, own)
    # a key that is told makes the same rows again
    run(
        "trace.py", "mark", "--dataset_name", source, "--how", how, "--marked_rows", count, "--key", 1234567,
        "--writer", options.model_name_or_path, "--max_new_tokens", options.tokens, "--output_dir", folder,
    )  # fmt: skip
    return [json.loads(row)["text"] for row in (folder / "rows.jsonl").read_text().splitlines()]


def tuned(rows: list[str], folder: Path, options: argparse.Namespace) -> Path:
    """The model after pretraining goes on with these texts."""
    # rows, no blocks: a window of the watermark must not go over two texts
    source = folder.with_suffix(".jsonl")
    written(source, rows)
    run(
        "pretrain.py", "--objective", "clm", "--model_name_or_path", options.model_name_or_path,
        "--dataset_name", source, "--eval_split", "train[:8]", "--layout", "rows", "--max_length",
        options.tokens, "--num_train_epochs", options.epochs, "--learning_rate", options.rate,
        "--save_strategy", "no", "--eval_strategy", "no", "--per_device_train_batch_size", 8,
        "--output_dir", folder,
    )  # fmt: skip
    return folder


def written(file: Path, rows: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))


def run(script: str, *given: Any) -> None:
    # a process each: seeds, caches and the allocator begin alike
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / script), *map(str, given)], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)


def ask(model: Path, folder: Path) -> float:
    """p of the trace in a folder."""
    from finetune.provenance.options import TraceArguments, TraceRowsArguments
    from finetune.provenance.testing import look_for

    told = TraceArguments(action="test", trace=str(folder), model=str(model))
    return look_for(told, TraceRowsArguments())["p"]


def controls(how: str, model: Path, folder: Path, options: argparse.Namespace) -> list[float]:
    """p of secrets that nobody planted, asked of a model that was read once."""
    import numpy as np

    from finetune.provenance import asking
    from finetune.provenance.canaries import CANDIDATES, draw_canaries, rank_test
    from finetune.provenance.watermark import new_grams, radioactivity, read_secret, watermark_of

    # read once: the controls differ in what is asked, not in the model
    processor, network = asking.suspect(str(model))
    secret = read_secret(folder / how, "secret.json")
    if how == "canaries":
        own = [json.loads(row)["text"] for row in (folder / "clean.jsonl").read_text().splitlines()]
        few = 5  # canaries of a control: 20 candidates of each are read, 5,000 texts in all
        drawn = draw_canaries(own, few * options.controls, 99)
        asked = [text for one in drawn for text in one["texts"]]
        read = asking.read_texts(processor, network, asked, options.tokens, 32)
        costs = {place: nats.mean() for place, _, _, nats in read}

        table = np.array([costs[place] for place in range(len(asked))]).reshape(-1, few, CANDIDATES)
        return [rank_test(part, seed)["p"] for seed, part in enumerate(table)]
    mark = watermark_of(secret)
    marked = [json.loads(row)["text"] for row in (folder / how / "rows.jsonl").read_text().splitlines()]
    # the marked texts themselves: for another key they are as good as any
    seen: set[tuple[int, ...]] = set()
    grams: list[tuple[int, ...]] = []
    for _, ids, likeliest, _ in asking.read_texts(processor, network, marked, 128):
        grams += new_grams(ids, likeliest, mark.width, seen)
    # a part of them: each key asks for a permutation of the vocabulary for each
    grams = [gram for gram in grams if max(gram) < mark.vocabulary][:AT_MOST]
    return [
        radioactivity(replace(mark, key=key), grams)["p"] for key in range(10**6, 10**6 + options.controls)
    ]


def inferred(
    model: Path, own: list[str], others: list[str], options: argparse.Namespace
) -> tuple[float, float, list[float]]:
    """p of the model's own rows against others; of two halves of the others; and of many such halves."""
    import numpy as np

    from finetune.provenance import asking
    from finetune.provenance.dataset_inference import infer, measured_texts

    processor, network = asking.suspect(str(model))
    tables = []
    for rows in (own, others):
        read = asking.read_texts(processor, network, rows, options.tokens)
        tables.append(measured_texts([(nats, rows[place]) for place, _, _, nats in read]))
    # rows that the model hasn't seen, cut in two again and again: nothing to find
    halves = []
    for seed in range(options.controls + 1):
        mixed = np.random.default_rng(seed).permutation(tables[1])
        halves.append(infer(*np.array_split(mixed, 2), seed)["p"])
    return infer(*tables)["p"], halves[0], halves[1:]


def line(how: str, with_it: float, without: float, clean: list[float]) -> str:
    from scipy.stats import kstest

    few = sum(p < 0.05 for p in clean)
    uniform = kstest(clean, "uniform").pvalue
    return f"| {how} | {with_it:.2g} | {without:.2g} | {few} of {len(clean)} | {uniform:.2g} |"


if __name__ == "__main__":
    main()
