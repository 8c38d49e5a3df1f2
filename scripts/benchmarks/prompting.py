"""Prompt scoring beside lm-evaluation-harness: same model, rows, prompts, type and tokens a pass, in one run;
scores compared, and the tokens that went through either's model counted.

  pip install lm-eval==0.4.13
  python scripts/benchmarks/prompting.py --dataset_name ../shared/data/imdb --rows 48

Each side works in a process of its own, in turn, as its own command would set it up: ours keeps freed memory
(mallopt), the peer runs as it comes. Both sort rows by length. Seconds are those of scoring, after a warm-up,
without loading.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIDES = ("own", "peer")
CASES = ("zero", "few", "grid", "long", "choices")
WORDS = {"plain": ("bad", "good"), "strong": ("terrible", "great"), "named": ("negative", "positive")}
# several tokens an answer: what a shared prompt saves grows with them
LONG = ("not worth watching", "very well made")
LINES = ("In summary, this film is", "All in all, it was", "My verdict: the film was")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", default="smollm2", help="the model both sides ask")
    parser.add_argument(
        "--dataset_name", default="../shared/data/imdb", help="rows with a text and a label, 0 or 1"
    )
    parser.add_argument("--rows", type=int, default=48, help="rows of about 200 tokens in each measurement")
    parser.add_argument(
        "--batch_size",
        type=int,
        default=8,
        help="rows of one pass; ours gets as many tokens as the peer's rows have",
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="types of the weights")
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=list(CASES),
        help="zero: one template; few: 4 fixed examples; grid: 3 templates, 3 verbalizers; long: labels of "
        "3 tokens; "
        "choices: four texts of each row's own, as ARC and HellaSwag have them",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=int, default=2, help="rounds of both sides in turn; the best of each counts"
    )
    parser.add_argument(
        "--output_file", type=Path, default=Path("runs/benchmark_prompting.json"), help="where the figures go"
    )
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--work_file", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main(ask: argparse.Namespace) -> None:
    from finetune.reports.tables import markdown

    if ask.side:
        ask.output_file.write_text(json.dumps(run_side(ask)), encoding="utf-8")
        return
    texts, shots = read_texts(ask)
    table = []
    with tempfile.TemporaryDirectory() as folder:
        ask.work_file = Path(folder) / "work.json"
        ask.work_file.write_text(
            json.dumps({case: work(case, texts, shots) for case in ask.cases}), encoding="utf-8"
        )
        for dtype in ask.dtypes:
            # by turns, so that a machine that slows down slows both
            rounds = [
                {side: in_own_process(ask, side, dtype, Path(folder) / f"{side}.json") for side in SIDES}
                for _ in range(ask.rounds)
            ]
            for case in ask.cases:
                table.append({"work": case, "dtype": dtype, **compared(rounds, case, len(texts))})
                print(json.dumps(table[-1]), flush=True)
    path = ask.output_file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"load": os.getloadavg(), "cores": os.cpu_count(), "figures": table}, indent=1),
        encoding="utf-8",
    )
    print(markdown(table))


def in_own_process(ask: argparse.Namespace, side: str, dtype: str, output: Path) -> dict[str, Any]:
    """Seconds and scores of one side on all work."""
    command = [
        sys.executable,
        __file__,
        "--model",
        ask.model,
        "--batch_size",
        str(ask.batch_size),
        "--side",
        side,
    ]
    command += ["--dtypes", dtype, "--work_file", str(ask.work_file), "--output_file", str(output)]
    # figures go through a file: the peer's libraries print what they like
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads(output.read_text(encoding="utf-8"))


def run_side(ask: argparse.Namespace) -> dict[str, Any]:
    """What the child process does: case → seconds and log-probabilities, in the order of the work."""
    tasks = json.loads(ask.work_file.read_text(encoding="utf-8"))
    score, network = load_own(ask) if ask.side == "own" else load_peer(ask)
    tokens: list[int] = []  # of each pass, padding included
    network.get_input_embeddings().register_forward_pre_hook(lambda _, ids: tokens.append(ids[0].numel()))
    # a warm-up of two, on each side alike
    score(next(iter(tasks.values()))[:2])
    found = {}
    for case, asked in tasks.items():
        tokens.clear()
        began = time.perf_counter()
        scores = score(asked)
        found[case] = {"seconds": time.perf_counter() - began, "scores": scores, "tokens": sum(tokens)}
    return found


def compared(rounds: list[dict[str, Any]], case: str, rows: int) -> dict[str, Any]:
    """Rows a second of both sides (the best round of each), their ratio, the largest difference between
    log-probabilities.
    """
    # the fastest round: others on the machine only ever slow one down
    best = {side: min(one[side][case]["seconds"] for one in rounds) for side in SIDES}
    pairs = zip(*(rounds[0][side][case]["scores"] for side in SIDES), strict=True)
    return {
        "own, rows/s": round(rows / best["own"], 2),
        "peer, rows/s": round(rows / best["peer"], 2),
        "ratio": round(best["peer"] / best["own"], 2),
        **{f"{side}, tokens": rounds[0][side][case]["tokens"] for side in SIDES},
        "largest difference": float(f"{max(abs(a - b) for a, b in pairs):.2g}"),
    }


def read_texts(ask: argparse.Namespace) -> tuple[list[str], list[tuple[str, int]]]:
    """Texts of 180 to 240 tokens, and four shorter ones with their labels."""
    from finetune.data.sources import DataArguments, load_rows, sample
    from finetune.models.load import load_processor

    # more than are measured, since only some have the wanted length
    rows = sample(
        load_rows(DataArguments(dataset_name=ask.dataset_name), train=False).eval, 40 * ask.rows + 400, 0
    )
    tokenizer = load_processor(ask.model)
    sizes = [len(ids) for ids in tokenizer(rows["text"][:])["input_ids"]]
    # like lengths: the figure is of scoring, not of how a side sorts and pads
    fit = [text for text, size in zip(rows["text"][:], sizes, strict=True) if 180 <= size <= 240]
    # examples shorter than the rows, so that four and a row fit the model
    short = [
        (text, label)
        for text, label, size in zip(rows["text"][:], rows["label"][:], sizes, strict=True)
        if 150 <= size < 180
    ]
    # each class twice, by turns
    shots = [next(pair for pair in short[4 * i :] if pair[1] == i % 2) for i in range(4)]
    return fit[: ask.rows], shots


def work(case: str, texts: list[str], shots: list[tuple[str, int]]) -> list[tuple[str, tuple[str, ...]]]:
    """(context, answers) of one measurement, row by row."""
    words = [tuple(" " + word for word in pair) for pair in WORDS.values()]
    if case == "grid":
        return [(f"{text}\n{line}", pair) for text in texts for line in LINES for pair in words]
    if case == "choices":
        parts = [text.split() for text in texts]
        # other rows' words as wrong endings: each row has choices of its own
        ends = [" " + " ".join(part[40:50]) for part in parts]
        return [
            (" ".join(part[:40]), tuple(ends[(i + k) % len(ends)] for k in range(4)))
            for i, part in enumerate(parts)
        ]
    answers = tuple(" " + word for word in LONG) if case == "long" else words[0]
    head = (
        "".join(f"{text}\n{LINES[0]}{words[0][label]}\n\n" for text, label in shots) if case == "few" else ""
    )
    return [(f"{head}{text}\n{LINES[0]}", answers) for text in texts]


def load_own(ask: argparse.Namespace) -> tuple[Callable[[list[Any]], list[float]], Any]:
    from finetune.training.allocator import keep_freed_memory

    keep_freed_memory()
    from prompts.scoring.load import ScoringArguments, load_prompt_scorer
    from prompts.scoring.score import Request

    scorer = load_prompt_scorer(
        # tokens that the peer's batch of rows of at most 256 tokens has
        ask.model,
        ScoringArguments(dtype=ask.dtypes[0], batch_tokens=ask.batch_size * 256),
    )

    def score(asked: list[Any]) -> list[float]:
        found = scorer([Request(context, tuple(answers)) for context, answers in asked])
        return [float(tokens.sum()) for row in found for tokens in row]

    return score, scorer.network


def load_peer(ask: argparse.Namespace) -> tuple[Callable[[list[Any]], list[float]], Any]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from finetune.models.load import resolve

    folder, _ = resolve(ask.model)
    # as its command line sets it up, without a token that ours doesn't put in front either
    peer = HFLM(
        pretrained=folder, dtype=ask.dtypes[0], batch_size=ask.batch_size, device="cpu", add_bos_token=False
    )

    def score(asked: list[Any]) -> list[float]:
        # the harness asks each answer apart; sharing the context is its own matter
        pairs = [(context, answer) for context, answers in asked for answer in answers]
        instances = [
            Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=i)
            for i, pair in enumerate(pairs)
        ]
        return [value for value, _ in peer.loglikelihood(instances, disable_tqdm=True)]

    return score, peer.model


if __name__ == "__main__":
    main(options())
