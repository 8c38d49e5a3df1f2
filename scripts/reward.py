"""Train a Bradley–Terry reward model on preference pairs; accuracy on held-out pairs with its interval, and a
calibration plot.

python scripts/reward.py --model_name_or_path smollm2 --dataset_name pairs --output_dir runs/reward
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.alignment.preferences import PairArguments
    from finetune.alignment.reward_model import RewardTrainingArguments
    from finetune.data.sources import DataArguments
    from finetune.methods import MethodArguments
    from finetune.models.load import ModelArguments


def main(
    data: DataArguments,
    pairs: PairArguments,
    model: ModelArguments,
    method: MethodArguments,
    training: RewardTrainingArguments,
) -> None:
    from finetune.training.allocator import keep_freed_memory
    from finetune.training.machine import processes

    keep_freed_memory()
    from pathlib import Path

    import numpy as np
    from transformers import set_seed

    from finetune.alignment.policy import load_scorer
    from finetune.alignment.preferences import pairs_fingerprint, read_pairs, show_pairs
    from finetune.alignment.reward_model import calibration, make_reward_trainer, pair_margins
    from finetune.artefacts.folder import resolved_options, save_artefact
    from finetune.artefacts.runs import open_run
    from finetune.experiments.frontier_plots import draw_calibration
    from finetune.methods import attach, find_method
    from finetune.metrics import bootstrap
    from finetune.training.options import settled

    processes("reward")
    set_seed(training.seed)  # the head's and the adapter's first weights
    training = settled(training, find_method(method.method).learning_rate)
    with training.main_process_first(desc="reading pairs"):
        processor, network = load_scorer(model)
        train, held_out = read_pairs(data, pairs, processor, training.max_length)
    if show_pairs(train, held_out, processor, data):
        return
    network = attach(network, method.method, method.method_kwargs, "SEQ_CLS")
    options = resolved_options(data, pairs, model, method, training)
    checkpoint = open_run(options, pairs_fingerprint(train), network)
    trainer = make_reward_trainer(network, processor, training, train, held_out)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    if trainer.is_world_process_zero():
        network = trainer.accelerator.unwrap_model(trainer.model)
        margins = pair_margins(
            network, processor, held_out, training.max_length, training.per_device_eval_batch_size
        )
        figures = {"accuracy": float(np.mean(margins > 0)), "interval": bootstrap.interval(margins > 0),
                   "pairs": len(margins),
                   "margin": float(margins.mean()), "calibration": calibration(margins)}  # fmt: skip
        save_artefact(network, processor, Path(training.output_dir), None, figures)
        draw_calibration(figures["calibration"], Path(training.output_dir) / "calibration.png")
        low, high = figures["interval"]
        print(
            f"accuracy on {len(margins)} held-out pairs: {figures['accuracy']:.3f} "
            f"({low:.3f}–{high:.3f})\n{training.output_dir}"
        )


if __name__ == "__main__":
    launch(main)
