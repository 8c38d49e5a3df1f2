"""What alignment costs: memory of a PPO step beside supervised fine-tuning's, DPO's and GRPO's speed beside
TRL's with the best of its options.

python scripts/benchmarks/alignment.py memory
python scripts/benchmarks/alignment.py dpo --rounds 2
python scripts/benchmarks/alignment.py grpo --rounds 2 --batch 16

Each part runs in a process of its own, the sides of a comparison by turns: same model, LoRA of rank 16,
batch, lengths, bf16 autocast over float32 masters, no checkpointing, and the allocator's setting that
finetune.training.allocator.keep_freed_memory makes.
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
from typing import Any

# PPO twice: a reward that is a function costs nothing, a learnt one shares the policy's base
MEMORY, SPEED = ("sft", "ppo", "ppo, learnt reward"), ("trl", "ours")
PARTS = {"memory": MEMORY, "dpo": SPEED, "grpo": SPEED}
GROUP = 8  # answers a prompt, as TRL has it


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("what", choices=tuple(PARTS))
    parser.add_argument(
        "--part",
        choices=(*MEMORY, *SPEED),
        help="Measure one part in this process (without it: all).",
    )
    parser.add_argument("--model_name_or_path", default="smollm2")
    parser.add_argument("--batch", type=int, default=8, help="Texts, pairs or answers a step.")
    parser.add_argument(
        "--length", type=int, default=128, help="memory: tokens a text, half prompt, half answer."
    )
    parser.add_argument("--prompt", type=int, default=150, help="dpo, grpo: tokens of a prompt.")
    parser.add_argument("--answer", type=int, default=75, help="The same of an answer, at most.")
    parser.add_argument("--steps", type=int, default=3, help="Steps that are measured, after one that isn't.")
    parser.add_argument("--rounds", type=int, default=1, help="How often each part is measured.")
    options = parser.parse_args()
    if options.part:
        print(json.dumps(measured(options)))
        return
    # by turns, so that a machine that slows down slows all parts
    rows = [in_a_process(part) for _ in range(options.rounds) for part in PARTS[options.what]]
    print("\n".join(REPORTS[options.what](rows, options)))


def in_a_process(part: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, *sys.argv, "--part", part], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    # libraries log in front of the figures
    return json.loads(done.stdout.splitlines()[-1])


def memory_report(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[str]:
    # the peak is a process's highest moment; the least of the rounds has the least noise of others
    least = min(row["peak_mb"] for row in rows if row["part"] == "sft")
    lines = [
        f"batch {options.batch}, {options.length} tokens",
        "| step | peak memory, MB | × SFT |",
        "|---|---:|---:|",
    ]
    return lines + [
        f"| {row['part']} | {row['peak_mb']:.0f} | {row['peak_mb'] / least:.2f} |" for row in rows
    ]


def speed_report(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[str]:
    lines = [f"batch {options.batch}, prompts of {options.prompt} tokens, answers of {options.answer}",
             "| DPO | references, pairs/s | training, pairs/s | one epoch of both, pairs/s |",
             "|---|---:|---:|---:|"]  # fmt: skip
    names = ("reference_pairs_a_second", "pairs_a_second", "both")
    # one pass over both: times add up, speeds don't
    rows = [row | {"both": 1 / (1 / row[names[0]] + 1 / row[names[1]])} for row in rows]
    lines += [f"| {row['part']} | " + " | ".join(f"{row[name]:.2f}" for name in names) + " |" for row in rows]
    # the fastest round of each: others on the machine only ever slow one down
    best = [{name: max(row[name] for row in rows if row["part"] == part) for name in names} for part in SPEED]
    return [
        *lines,
        "| ours / TRL, best of each | "
        + " | ".join(f"{best[1][n] / best[0][n]:.2f} ×" for n in names)
        + " |",
    ]


def grpo_report(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[str]:
    names = ("steps_a_minute", "tokens_a_second", "peak_mb")
    best = {
        part: {name: (min if name == "peak_mb" else max)(row[name] for row in rows if row["part"] == part)
               for name in names}
        for part in SPEED
    }  # fmt: skip
    ratios = [f"{best['ours'][name] / best['trl'][name]:.2f} ×" for name in names]
    return [
        f"batch {options.batch}, {GROUP} answers a prompt, prompts of {options.prompt} tokens, "
        f"answers of at most {options.answer}",
        "| GRPO, answers and update | steps a minute | sampled tokens/s | peak memory, MB |",
        "|---|---:|---:|---:|",
        *(f"| {row['part']} | " + " | ".join(f"{row[name]:.1f}" for name in names) + " |" for row in rows),
        "| ours / TRL, best of each | " + " | ".join(ratios) + " |",
    ]


REPORTS = {"memory": memory_report, "dpo": speed_report, "grpo": grpo_report}


def measured(options: argparse.Namespace) -> dict[str, Any]:
    from finetune.training.allocator import keep_freed_memory
    from finetune.training.machine import peak_memory_mb

    # before torch makes its first tensor, on every side alike
    keep_freed_memory()
    import torch
    from transformers.utils import logging

    from finetune.alignment.policy import load_start
    from finetune.methods import attach
    from finetune.models.load import ModelArguments

    # progress lines would stand in front of the JSON
    logging.set_verbosity_error()
    torch.manual_seed(0)
    # TRL's side has none of this project's layers
    if options.part != "ours" and options.what != "memory":
        processor, network = plain(options.model_name_or_path)
    else:
        processor, network = load_start(ModelArguments(model_name_or_path=options.model_name_or_path))
        # this project's LoRA layers, whose kernel is part of what is measured
        network = attach(network, "lora", None, "CAUSAL_LM")
    measures: dict[str, Callable[..., dict[str, float]]] = {
        "memory": sft if options.part == "sft" else ppo, "dpo": dpo, "grpo": grpo,
    }  # fmt: skip
    figures = measures[options.what](network, processor, options)
    return {"part": options.part, "peak_mb": peak_memory_mb(), **figures}


def plain(name: str) -> tuple[Any, Any]:
    """What a user of TRL gives it: transformers' model with PEFT's own layers, of the same sizes."""
    import peft
    from transformers import AutoModelForCausalLM

    from finetune.methods import METHODS
    from finetune.models.load import load_processor, resolve

    network = AutoModelForCausalLM.from_pretrained(resolve(name)[0], dtype="float32")
    sizes = peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **METHODS["lora"].defaults)
    return load_processor(name), peft.get_peft_model(network, sizes)


def shared_options(folder: str, options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from finetune.training.machine import has_fast_bf16

    return {
        # one step more than is measured, to warm up
        "output_dir": folder, "per_device_train_batch_size": options.batch, "max_steps": options.steps + 1,
        "bf16": has_fast_bf16(),
        "use_cpu": not torch.cuda.is_available(), "report_to": "none", "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True, "activation_checkpointing": False, "gradient_checkpointing": None,
        "dataloader_pin_memory": False,
    }  # fmt: skip


def sft(network: Any, processor: Any, options: argparse.Namespace) -> dict[str, float]:
    """TRL's trainer, whose output layer works in tiles."""
    import trl
    from datasets import Dataset

    # other texts at every step, as in training: nothing is found in a cache
    texts = [words(processor, options.length - 1, i) for i in range(options.batch * (options.steps + 1))]
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl.SFTTrainer(
            model=network, args=trl.SFTConfig(**shared_options(folder, options), max_length=options.length),
            train_dataset=Dataset.from_dict({"text": texts}), processing_class=processor,
        )  # fmt: skip
        trainer.train()
    return {}


