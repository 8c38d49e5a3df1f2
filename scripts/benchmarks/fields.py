"""Pictures, sounds or series beside a plain Trainer on the same rows, interleaved: seconds of the processor,
and by the clock, the ratios.

  python scripts/benchmarks/fields.py --field image
  python scripts/benchmarks/fields.py --field audio --rounds 5
  python scripts/benchmarks/fields.py --field series --rows 2000

The peer is transformers' Trainer as its example scripts use it: files opened and prepared row by row in the
data set, float32, windows of a series cut as copies; the same model from the same configuration, batch,
learning rate and steps. Rows are made up and written once. Each side trains in a process of its own, round by
round, and its training alone is counted, with the processes that make its batches (--workers). The seconds of
the processor are the figure: by the clock, what else runs on the machine counts too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

SIDES, RATE, SIDE, CHANNELS, CONTEXT, HORIZON = ("peer", "ours"), 16_000, 96, 7, 336, 96
WIDE = "hidden_size=128,num_hidden_layers=4,num_attention_heads=4,intermediate_size=256"
FIELDS = {
    "image": ("vit", f"image_size=64,patch_size=8,{WIDE}"),
    "audio": ("audio-spectrogram-transformer", f"max_length=100,{WIDE}"),
    "series": (
        "patchtst", "d_model=16,num_attention_heads=4,ffn_dim=128,num_hidden_layers=3,norm_type=layernorm",
    ),
}  # fmt: skip


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--field", default="image", choices=tuple(FIELDS), help="what the rows are")
    parser.add_argument("--rows", type=int, default=512, help="rows (windows of a series) of a round")
    parser.add_argument("--batch_size", type=int, default=32, help="rows a batch")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of each side")
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches, of each side")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def write_rows(field: str, rows: int, folder: Path) -> None:
    """Noise of two classes, or a noisy wave in seven channels, as files."""
    rng = np.random.default_rng(0)
    if field == "series":
        ends = (rows + CONTEXT + HORIZON - 1, rows + CONTEXT + 2 * HORIZON)
        values = np.sin(np.arange(ends[1]) / 4)[:, None] + rng.normal(0, 0.3, (ends[1], CHANNELS))
        times = np.datetime64("2020-01-01T00") + np.arange(ends[1])
        lines = [
            f"{when}," + ",".join(f"{one:.4f}" for one in row)
            for when, row in zip(times, values, strict=True)
        ]
        head = "date," + ",".join(f"channel{place}" for place in range(CHANNELS))
        # as many training windows as rows; a single one is evaluated
        for split, part in (("train", lines[: ends[0]]), ("validation", lines[ends[0] :])):
            (folder / f"{split}.csv").write_text("\n".join([head, *part]))
        return
    for number in range(rows):
        where = folder / "train" / "ab"[number % 2]
        where.mkdir(parents=True, exist_ok=True)
        if field == "image":
            from PIL import Image

            picture = rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(picture).save(where / f"{number}.png")
        else:
            from scipy.io import wavfile

            wavfile.write(where / f"{number}.wav", RATE, rng.normal(0, 0.1, RATE).astype(np.float32))


def steps_of(ask: argparse.Namespace) -> int:
    return max(1, ask.rows // ask.batch_size)


def train_ours(ask: argparse.Namespace) -> tuple[float, float]:
    """Seconds of the processor and by the clock of training by `finetune train`."""
    family, overrides = FIELDS[ask.field]
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable, str(Path(__file__).parents[1] / "train.py"), "--method", "full",
            "--task", "forecast" if ask.field == "series" else ask.field, "--from_config", family,
            "--config_overrides", overrides, "--dataset_name", ask.folder, "--output_dir", f"{out}/run",
            "--per_device_train_batch_size", str(ask.batch_size), "--max_steps", str(steps_of(ask)),
            "--learning_rate", "1e-3", "--eval_strategy", "no", "--save_strategy", "no",
            "--max_eval_rows", "8", "--dataloader_num_workers", str(ask.workers),
        ]  # fmt: skip
        if ask.field == "series":
            # a series can't be sampled: its evaluation rows are its last ones
            place = command.index("--max_eval_rows")
            del command[place : place + 2]
            command += ["--context_length", str(CONTEXT), "--prediction_length", str(HORIZON)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"ours stopped:\n{done.stderr[-3000:]}")
        figures = json.loads(Path(out, "run", "metrics.json").read_text())
        return float(figures["processor_seconds"]), float(figures["seconds"])


def train_peer(ask: argparse.Namespace) -> tuple[float, float]:
    """The same by transformers alone."""
    from transformers import Trainer, TrainingArguments, set_seed

    set_seed(0)
    network, rows = PEERS[ask.field](Path(ask.folder))
    training = TrainingArguments(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=ask.batch_size, learning_rate=1e-3,
        max_steps=steps_of(ask), save_strategy="no", report_to="none", disable_tqdm=True,
        remove_unused_columns=False, dataloader_pin_memory=False, dataloader_num_workers=ask.workers,
    )  # fmt: skip
    trainer = Trainer(model=network, args=training, train_dataset=rows)
    # children's are counted when they have ended, as an epoch's workers have
    before = sum(os.times()[:4])
    seconds = trainer.train().metrics["train_runtime"]
    return sum(os.times()[:4]) - before, float(seconds)


def entries(field: str) -> dict[str, Any]:
    """The configuration's own entries, as numbers and words."""
    pairs = (one.split("=") for one in FIELDS[field][1].split(","))
    return {name: int(value) if value.isdigit() else value for name, value in pairs}


