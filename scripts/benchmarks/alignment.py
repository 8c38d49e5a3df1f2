"""Peak memory and seconds of a PPO step beside a step of supervised fine-tuning: the same model, adapter, batch and length.

python scripts/benchmarks/alignment.py
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

PARTS = ("sft", "ppo", "ppo with a learnt reward on its base")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--part", choices=PARTS, help="Measure one part in this process (without it: all, each in its own).")
    parser.add_argument("--model_name_or_path", default="smollm2")
    parser.add_argument("--batch", type=int, default=16, help="Texts a step.")
    parser.add_argument("--length", type=int, default=128, help="Tokens a text, half prompt, half answer.")
    options = parser.parse_args()
    if options.part:
        print(json.dumps(measured(options)))
        return
    rows = []
    for part in PARTS:
        told = [
            "--model_name_or_path",
            options.model_name_or_path,
            "--batch",
            str(options.batch),
            "--length",
            str(options.length),
        ]
        done = subprocess.run([sys.executable, __file__, "--part", part, *told], check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    least = rows[0]["peak_mb"]
    print(f"batch {options.batch}, {options.length} tokens, LoRA of rank 16, float32 masters")
    print("| step | peak memory, MB | × SFT | seconds |\n|---|---:|---:|---:|")
    for row in rows:
        print(f"| {row['part']} | {row['peak_mb']:.0f} | {row['peak_mb'] / least:.2f} | {row['seconds']:.1f} |")


def measured(options: argparse.Namespace) -> dict[str, float | str]:
    from finetune.training.plan import has_fast_bf16, keep_freed_memory

    keep_freed_memory()
    import torch

    from finetune.alignment.policy import load_base
    from finetune.methods import attach
    from finetune.models.load import ModelArguments

    torch.manual_seed(0)
    processor, network = load_base(ModelArguments(model_name_or_path=options.model_name_or_path))
    network = attach(network, "lora", None, "CAUSAL_LM").eval()
    words = ["a film that nobody should miss " * options.length for _ in range(options.batch)]
    ids = processor(words, truncation=True, max_length=options.length, return_tensors="pt")["input_ids"]
    started = time.perf_counter()
    if options.part == "sft":
        optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad])
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16()):
            loss = network(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
        loss.backward()
        optimizer.step()
    else:
        ppo_step(network, processor, ids[:, : options.length // 2], options, has_fast_bf16())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"part": options.part, "peak_mb": peak, "seconds": time.perf_counter() - started}


def ppo_step(network: Any, processor: Any, prompts: Any, options: argparse.Namespace, bf16: bool) -> None:
    import torch
    from accelerate import Accelerator
    from torch import nn

    from finetune.alignment.learner import KLArguments, Learner, PPOArguments
    from finetune.alignment.policy import REWARD, Policy, trunk_scores
    from finetune.alignment.rewards import RewardArguments, RewardModel
    from finetune.alignment.rollout import SamplingArguments

    policy = Policy(network)

    def reward(prompts: list[str], answers: list[str]) -> list[float]:
        return [float(len(answer)) for answer in answers]

    if options.part == PARTS[2]:
        config = network.peft_config["default"]
        flags = [(p, p.requires_grad) for p in network.parameters()]
        network.add_adapter(REWARD, config)
        network.set_adapter("default")
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        for parameter, trainable in flags:
            parameter.requires_grad_(trainable)
        head = nn.Linear(network.config.hidden_size, 1, bias=False)
        reward = RewardModel(lambda ids, mask: trunk_scores(policy, head, ids, mask), processor, 1024, RewardArguments())
    learner = Learner(
        policy, processor, reward, Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available()),
        settings=PPOArguments(rollout_batch_size=options.batch, minibatch_size=options.batch,
                              per_device_batch_size=options.batch, epochs=1),
        kl=KLArguments(), sampling=SamplingArguments(max_new_tokens=options.length // 2), bf16=bf16,
    )  # fmt: skip
    learner.learn([processor.decode(row) for row in prompts.tolist()])


if __name__ == "__main__":
    main()
