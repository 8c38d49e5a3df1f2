"""Three ways to sample the same number of answers of the same length: transformers' generate, its continuous
batching, and this project's sampling, which reads a prompt once for all answers to it.

python scripts/benchmarks/rollouts.py --answers 32 --rounds 2

Each way runs in a process of its own, by turns, on the same model in the same type; nothing ends an answer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

WAYS = ("generate", "continuous batching", "ours")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--way", choices=WAYS, help="Measure one in this process (without it: all).")
    parser.add_argument("--model_name_or_path", default="smollm2")
    parser.add_argument("--answers", type=int, default=32, help="Answers in all.")
    parser.add_argument("--group", type=int, default=8, help="Answers a prompt.")
    parser.add_argument("--prompt", type=int, default=128, help="Tokens of a prompt.")
    parser.add_argument("--answer", type=int, default=64, help="Tokens of an answer.")
    parser.add_argument("--rounds", type=int, default=1, help="How often each way is measured.")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measured(options)))
        return
    print(
        f"{options.answers} answers of {options.answer} tokens, {options.group} a prompt of {options.prompt}"
    )
    print("| answers by | tokens/s | peak memory, MB |\n|---|---:|---:|")
    # by turns, so that a machine that slows down slows all ways
    for way in WAYS * options.rounds:
        done = subprocess.run([sys.executable, *sys.argv, "--way", way], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        # libraries log in front of the figures
        row = json.loads(done.stdout.splitlines()[-1])
        print(f"| {way} | {row['tokens_a_second']:.0f} | {row['peak_mb']:.0f} |", flush=True)


def measured(options: argparse.Namespace) -> dict[str, float]:
    """Tokens a second and peak memory of one way, after one pass that isn't measured."""
    from finetune.training.allocator import keep_freed_memory
    from finetune.training.machine import has_fast_bf16, peak_memory_mb

    # before torch makes its first tensor
    keep_freed_memory()
    import torch
    from transformers.utils import logging

    from finetune.alignment.policy import load_start
    from finetune.device import device
    from finetune.models.load import ModelArguments

    logging.set_verbosity_error()
    # continuous batching pages its own kinds of attention alone, and shall not be slowed by a worse one
    kind = "sdpa" if options.way == "continuous batching" else None
    _, network = load_start(
        ModelArguments(model_name_or_path=options.model_name_or_path, attn_implementation=kind)
    )
    network.to(device(), torch.bfloat16 if has_fast_bf16() else torch.float32).eval()
    # any ids will do: time depends on their number alone
    numbers = torch.Generator().manual_seed(0)
    prompts = [
        torch.randint(100, network.config.vocab_size, (options.prompt,), generator=numbers).tolist()
        for _ in range(options.answers // options.group)
    ]
    asked, seconds = [prompt for prompt in prompts for _ in range(options.group)], 0.0
    # the last pass alone counts
    for _ in range(2):
        started = time.perf_counter()
        sample_all(network, asked, options)
        seconds = time.perf_counter() - started
    return {"tokens_a_second": len(asked) * options.answer / seconds, "peak_mb": peak_memory_mb()}


def sample_all(network: Any, prompts: list[list[int]], options: argparse.Namespace) -> None:
    """An answer to each prompt by one of WAYS."""
    import torch
    from transformers import GenerationConfig

    from finetune.alignment.rollout import SamplingArguments, draw_uniforms, pad_left, sample_answers

    if options.way == "ours":
        uniforms = draw_uniforms(0, 0, range(len(prompts)), options.answer)
        # no token has the id -1, so that every answer has its full length
        sample_answers(network, prompts, uniforms, SamplingArguments(max_new_tokens=options.answer), [-1])
        return
    settings = GenerationConfig(
        max_new_tokens=options.answer, do_sample=True, top_k=0, eos_token_id=-1, pad_token_id=0,
        disable_compile=True,
    )  # fmt: skip
    with torch.no_grad():
        if options.way == "generate":
            ids, mask = (one.to(network.device) for one in pad_left(prompts, 0))
            network.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        else:
            network.generate_batch(prompts, generation_config=settings, progress_bar=False)


if __name__ == "__main__":
    main()