def picture_peer(folder: Path) -> tuple[Any, Any]:
    from datasets import load_dataset
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    processor = ViTImageProcessor(size={"height": 64, "width": 64})
    rows = load_dataset("imagefolder", data_dir=str(folder), split="train")

    def prepared(batch: dict[str, list]) -> dict[str, list]:
        pixels = [
            processor(one.convert("RGB"), return_tensors="pt")["pixel_values"][0] for one in batch["image"]
        ]
        return {"pixel_values": pixels, "labels": batch["label"]}

    return ViTForImageClassification(ViTConfig(**entries("image"))), rows.with_transform(prepared)


def sound_peer(folder: Path) -> tuple[Any, Any]:
    from datasets import Dataset
    from scipy.io import wavfile
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    extractor = ASTFeatureExtractor(max_length=100)
    files = sorted(folder.glob("train/*/*.wav"))
    rows = Dataset.from_dict(
        {"file": list(map(str, files)), "label": [int(file.parent.name == "b") for file in files]}
    )

    def prepared(batch: dict[str, list]) -> dict[str, list]:
        waves = [wavfile.read(file)[1] for file in batch["file"]]
        heard = [extractor(one, sampling_rate=RATE, return_tensors="pt")["input_values"][0] for one in waves]
        return {"input_values": heard, "labels": batch["label"]}

    return ASTForAudioClassification(ASTConfig(**entries("audio"))), rows.with_transform(prepared)


def series_peer(folder: Path) -> tuple[Any, Any]:
    import pandas as pd
    import torch
    from transformers import PatchTSTConfig, PatchTSTForPrediction

    values = pd.read_csv(folder / "train.csv").iloc[:, 1:].to_numpy(np.float32)
    whole = torch.from_numpy((values - values.mean(0)) / values.std(0))
    rows = [
        {
            "past_values": whole[start : start + CONTEXT].clone(),
            "future_values": whole[start + CONTEXT : start + CONTEXT + HORIZON].clone(),
        }
        for start in range(len(whole) - CONTEXT - HORIZON + 1)
    ]
    config = PatchTSTConfig(
        context_length=CONTEXT, prediction_length=HORIZON, num_input_channels=CHANNELS, patch_length=16,
        patch_stride=8, scaling="std", pooling_type=None, **entries("series"),
    )  # fmt: skip
    return PatchTSTForPrediction(config), rows


PEERS = {"image": picture_peer, "audio": sound_peer, "series": series_peer}


def seconds_of(side: str, ask: argparse.Namespace, folder: Path) -> tuple[float, float]:
    """A side in a process of its own; its seconds are the last line that it prints."""
    given = [
        "--field", ask.field, "--rows", str(ask.rows), "--batch_size", str(ask.batch_size),
        "--workers", str(ask.workers),
    ]  # fmt: skip
    command = [sys.executable, __file__, *given, "--side", side, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{side} stopped:\n{(done.stderr or done.stdout)[-3000:]}")
    processor, clock = json.loads(done.stdout.strip().splitlines()[-1])
    return processor, clock


def main() -> None:
    ask = options()
    if ask.side:
        print(json.dumps((train_ours if ask.side == "ours" else train_peer)(ask)))
        return
    with tempfile.TemporaryDirectory() as held:
        write_rows(ask.field, ask.rows, Path(held))
        found: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
        for _ in range(ask.rounds):
            for side in SIDES:
                found[side].append(seconds_of(side, ask, Path(held)))
    for place, what in enumerate(("of the processor", "by the clock")):
        peer, ours = ([one[place] for one in found[side]] for side in SIDES)
        ratios = [theirs / own for theirs, own in zip(peer, ours, strict=True)]
        print(f"seconds {what}, peer / ours: {shown(ratios)}")
        print(f"  peer {shown(peer)}; ours {shown(ours)}; {steps_of(ask) * ask.batch_size} rows")


def shown(values: list[float]) -> str:
    """The median of the rounds, and each."""
    return f"{median(values):.2f} ({', '.join(f'{one:.2f}' for one in values)})"


if __name__ == "__main__":
    main()
