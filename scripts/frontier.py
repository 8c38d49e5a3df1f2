"""Reward against KL on film reviews: DPO, PPO, best-of-n and preferred fine-tuning from one tuned start;
resumable.

python scripts/frontier.py --size smoke --dataset_name imdb --reward classifier:runs/imdb_lora \\
    --output_dir runs/frontier
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.alignment.rewards import RewardArguments
    from finetune.data.sources import DataArguments
    from finetune.experiments.frontier_options import FrontierArguments
    from finetune.models.load import ModelArguments


def main(
    frontier: FrontierArguments, data: DataArguments, model: ModelArguments, reward: RewardArguments
) -> None:
    from finetune.training.allocator import keep_freed_memory
    from finetune.training.machine import processes

    keep_freed_memory()
    from pathlib import Path

    from finetune.artefacts.files import write_atomically
    from finetune.data.sources import load_rows
    from finetune.experiments.frontier import Frontier, run_points
    from finetune.experiments.frontier_plots import draw_frontier
    from finetune.reports.tables import comma_separated, markdown

    processes("frontier")
    experiment = Frontier(frontier, model, reward, data, load_rows(data))
    # the tuned start and its reference, which all methods share
    experiment.prepare()
    names = ("method", "setting", "steps", "kl", "reward", "error")
    # a run's further entries stay in its folder; the curve needs these
    points = [{name: point[name] for name in names} for point in run_points(experiment)]
    folder = Path(str(frontier.output_dir))
    write_atomically(folder / "frontier.csv", comma_separated(points))
    draw_frontier(points, folder / "frontier.png")
    print(
        markdown(
            [{k: f"{v:.3f}" if isinstance(v, float) else v for k, v in point.items()} for point in points]
        )
    )
    print(f"\n{folder / 'frontier.csv'}\n{folder / 'frontier.png'}")


if __name__ == "__main__":
    launch(main)
