"""DPO and PPO on one card, ours beside TRL's defaults in one process; its last lines are RESULT and JSON, as
gpu_speed.py's are.

python scripts/benchmarks/gpu_alignment.py dpo 1b lora [--sides ours,compile,trl] [--rows 8] [--seconds 5]
python scripts/benchmarks/gpu_alignment.py ppo 135m lora [--seconds 5]

Models and words as in gpu_speed.py; prompts of 64 to 256 random tokens, answers of 64 to 512. What differs
between DPO's sides is what their defaults do: ours asks the reference before training and computes a pair's
prompt once; TRL asks it in each step, lays out both sides whole, and recomputes activations.

tokens_per_s is of one epoch, the reference's pass over each pair counted in, and a pair's prompt once, on
both sides alike; step_tokens_per_s leaves the reference out where a step has none. start_s: from nothing to
a trainer, ours with the references of forty steps and hashes of the weights, by which they are kept. mfu:
the operations of gpu_speed.operations on these tokens (a frozen weight needs no gradient of its own; an
answer attends to its prompt and itself) and of the reference's pass, two a weight and token. Padding, prompts
computed twice and activations computed again are no work that is needed. PPO's mfu is of its updates alone.
TRL has no PPO any more.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import dataclass
from functools import partial
from typing import Any

from gpu_speed import SHAPES, SIDES, by_sides, ceiling, made, now, operations, peak_gib, timed, words

LONGEST = 1024  # TRL's own limit of a row; ours is told it too, though both would hold these rows
STEPS = 40  # no pair twice within them


@dataclass
class Lengths:
    """Tokens of a pair."""

    prompt: int
    chosen: int
    rejected: int

    @property
    def tokens(self) -> int:
        return self.prompt + self.chosen + self.rejected


def pairs(count: int, vocabulary: int) -> Any:
    """Rows of random words: prompt, chosen, rejected."""
    import numpy as np
    from datasets import Dataset

    rng = np.random.default_rng(0)

    def text(least: int, most: int) -> str:
        ids = rng.integers(5, vocabulary, int(rng.integers(least, most + 1)))
        return " ".join(f"t{i}" for i in ids)

    # the end as a word of its own, or TRL would glue it to the last one
    rows = [
        {"prompt": text(64, 256), "chosen": f" {text(63, 511)} t2", "rejected": f" {text(63, 511)} t2"}
        for _ in range(count)
    ]
    return Dataset.from_list(rows)


def needed(shape: dict[str, Any], method: str, seen: list[Lengths]) -> float:
    """Operations on each pair's prompt once and on both answers."""
    wholes = [one.prompt + answer for one in seen for answer in (one.chosen, one.rejected)]
    labelled = sum(one.chosen + one.rejected for one in seen)
    # both rows less a prompt: of its weights and of its attention to itself
    return operations(shape, method, wholes, labelled) - operations(
        shape, method, [one.prompt for one in seen], 0
    )


def forward(shape: dict[str, Any], seen: list[Lengths]) -> float:
    """The same without any gradient: a third of what training whole takes."""
    return needed(shape, "full", seen) / 3


def told(rows: int) -> dict[str, Any]:
    """Options that both sides get; all others are their defaults."""
    return {
        "output_dir": tempfile.mkdtemp(), "per_device_train_batch_size": rows, "max_steps": STEPS,
        "learning_rate": 1e-6, "save_strategy": "no", "eval_strategy": "no", "logging_steps": 1000,
        "disable_tqdm": True, "max_length": LONGEST, "report_to": "none",
    }  # fmt: skip


def ours_trainer(shape: dict[str, Any], method: str, rows: int, **further: Any) -> Any:
    """What scripts/dpo.py makes of a model in float32 masters, as `load_start` loads it."""
    import torch

    from finetune.alignment.dpo import DPOTrainingArguments, make_dpo_trainer
    from finetune.methods import attach

    vocabulary = shape["vocab_size"]
    return make_dpo_trainer(
        attach(made(shape, torch.float32), method, None, "CAUSAL_LM"), words(vocabulary),
        DPOTrainingArguments(**told(rows), **further), pairs(rows * STEPS, vocabulary), pairs(2, vocabulary),
    )  # fmt: skip


def trl_trainer(shape: dict[str, Any], method: str, rows: int) -> Any:
    """TRL's on the same pairs and weights: bf16 over float32, activations computed again."""
    import torch
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    lora = LoraConfig(
        task_type="CAUSAL_LM", target_modules="all-linear", r=16, lora_alpha=32, lora_dropout=0.0
    )
    # without a card it refuses bf16, its default, unless it is told
    config = DPOConfig(**told(rows), use_cpu=not torch.cuda.is_available())
    # by itself it would read the reference by a name that this model hasn't
    reference = made(shape, torch.float32) if method == "full" else None
    return DPOTrainer(
        made(shape, torch.float32), reference, config,
        train_dataset=pairs(rows * STEPS, shape["vocab_size"]), processing_class=words(shape["vocab_size"]),
        peft_config=lora if method == "lora" else None,
    )  # fmt: skip


