"""Prompt scoring beside lm-evaluation-harness: same model, rows, prompts, type and tokens a pass, in one run; scores compared.

pip install lm-eval==0.4.13
python scripts/benchmarks/prompting.py --dataset_name ../shared/data/imdb --rows 48
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

CASES = ("zero", "few", "grid", "long")
WORDS = {"plain": ("bad", "good"), "strong": ("terrible", "great"), "named": ("negative", "positive")}
LONG = ("not worth watching", "very well made")
LINES = ("In summary, this film is", "All in all, it was", "My verdict: the film was")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", default="smollm2", help="the model both sides ask")
    parser.add_argument("--dataset_name", default="../shared/data/imdb", help="rows with a text and a label, 0 or 1")
    parser.add_argument("--rows", type=int, default=48, help="rows of about 200 tokens in each measurement")
    parser.add_argument(
        "--batch_size", type=int, default=8, help="rows of one pass; ours gets as many tokens as the peer's rows have"
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="types of the weights")
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=list(CASES),
        help="zero: one template; few: 4 fixed examples; grid: 3 templates, 3 verbalizers; long: labels of 3 tokens",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=2, help="rounds of both sides in turn; the best of each counts")
    parser.add_argument("--output_file", default="runs/benchmark_prompting.json", help="where the figures go")
    return parser.parse_args()


def main(ask: argparse.Namespace) -> None:
    from finetune.training.plan import keep_freed_memory

    keep_freed_memory()
    from finetune.reports.tables import markdown

    texts, shots = read_texts(ask)
    table = []
    for dtype in ask.dtypes:
        own, peer = load_both(ask, dtype)
        for case in ask.cases:
            requests = work(case, texts, shots)
            table.append({"work": case, "dtype": dtype, **measure(own, peer, requests, len(texts), ask.rounds)})
            print(json.dumps(table[-1]), flush=True)
    path = Path(ask.output_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"load": os.getloadavg(), "cores": os.cpu_count(), "figures": table}, indent=1), encoding="utf-8")
    print(markdown(table))


def read_texts(ask: argparse.Namespace) -> tuple[list[str], list[tuple[str, int]]]:
    """Texts of 180 to 240 tokens, and four shorter ones with their labels."""
    from finetune.data.sources import DataArguments, load_rows, sample
    from finetune.models.load import load_processor

    rows = sample(load_rows(DataArguments(dataset_name=ask.dataset_name), train=False).eval, 40 * ask.rows + 400, 0)
    tokenizer = load_processor(ask.model)
    sizes = [len(ids) for ids in tokenizer(rows["text"][:])["input_ids"]]
    fit = [text for text, size in zip(rows["text"][:], sizes, strict=True) if 180 <= size <= 240]
    short = [
        (text, label) for text, label, size in zip(rows["text"][:], rows["label"][:], sizes, strict=True) if 150 <= size < 180
    ]
    shots = [next(pair for pair in short[4 * i :] if pair[1] == i % 2) for i in range(4)]
    return fit[: ask.rows], shots


def work(case: str, texts: list[str], shots: list[tuple[str, int]]) -> list[tuple[str, tuple[str, ...]]]:
    """(context, answers) of one measurement, row by row."""
    words = [tuple(" " + word for word in pair) for pair in WORDS.values()]
    if case == "grid":
        return [(f"{text}\n{line}", pair) for text in texts for line in LINES for pair in words]
    answers = tuple(" " + word for word in LONG) if case == "long" else words[0]
    head = "".join(f"{text}\n{LINES[0]}{words[0][label]}\n\n" for text, label in shots) if case == "few" else ""
    return [(f"{head}{text}\n{LINES[0]}", answers) for text in texts]


def load_both(ask: argparse.Namespace, dtype: str) -> tuple[Any, Any]:
    from lm_eval.models.huggingface import HFLM

    from finetune.models.load import resolve
    from prompts.asked import ScoringArguments, load_scorer

    own = load_scorer(ask.model, ScoringArguments(dtype=dtype, batch_tokens=ask.batch_size * 256))
    folder, _ = resolve(ask.model)
    peer = HFLM(pretrained=folder, dtype=dtype, batch_size=ask.batch_size, device="cpu", add_bos_token=False)
    return own, peer


def measure(own: Any, peer: Any, work: list[tuple[str, tuple[str, ...]]], rows: int, rounds: int) -> dict[str, Any]:
    """Rows a second of both sides, their ratio, and the largest difference between their log-probabilities."""
    from lm_eval.api.instance import Instance

    from prompts.score import Request

    asked = [Request(context, answers) for context, answers in work]
    instances = [
        Instance(request_type="loglikelihood", doc={}, arguments=(context, answer), idx=i)
        for i, (context, answers) in enumerate(work)
        for answer in answers
    ]
    own(asked[:2])
    seconds: dict[str, list[float]] = {"own": [], "peer": []}
    for _ in range(rounds):
        began = time.perf_counter()
        ours = [float(tokens.sum()) for row in own(asked) for tokens in row]
        between = time.perf_counter()
        theirs = [score for score, _ in peer.loglikelihood(instances, disable_tqdm=True)]
        seconds["own"].append(between - began)
        seconds["peer"].append(time.perf_counter() - between)
    best = {side: min(values) for side, values in seconds.items()}
    return {
        "own, rows/s": round(rows / best["own"], 2),
        "peer, rows/s": round(rows / best["peer"], 2),
        "ratio": round(best["peer"] / best["own"], 2),
        "largest difference": float(f"{max(abs(a - b) for a, b in zip(ours, theirs, strict=True)):.2g}"),
    }


if __name__ == "__main__":
    main(options())
