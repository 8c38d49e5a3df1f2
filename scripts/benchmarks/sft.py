"""Instruction tuning here beside TRL's SFTTrainer on the same rows, interleaved in one run: real tokens a
second, losses.

  python scripts/benchmarks/sft.py --dataset_name ../shared/data/alpaca_en_demo

Sides: `trl` as its example script runs by default; `trl_packed` with packing and the same allocator settings
as ours; `ours`. LoRA (r 16, all linear layers) on all of them. Each side runs in a process of its own, one
after the other, round by round. Tokens are real ones, padding not counted. Each side trains for as many
seconds; the first quarter of them, and the first step, is left out on every side, as memory that is touched
for the first time costs more than anything else then. `--losses` trains three steps in float32 on one batch
of four rows instead, and compares the losses.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time

SIDES = ("trl", "trl_packed", "ours")
LOSS_ROWS = 4
LORA = {
    "r": 16,
    "lora_alpha": 32,
    # losses can only be compared without chance
    "lora_dropout": 0.0,
    "target_modules": "all-linear",
    "task_type": "CAUSAL_LM",
}
DIFFERENCES = (
    "trl: library defaults (padding, gradient checkpointing, bf16 autocast, float32 weights). trl_packed: "
    "packing=True, as many full lines a batch as hold its tokens, and freed memory kept (mallopt). ours: "
    "rows of a batch in one line, attention text by text, logits where a label is alone, no gradient "
    "checkpointing, frozen weights in bf16, adapters in float32, freed memory kept. Same rows, "
    "batch and learning rate."
)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--task", default="sft", choices=["sft"], help="this benchmark's own name in training.py"
    )
    parser.add_argument(
        "--dataset_name", default="../shared/data/alpaca_en_demo", help="rows with prompt and completion"
    )
    parser.add_argument("--model_name_or_path", default="smollm2", help="a decoder")
    parser.add_argument("--max_length", type=int, default=512, help="tokens")
    parser.add_argument("--batch_size", type=int, default=8, help="rows a batch")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of each side")
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds that a side trains in a round")
    parser.add_argument("--losses", action="store_true", help="compare losses in float32 instead of speed")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args()


def rows_of(ask: argparse.Namespace):
    """Prompts and completions; to compare losses, few, and such as have the same tokens together and
    apart.
    """
    from finetune.data.sources import DataArguments, load_rows
    from finetune.models.load import load_processor

    rows = (
        load_rows(DataArguments(ask.dataset_name))
        .train.shuffle(seed=0)
        .select_columns(["prompt", "completion"])
    )
    if not ask.losses:
        return rows
    # special tokens are the collators' matter on both sides
    ids = functools.partial(load_processor(ask.model_name_or_path), add_special_tokens=False)
    # where a token spans the seam, sides that tokenise together and apart see other rows
    apart = rows.filter(
        lambda row: (
            ids(row["prompt"] + row["completion"]).input_ids
            == ids(row["prompt"]).input_ids + ids(row["completion"]).input_ids
        )
    )
    return apart.select(range(LOSS_ROWS))


def trainer_of(ask: argparse.Namespace):
    import torch

    from finetune.training.machine import has_fast_bf16

    rows = rows_of(ask)
    settings = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": LOSS_ROWS if ask.losses else ask.batch_size,
        # constant, and three epochs: every side trains until its seconds are over
        "learning_rate": 5e-4, "num_train_epochs": 3, "save_strategy": "no", "logging_steps": 1,
        "disable_tqdm": True, "seed": 42, "include_num_input_tokens_seen": "non_padding",
        "max_length": ask.max_length, "lr_scheduler_type": "constant", "dataloader_pin_memory": False,
    }  # fmt: skip
    if not torch.cuda.is_available():
        settings["use_cpu"] = True  # TRL stops without it
    # bf16's rounding is larger than what is looked for; where it isn't fast, no side takes it
    if ask.losses or not has_fast_bf16():
        settings["bf16"] = False
    return (ours if ask.side == "ours" else trl)(ask, rows, settings)


def trl(ask, rows, settings):
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from finetune.models.load import resolve

    source, _ = resolve(ask.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(source)
    network = AutoModelForCausalLM.from_pretrained(source, dtype="float32")
    if ask.side == "trl_packed":
        tokens = sum(
            len(ids) for ids in tokenizer([row["prompt"] + row["completion"] for row in rows]).input_ids
        )
        # full lines, as many as hold the tokens of an unpacked batch
        settings["per_device_train_batch_size"] = max(
            1, round(ask.batch_size * tokens / len(rows) / ask.max_length)
        )
    config = SFTConfig(**settings, packing=ask.side == "trl_packed", report_to="none")
    return SFTTrainer(
        network, config, train_dataset=rows, processing_class=tokenizer, peft_config=LoraConfig(**LORA)
    )


def ours(ask, rows, settings):
    """The pieces of scripts/sft.py."""
    from transformers import AutoModelForCausalLM, set_seed

    from finetune.data.columns import Columns
    from finetune.methods import attach
    from finetune.models.attention.packed import pack
    from finetune.models.load import ModelArguments, load_model
    from finetune.tasks.sft import packed
    from finetune.tasks.table import TASKS
    from finetune.training.sft import SftArguments, make_instruct_trainer

    set_seed(settings["seed"])
    # what sft.py does by itself where the model keeps texts apart
    row = packed(TASKS["sft"])
    dtype = "bfloat16" if settings.get("bf16") is not False else "float32"
    # frozen weights need no float32 masters
    processor, network = load_model(ModelArguments(ask.model_name_or_path, dtype=dtype), AutoModelForCausalLM)
    # before LoRA wraps the layers
    pack(network)
    network = attach(network, "lora", None, row.peft)
    features = row.encode(
        rows, Columns("prompt", None, "completion"), processor, ask.max_length, None, chat=False
    )
    training = SftArguments(**settings, warmup_steps=0, eval_strategy="no")
    return make_instruct_trainer(row, network, processor, training, {"train": features})


def clock(marks: list[tuple[float, int]], seconds: float):
    """A callback that notes time and real tokens so far at the start and the end of each step, until
    `seconds` have passed.
    """
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            # tokens of the first step count from here
            marks.append((time.perf_counter(), 0))

        def on_step_end(self, args, state, control, **kwargs):
            marks.append((time.perf_counter(), state.num_input_tokens_seen))
            # an end of its own, the last step's, stays one
            control.should_training_stop = (
                control.should_training_stop or marks[-1][0] - marks[0][0] > seconds
            )

    return Clock()


def train_side(ask: argparse.Namespace) -> dict:
    from finetune.training.allocator import keep_freed_memory
    from finetune.training.machine import peak_memory_mb

    # packed TRL gets it too: the comparison is of the trainers, not of allocators
    if ask.side != "trl":
        keep_freed_memory()
    trainer = trainer_of(ask)
    marks: list[tuple[float, int]] = []
    trainer.add_callback(clock(marks, math.inf if ask.losses else ask.seconds))
    trainer.train()
    # steps of the first quarter touch memory for the first time
    warm = [mark for mark in marks[1:-1] if mark[0] - marks[0][0] > ask.seconds / 4]
    (start, before), (end, after) = (warm or marks[-2:])[0], marks[-1]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "tokens": int(after - before),
        "seconds": end - start,
        "memory_mb": peak_memory_mb(),
        "losses": losses,
    }


def run_side(side: str) -> dict:
    """A side in a process of its own; its figures are the last line that it prints."""
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--side", side], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{side} stopped:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare_losses(ask: argparse.Namespace) -> None:
    found = {side: run_side(side)["losses"] for side in (SIDES[0], SIDES[-1])}
    # step by step: an error in the first one's gradient shows in the second's loss
    apart = max(abs(one - other) for one, other in zip(*found.values(), strict=True))
    for side, losses in found.items():
        print(f"{side:11} " + "  ".join(f"{loss:.5f}" for loss in losses))
    print(f"largest difference {apart:.1e} (float32, three steps on one batch of {LOSS_ROWS} rows)")


def compare_speed(ask: argparse.Namespace) -> None:
    import torch

    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}; {ask.seconds:.0f} s a side and "
        f"round\n{DIFFERENCES}\n"
    )
    speeds: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(ask.rounds):
        for side in SIDES:
            figures = run_side(side)
            speeds[side].append(figures["tokens"] / figures["seconds"])
            print(
                f"round {number + 1}  {side:11} {speeds[side][-1]:8.1f} tokens/s  "
                f"{figures['memory_mb']:7.0f} MB",
                flush=True,
            )
    for side in SIDES[:-1]:
        # of each round, whose sides ran one after the other under the same load
        ratios = [one / other for one, other in zip(speeds["ours"], speeds[side], strict=True)]
        print(
            f"ours / {side:11} {statistics.median(ratios):5.2f} (from {min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    asked = options()
    if asked.side:
        print(json.dumps(train_side(asked)))
    elif asked.losses:
        compare_losses(asked)
    else:
        compare_speed(asked)
