"""METHODS × attack: how well training rows are told from others by the loss, for each way of tuning, with and
without differential privacy.

  python scripts/benchmarks/leaks.py --dataset_name ../shared/data/sst2
  python scripts/benchmarks/leaks.py --dataset_name ../shared/data/sst2 --epsilon 8

Each method trains at its own rate (METHODS) on the same rows; private runs take larger steps in fewer, larger
batches, as noise wants (Li et al. 2022). Mireshghallah et al. 2022 found that a head leaks most and adapters
least.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parents[1]
METHODS = ("full", "linear_probe", "lora", "bottleneck", "prefix", "prompt")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--dataset_name", default="reviews", help="Rows of a classification.")
    parser.add_argument("--model_name_or_path", default="minilm")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--rows", type=int, default=400, help="Training rows; twice as many are held out.")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--max_length", type=int, default=48, help="Tokens.")
    parser.add_argument("--epsilon", type=float, help="Privacy of each run (default: none).")
    parser.add_argument(
        "--rate", type=float, default=5.0, help="Times the method's own rate, with --epsilon."
    )
    parser.add_argument("--output_dir", default="runs/leaks", help="Folder of the runs.")
    options = parser.parse_args()
    print("| method | trained | ε | accuracy | loss: AUC | true positives at 1 % false ones | controls |")
    print("|---|---:|---:|---:|---:|---:|---|")
    for method in options.methods:
        # line by line: what is there stays there when time is up
        print(line(method, str(options.epsilon or "none"), *measured(method, options)), flush=True)


def measured(method: str, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of a run and of its audit."""
    # imported late: --help should not wait for torch
    from finetune.methods import find_method

    # method and privacy in the name: both tables may go into one folder
    folder = Path(options.output_dir) / f"{method}_{options.epsilon or 'plain'}"
    private = []
    if options.epsilon:
        # few steps with noise want larger ones
        rate = find_method(method).learning_rate * options.rate
        private = ["--epsilon", options.epsilon, "--gradient_accumulation_steps", 8, "--learning_rate", rate]
    run(
        "train.py", "--task", "classification", "--model_name_or_path", options.model_name_or_path,
        "--dataset_name", options.dataset_name, "--method", method, "--max_train_rows", options.rows,
        "--max_eval_rows", 2 * options.rows, "--num_train_epochs", options.epochs, "--output_dir", folder,
        "--max_length", options.max_length, "--save_strategy", "no", "--eval_strategy", "no", *private,
    )  # fmt: skip
    # the control that must be found is the same model's for all methods: it is learnt once, by all weights
    by_heart = [] if method == "full" else ["--overfit_rows", 0]
    run("audit.py", "--artefact", folder, *by_heart)
    return tuple(json.loads((folder / file).read_text()) for file in ("metrics.json", "audit/audit.json"))


def run(script: str, *given: Any) -> None:
    # a process each: seeds, caches and the allocator begin alike
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / script), *map(str, given)], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)


def line(method: str, epsilon: str, figures: dict[str, Any], said: dict[str, Any]) -> str:
    # the loss alone: the one attack that every task has
    found, controls = said["attacks"]["loss"], said["controls"].values()
    cells = [
        f"`{method}`", f"{figures['trainable']:,}", epsilon,
        within(figures["accuracy"], figures["intervals"]["accuracy"]),
        within(found["auc"], found["auc_interval"]), within(found["tpr"], found["tpr_interval"]),
        "hold" if all(one["holds"] for one in controls) else "FAIL",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def within(value: float, bounds: list[float]) -> str:
    return f"{value:.3f} ({bounds[0]:.3f}–{bounds[1]:.3f})"


if __name__ == "__main__":
    main()