def dpo(size: str, method: str, options: argparse.Namespace) -> None:
    # ours keeps what the reference said in files: none is found, and none is left
    os.environ["HF_HOME"] = tempfile.mkdtemp()
    shape, peak = SHAPES[size], ceiling()

    def measure(side: str) -> dict[str, Any]:
        make = trl_trainer if side == "trl" else partial(ours_trainer, **SIDES.get(side, {}))
        # the first makes for nothing: imports would count as a start
        make(SHAPES["tiny"], method, 1)
        began = now()
        trainer = make(shape, method, options.rows)
        made_in = now() - began
        found = timed(
            trainer,
            lambda rows: [Lengths(*(len(row[f"{n}_ids"]) for n in ("prompt", "chosen", "rejected")))
                          for row in rows],
            options.seconds,
        )  # fmt: skip
        seen: list[Lengths] = found["lengths"]
        tokens, seconds = sum(one.tokens for one in seen), found["seconds"]
        # by the passes alone: hashing the weights for the cache, once a run, would outweigh so few pairs
        asking = reference_rate(trainer, options.seconds / 4) if side != "trl" else None
        whole = seconds + (tokens / asking if asking else 0)
        need = needed(shape, method, seen) + forward(shape, seen)
        return {
            "tokens_per_s": round(tokens / whole), "pairs_per_s": round(len(seen) / whole, 1),
            "step_tokens_per_s": round(tokens / seconds),
            **({"reference_tokens_per_s": round(asking)} if asking else {}),
            "mfu": round(need / whole / peak, 3), "ceiling_tflops": round(peak / 1e12),
            "gib": round(found["gib"], 1), "steps": found["steps"], "start_s": round(made_in, 1),
        }  # fmt: skip

    by_sides(options.sides, measure, what="dpo", size=size, method=method, rows=options.rows)


def reference_rate(trainer: Any, seconds: float) -> float:
    """Tokens a second of the reference's passes over the training pairs, as the trainer has made them."""
    tokens, start = 0, 0.0
    for index, batch in enumerate(trainer.get_train_dataloader()):
        if index == 2:  # the first ones allocate
            start = now()
        trainer.compute_ref_log_probs(trainer.model, batch)
        if index < 2:
            continue
        # a pair's prompt once: rows are all chosen, then all rejected
        prompts = (batch["attention_mask"] - batch["completion_mask"]).sum()
        tokens += int(batch["attention_mask"].sum() - prompts / 2)
        # the card is waited for, which costs a step's launch at most
        if now() - start > seconds:
            break
    return tokens / (now() - start)


def ppo(size: str, method: str, options: argparse.Namespace) -> None:
    """Ours alone, by its defaults: 64 answers of 48 tokens a step, two epochs of two minibatches."""
    shape, peak = SHAPES[size], ceiling()

    def measure(_: str) -> dict[str, Any]:
        learner = ppo_learner(shape, method)
        rows = prompts_of(shape, learner.settings.rollout_batch_size)
        steps: list[dict[str, float]] = []
        start = 0.0
        # two that allocate and choose kernels
        while len(steps) < 3 or now() - start < options.seconds:
            if len(steps) == 2:
                start = now()
            steps.append(learner.learn(rows))
        measured, asked = steps[2:], [len(row.prompt.split()) for row in rows]
        seconds = {
            name: sum(one[f"seconds_{name}"] for one in measured) / len(measured)
            for name in ("generation", "scoring", "update")
        }
        answers = sum(one["length"] for one in measured) / len(measured) * len(rows)
        # updates may end early, see --stop_kl; each takes a minibatch
        share = sum(one["updates"] for one in measured) / len(measured)
        share *= learner.settings.minibatch_size / len(rows)
        trained = share * (answers + sum(asked))
        lengths = [n + round(answers / len(rows)) for n in asked]
        need = operations(shape, method, lengths, round(answers)) * share
        whole = sum(seconds.values())
        return {
            "tokens_per_s": round(answers / whole), "generated_per_s": round(answers / seconds["generation"]),
            "trained_per_s": round(trained / seconds["update"]), "step_s": round(whole, 2),
            **{f"{name}_s": round(value, 2) for name, value in seconds.items()},
            "updates": round(share * len(rows) / learner.settings.minibatch_size, 1),
            "mfu": round(need / seconds["update"] / peak, 3), "ceiling_tflops": round(peak / 1e12),
            "gib": round(peak_gib(), 1), "steps": len(measured),
        }  # fmt: skip

    by_sides("ours", measure, what="ppo", size=size, method=method)


def prompts_of(shape: dict[str, Any], count: int) -> list[Any]:
    """Prompts of 64 to 256 random words."""
    from finetune.alignment.rewards import AskedRewards

    return [AskedRewards(row["prompt"]) for row in pairs(count, shape["vocab_size"])]


def ppo_learner(shape: dict[str, Any], method: str) -> Any:
    """What scripts/ppo.py makes, with its defaults and a function for a reward."""
    import torch
    from accelerate import Accelerator

    from finetune.alignment.policy import make_policy
    from finetune.alignment.ppo_options import KLArguments, PPOArguments
    from finetune.alignment.ppo_trainer import Learner
    from finetune.alignment.rewards import Rewards
    from finetune.alignment.rollout import SamplingArguments
    from finetune.training.machine import has_fast_bf16

    policy = make_policy(made(shape, torch.float32), method, None, has_fast_bf16())
    return Learner(
        policy, words(shape["vocab_size"]), Rewards.of(length=letters),
        Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available()),
        settings=PPOArguments(), kl=KLArguments(), sampling=SamplingArguments(),
    )  # fmt: skip


def letters(prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
    """Without a limit, so that answers of as many tokens differ in it."""
    return [float(len(completion)) for completion in completions]


MEASURES = {"dpo": dpo, "ppo": ppo}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=tuple(MEASURES))
    parser.add_argument("size", nargs="?", default="135m", choices=tuple(SHAPES))
    parser.add_argument("method", nargs="?", default="lora", choices=("lora", "full"))
    parser.add_argument("--sides", default="ours,trl")
    parser.add_argument("--rows", type=int, default=8, help="dpo: pairs a step.")
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    MEASURES[options.what](options.size, options.method, options)


if __name__ == "__main__":
    main()
