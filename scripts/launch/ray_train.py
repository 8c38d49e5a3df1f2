"""A verb's script on a Ray cluster by Ray Train, which sets RANK, WORLD_SIZE and MASTER_ADDR in each of its
workers.

python scripts/launch/ray_train.py --workers 16 sft --config scripts/recipes/alpaca_lora.yaml \\
    --output_dir /shared/runs/alpaca

--output_dir must lie on a disk that all workers share. A worker that fails ends the attempt; the next one
goes on from the newest checkpoint. Needs `pip install "ray[train]"`.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path
from typing import Any


def work(config: dict[str, Any]) -> None:
    """One worker: the script as its own process would run it."""
    sys.argv = [config["script"], *config["options"]]
    try:
        runpy.run_path(config["script"], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{Path(config['script']).name} ended with status {end.code}") from end


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=1, help="processes in all")
    parser.add_argument("--cpu", action="store_true", help="workers without a GPU")
    parser.add_argument(
        "--attempts", type=int, default=3, help="how often a run that was stopped is started again"
    )
    parser.add_argument("verb")
    parser.add_argument("options", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    script = Path(__file__).resolve().parents[1] / f"{asked.verb}.py"
    TorchTrainer(
        work,
        train_loop_config={"script": str(script), "options": asked.options},
        torch_config=TorchConfig(backend="gloo" if asked.cpu else "nccl"),
        scaling_config=ScalingConfig(num_workers=asked.workers, use_gpu=not asked.cpu),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=asked.attempts)),
    ).fit()


if __name__ == "__main__":
    main()