def ppo(network: Any, processor: Any, options: argparse.Namespace) -> dict[str, float]:
    import torch
    from accelerate import Accelerator

    from finetune.alignment.policy import Policy
    from finetune.alignment.ppo_options import KLArguments, PPOArguments
    from finetune.alignment.ppo_trainer import Learner
    from finetune.alignment.rewards import AskedRewards, Rewards
    from finetune.alignment.rollout import SamplingArguments
    from finetune.training.machine import has_fast_bf16

    policy = Policy(network, has_fast_bf16())
    reward: Any = lengths if options.part == "ppo" else reward_on(policy, processor)
    # one minibatch and one epoch: the memory of a step, not of a schedule
    learner = Learner(
        policy, processor, Rewards.of(reward=reward),
        Accelerator(cpu=not torch.cuda.is_available()),
        settings=PPOArguments(rollout_batch_size=options.batch, minibatch_size=options.batch,
                              per_device_batch_size=options.batch, epochs=1),
        kl=KLArguments(), sampling=SamplingArguments(max_new_tokens=options.length // 2),
    )  # fmt: skip
    # the first step warms up
    for _ in range(options.steps + 1):
        learner.learn([AskedRewards(words(processor, options.length // 2, i)) for i in range(options.batch)])
    return {}


def reward_on(policy: Any, processor: Any) -> Any:
    """A reward model that is a second adapter of the policy's base, its weights fresh."""
    import peft
    from torch import nn

    from finetune.alignment.model_rewards import RewardModel
    from finetune.alignment.policy import REWARD, trunk_scores
    from finetune.alignment.rewards import RewardArguments

    # adding an adapter makes peft freeze and unfreeze: what was trainable is put back
    flags = [(p, p.requires_grad) for p in policy.network.parameters()]
    policy.network.add_adapter(
        REWARD, peft.LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    # the policy's own again, which `add_adapter` has switched off
    policy.network.set_adapter("default")
    for parameter in policy.network.parameters():
        parameter.requires_grad_(False)
    for parameter, trainable in flags:
        parameter.requires_grad_(trainable)
    # one number a text, as a reward model's head gives
    head = nn.Linear(policy.network.config.hidden_size, 1, bias=False)
    return RewardModel(
        lambda ids, mask: trunk_scores(policy, head, ids, mask), processor, 1024, RewardArguments()
    )


def dpo(network: Any, processor: Any, options: argparse.Namespace) -> dict[str, float]:
    import trl
    from datasets import Dataset
    from transformers import PrinterCallback

    from finetune.alignment.dpo import CachedDPOTrainer

    watch, moments = stopwatch()
    count = options.batch * (options.steps + 1)
    sides = {
        "prompt": (options.prompt, 0),
        "chosen": (options.answer - 1, count),
        # a text each, so that no side finds an answer that it has
        "rejected": (options.answer - 1, 2 * count),
    }
    rows = {
        name: [words(processor, length, first + i) for i in range(count)]
        for name, (length, first) in sides.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_HOME"] = folder  # nothing is found in a cache
        started = time.perf_counter()
        trainer = (CachedDPOTrainer if options.part == "ours" else trl.DPOTrainer)(
            # references are computed when the trainer is made, on both sides
            model=network, train_dataset=Dataset.from_dict(rows), processing_class=processor,
            args=trl.DPOConfig(
                **shared_options(folder, options), precompute_ref_log_probs=True, max_length=None
            ),
            callbacks=[watch],
        )  # fmt: skip
        references = time.perf_counter() - started
        # it prints where the figures go
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    # between the first step's end and the last one's
    return {"reference_pairs_a_second": count / references,
            "pairs_a_second": options.batch * options.steps / (moments[-1] - moments[0])}  # fmt: skip


def grpo(network: Any, processor: Any, options: argparse.Namespace) -> dict[str, float]:
    """Answers and their update: TRL's trainer on PEFT's layers, or this project's on its own."""
    import trl
    from datasets import Dataset
    from transformers import PrinterCallback

    from finetune.alignment.grpo import make_group_trainer
    from finetune.alignment.grpo_options import GRPOArguments
    from finetune.alignment.policy import Policy
    from finetune.alignment.rewards import AskedRewards, Rewards

    watch, moments = stopwatch()
    count = (options.steps + 1) * options.batch // GROUP
    prompts = [words(processor, options.prompt, i) for i in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        # a log a step, which says how many tokens were sampled
        told = shared_options(folder, options) | {
            "max_completion_length": options.answer, "num_generations": GROUP,
            "logging_strategy": "steps", "logging_steps": 1,
        }  # fmt: skip
        if options.part == "ours":
            args = GRPOArguments(**told)
            rows = [AskedRewards(prompt, {}) for prompt in prompts]
            # it makes the policy, whose frozen weights are cast once
            trainer = make_group_trainer(
                Policy(network, args.bf16), processor, args, rows, Rewards.of(length=lengths)
            )
            trainer.add_callback(watch)
        else:
            trainer = trl.GRPOTrainer(
                model=network, args=trl.GRPOConfig(**told), processing_class=processor, callbacks=[watch],
                train_dataset=Dataset.from_dict({"prompt": prompts}), reward_funcs=lengths,
            )  # fmt: skip
            trainer.remove_callback(PrinterCallback)
        trainer.train()
    seconds = moments[-1] - moments[0]
    # the first step warms up, and its tokens are left out with its time
    logs = [line["completions/mean_length"] for line in trainer.state.log_history if "reward" in line]
    return {
        "steps_a_minute": 60 * options.steps / seconds,
        "tokens_a_second": sum(logs[1:]) * options.batch / seconds,
    }


def lengths(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [float(len(completion)) for completion in completions]


def stopwatch() -> tuple[Any, list[float]]:
    """A callback of transformers' and the moments at which steps ended."""
    from transformers import TrainerCallback

    moments: list[float] = []

    class Stopwatch(TrainerCallback):
        # steps by their ends: the first one's start has warming up in it
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            moments.append(time.perf_counter())

    return Stopwatch(), moments


def words(processor: Any, tokens: int, seed: int) -> str:
    """A text of about so many tokens, other words for other seeds."""
    vocabulary = ("film", "story", "actor", "scene", "music", "plot", "never", "always", "loved", "dull")
    return " " + " ".join(
        # strides without a common divisor, so that texts differ from their first words on
        vocabulary[(seed * 7 + i * (3 + seed % 5)) % len(vocabulary)]
        for i in range(tokens)
    )


if __name__ == "__main__":
    main()
