"""What many adapters in one batch cost: seconds of the processor for texts of as many adapters as are asked
for, beside the base's own, in one process without a server.

Prints one JSON object a line; rounds take turns, so that what others do on the machine meets all alike.

  python scripts/benchmarks/many_adapters.py --base smollm2 --adapters 0 8 32
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))
ROWS = 32  # what a server's batch holds


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--base", default="smollm2", help="a causal base")
    parser.add_argument(
        "--adapters", type=int, nargs="+", default=[0, 8, 32], help="numbers of adapters; 0 is the base alone"
    )
    parser.add_argument("--rounds", type=int, default=3, help="batches of each number")
    parser.add_argument("--new_tokens", type=int, default=16, help="tokens to write a text")
    return parser.parse_args()


def main() -> None:
    arguments = options()
    from finetune.cli.parser import calm_libraries
    from finetune.training.allocator import keep_freed_memory

    calm_libraries()
    keep_freed_memory()
    from serving import make_adapters

    from finetune.pool import AdapterPool

    most = max(arguments.adapters)
    with tempfile.TemporaryDirectory() as root:
        made = argparse.Namespace(base=arguments.base, adapters=most)
        # no beginnings kept: each batch reads its prompts, as unlike ones would be
        pool = AdapterPool(arguments.base, memory_limit_mb=2**20, prefix_cache_mb=0)
        for index, folder in enumerate(make_adapters(made, Path(root))):
            pool.add(f"a{index}", folder)
    base = sum(p.numel() * p.element_size() for p in pool.network.parameters()) // 2**20
    # once for nothing: the first batch meets cold memory
    once(pool, most, arguments.new_tokens)
    for _ in range(arguments.rounds):
        for count in arguments.adapters:
            size = sum(pool.chain(f"a{index}")[0].size() for index in range(count)) // 2**20
            said = {"adapters": count, "base_mb": base, "adapters_mb": size}
            print(json.dumps(said | once(pool, count, arguments.new_tokens)), flush=True)


def once(pool: Any, count: int, most: int) -> dict[str, float]:
    """Seconds of the processor for one batch: its prompts, a step, and the whole."""
    from serving import PROMPTS

    from finetune.pool.sampling import Sampling

    # numbered: equal texts of one adapter are read once
    texts = [f"{PROMPTS[index % len(PROMPTS)]} {index}" for index in range(ROWS)]
    names = [f"a{index % count}" if count else None for index in range(ROWS)]
    rows, writing = pool.rows(texts, names, Sampling(most)), pool.writing()
    started = time.process_time()
    writing.join(rows)
    read, steps = time.process_time(), 0
    while writing.rows:
        writing.step()
        steps += 1
    ended = time.process_time()
    step = round((ended - read) / max(steps, 1), 4)
    return {"prompts_s": round(read - started, 2), "step_s": step, "whole_s": round(ended - started, 2)}


if __name__ == "__main__":
    main()
