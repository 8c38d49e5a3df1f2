"""This project beside the peer on the same rows, interleaved in one run: real tokens a second, memory,
accuracy.

  python scripts/benchmarks/training.py --dataset_name ../shared/data/imdb

The peer is transformers' Trainer as its example scripts use it: padding to max_length, float32, library
defaults. Both train in processes of their own (an allocator's settings last as long as a process), one after
the other, round by round. Tokens are real ones, padding not counted; seconds are those of the training loop.
Which settings differ is printed beside the ratio.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIDES = ("peer", "ours")
DIFFERENCES = (
    "ours: rows of like length together, padded to the longest of the batch; bf16 autocast over float32 "
    "masters where the hardware has it; attention dropout 0 on a CPU; freed memory kept "
    "(mallopt). Same model, rows, optimizer, learning rate, batch size, epochs."
)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--task",
        default="classification",
        choices=("classification", "sft"),
        help="sft: sft.py beside this file",
    )
    parser.add_argument("--dataset_name", default="reviews", help="rows to train on")
    parser.add_argument("--model_name_or_path", default="minilm", help="an encoder")
    parser.add_argument("--max_length", type=int, default=512, help="tokens")
    parser.add_argument("--batch_size", type=int, default=16, help="rows a batch")
    parser.add_argument("--learning_rate", type=float, default=1e-4, help="both sides'")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of each side")
    parser.add_argument("--round_rows", type=int, default=96, help="rows a timed round")
    parser.add_argument(
        # speed that costs accuracy is none: both are compared
        "--accuracy_rows",
        type=int,
        default=800,
        help="rows of the epoch whose accuracy is compared; 0 leaves it out",
    )
    parser.add_argument("--eval_rows", type=int, default=1000, help="held-out rows")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def train_side(ask: argparse.Namespace) -> dict[str, float]:
    """One side, one epoch on `ask.rows` rows, in this process."""
    from finetune.training.allocator import keep_freed_memory
    from finetune.training.machine import peak_memory_mb

    # a setting of the process; the peer's is left as libraries have it
    if ask.side == "ours":
        keep_freed_memory()
    from finetune.data.sources import DataArguments, load_rows
    from finetune.tasks.classification import examine

    data = DataArguments(
        ask.dataset_name, max_train_rows=ask.rows, max_eval_rows=ask.eval_rows, eval_split="test"
    )
    rows, columns, labels, *_ = examine(load_rows(data), data, pair=False)
    trainer, features = (make_ours if ask.side == "ours" else make_peer)(ask, rows, columns, labels)
    # real tokens: the peer's padding is work that nobody asked for
    lengths = (
        [sum(mask) for mask in features["attention_mask"]]
        if "attention_mask" in features.column_names
        else features["length"][:]
    )
    # loading and tokenising stand before, on both sides
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    figures = {"tokens": sum(lengths), "seconds": seconds, "memory_mb": peak_memory_mb()}
    if ask.rows == ask.accuracy_rows:
        import numpy as np

        from finetune.adapters.classifier import Classifier
        from finetune.data.columns import class_ids
        from finetune.metrics.bootstrap import interval

        classifier = Classifier(trainer.model, trainer.processing_class, labels, ask.max_length)
        # both sides' models are assessed by the same code
        said = classifier.logits(rows.eval[columns.text][:]).argmax(-1).numpy()
        right = said == np.array(class_ids(rows.eval, columns.label, labels))
        low, high = interval(right)
        figures |= {"accuracy": float(right.mean()), "low": low, "high": high}
    return figures


def make_peer(ask, rows, columns, labels):
    """transformers alone, as its text-classification example puts it together."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

    from finetune.models.load import resolve

    source, _ = resolve(ask.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(source)
    network = AutoModelForSequenceClassification.from_pretrained(source, num_labels=len(labels))
    features = rows.train.map(
        lambda batch: tokenizer(
            # as the example script does by default
            batch[columns.text],
            padding="max_length",
            truncation=True,
            max_length=ask.max_length,
        ),
        batched=True,
    ).rename_column(columns.label, "labels")
    training = TrainingArguments(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=ask.batch_size,
        learning_rate=ask.learning_rate, num_train_epochs=1,
        save_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    return Trainer(model=network, args=training, train_dataset=features, processing_class=tokenizer), features


def make_ours(ask, rows, columns, labels):
    """The pieces of scripts/train.py, with its defaults."""
    from finetune.models.load import ModelArguments, load_model
    from finetune.tasks.table import TASKS
    from finetune.training.options import TrainingArguments
    from finetune.training.trainer import make_trainer

    row = TASKS["classification"]
    processor, network = load_model(ModelArguments(ask.model_name_or_path), row.model, labels)
    features = {"train": row.encode(rows.train, columns, processor, ask.max_length, labels)}
    training = TrainingArguments(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=ask.batch_size,
        learning_rate=ask.learning_rate, num_train_epochs=1,
        # the peer's default: same learning rate at every step
        warmup_steps=0, save_strategy="no", eval_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    return make_trainer(row, network, processor, training, features, labels=labels), features["train"]


def run_side(side: str, rows: int) -> dict[str, float]:
    """A side in a process of its own; its figures are the last line that it prints."""
    # the user's own words over again, and which side
    own = [a for a in sys.argv[1:] if a]
    command = [sys.executable, __file__, *own, "--side", side, "--rows", str(rows)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{side} stopped:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def matrix_peak(seconds: float = 2.0) -> float:
    """Floating-point operations a second of a large matrix product here, in bf16 where that is fast."""
    import torch

    from finetune.training.machine import has_fast_bf16

    size, dtype = 2048, torch.bfloat16 if has_fast_bf16() else torch.float32
    one, other = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    # the first product chooses a kernel
    one @ other
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        one @ other
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - start)


def operations_a_token(name: str) -> float:
    """Forward and backward: six operations a token for each weight outside the embeddings (Kaplan et al.
    2020, table 1).
    """
    from transformers import AutoModel

    from finetune.models.load import resolve

    network = AutoModel.from_pretrained(resolve(name)[0])
    # embeddings are looked up, not multiplied by
    return 6 * sum(p.numel() for n, p in network.named_parameters() if "embeddings" not in n)


def foreign_load() -> float:
    """Share of all cores that others use at this moment, 0 to 1."""
    import psutil

    # a second: long enough for a figure, short enough to be run each time
    return psutil.cpu_percent(interval=1.0) / 100


def asked_task() -> str:
    """--task alone: instruction tuning has options of its own."""
    # the rest belongs to the benchmark that is chosen by it
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--task", default="classification")
    return parser.parse_known_args()[0].task


def main() -> None:
    if asked_task() == "sft":
        sys.exit(subprocess.call([sys.executable, str(Path(__file__).with_name("sft.py")), *sys.argv[1:]]))
    ask = options()
    if ask.side:
        print(json.dumps(train_side(ask)))
        return
    load = foreign_load()
    if load > 0.1:
        print(f"warning: others use {load:.0%} of the cores; figures and ratios will be off")
    speeds: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(ask.rounds):
        # by turns, so that a machine that warms up favours neither
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            figures = run_side(side, ask.round_rows)
            speeds[side].append(figures["tokens"] / figures["seconds"])
            print(
                f"round {number + 1} {side}: {speeds[side][-1]:,.0f} tokens/s, peak memory "
                f"{figures['memory_mb']:,.0f} MB",
                flush=True,
            )
    # of each round, whose sides ran one after the other under the same load
    ratios = sorted(ours / peer for ours, peer in zip(speeds["ours"], speeds["peer"], strict=True))
    median = ratios[len(ratios) // 2]
    print(
        f"\nratio of each round: {', '.join(f'{r:.1f}' for r in ratios)}; median {median:.1f} "
        f"×\n{DIFFERENCES}"
    )
    peak, need = matrix_peak(), operations_a_token(ask.model_name_or_path)
    for side in SIDES:
        # the median round; the best would be the luckiest
        best = sorted(speeds[side])[len(speeds[side]) // 2]
        print(
            f"{side}: {best:,.0f} tokens/s, {best * need / peak:.1%} of the measured matrix-product "
            f"peak ({peak / 1e12:.2f} TFLOP/s)"
        )
    if ask.accuracy_rows:
        for side in SIDES:
            figures = run_side(side, ask.accuracy_rows)
            print(
                f"{side}, one epoch on {ask.accuracy_rows} rows: accuracy {figures['accuracy']:.3f} "
                f"({figures['low']:.3f}–{figures['high']:.3f}), {figures['seconds']:,.0f} s, "
                f"{figures['memory_mb']:,.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
