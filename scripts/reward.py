"""Train a reward model: of Bradley and Terry on preference pairs, with accuracy on held-out pairs, its
interval and a calibration plot; with a head for each attribute of an answer; or with a verdict on each
of its steps.

python scripts/reward.py --model_name_or_path smollm2 --dataset_name pairs --output_dir runs/reward
python scripts/reward.py --algorithm attributes --attributes helpfulness verbosity \\
    --model_name_or_path smollm2 --dataset_name answers.jsonl --output_dir runs/attributes
python scripts/reward.py --algorithm process --model_name_or_path smollm2 --dataset_name steps.jsonl \\
    --output_dir runs/process

Rows, as JSON lines or as a table with these columns (others, and files: docs/data_layouts.md):

    {"prompt": "Capital of Norway?", "chosen": "Oslo", "rejected": "Bergen"}
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.alignment.graded_options import AttributeArguments, ProcessArguments
    from finetune.alignment.preferences import PairArguments
    from finetune.alignment.reward_model import RewardTrainingArguments
    from finetune.data.narrowed import AskedArguments, PreferenceArguments
    from finetune.data.streaming import StreamingArguments
    from finetune.methods import MethodArguments
    from finetune.models.load import ModelArguments

# asked for at once: no default of these would fit
REQUIRED = ("model_name_or_path", "dataset_name", "output_dir")


def main(
    data: PreferenceArguments,
    pairs: PairArguments,
    stream: StreamingArguments,
    model: ModelArguments,
    method: MethodArguments,
    training: RewardTrainingArguments,
) -> None:
    from pathlib import Path

    import numpy as np

    from finetune.alignment.pair_input import places_by_set
    from finetune.alignment.policy import load_scorer
    from finetune.alignment.preference_run import train_on_pairs
    from finetune.alignment.reward_model import calibration, pair_margins, plan_reward
    from finetune.artefacts.folder import save_artefact
    from finetune.experiments.frontier_plots import draw_calibration
    from finetune.metrics import bootstrap
    from finetune.models.sharded import is_sharded, make_whole

    # the run is DPO's, with a scalar head and another loss
    trained = train_on_pairs(
        data, pairs, model, method, training,
        verb="reward", load=load_scorer, plan=plan_reward, task="SEQ_CLS", stream=stream,
    )  # fmt: skip
    if trained is None:
        return
    trainer, held_out = trained
    network, processor = trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class
    size, folder = training.per_device_eval_batch_size, Path(training.output_dir)
    # margins are computed once, on the whole model without DDP around it; a model in shards answers all
    # processes together
    if trainer.is_world_process_zero() or is_sharded(network):
        margins = pair_margins(network, processor, held_out, training.max_length, size)
    make_whole(network)
    if trainer.is_world_process_zero():
        figures = {
            "accuracy": float(np.mean(margins > 0)),
            "interval": bootstrap.interval(margins > 0),
            "pairs": len(margins),
            "margin": float(margins.mean()),
            "calibration": calibration(margins),
        }
        # a set that is easy hides one that isn't: each also alone
        for name, places in places_by_set(held_out, len(margins)).items():
            figures[f"{name}_accuracy"] = float(np.mean(margins[places] > 0))
        # no labels: a reward has no classes
        save_artefact(network, processor, folder, None, figures)
        draw_calibration(figures["calibration"], folder / "calibration.png")
        low, high = figures["interval"]
        print(
            f"accuracy on {len(margins)} held-out pairs: {figures['accuracy']:.3f} "
            f"({low:.3f}–{high:.3f})\n{folder}"
        )


def attributes(
    data: AskedArguments, model: ModelArguments, method: MethodArguments, training: AttributeArguments
) -> None:
    from finetune.alignment.graded import train_on_grades

    train_on_grades(data, model, method, training)


def process(
    data: AskedArguments, model: ModelArguments, method: MethodArguments, training: ProcessArguments
) -> None:
    from finetune.alignment.graded import train_on_grades

    train_on_grades(data, model, method, training)


# further mains, each with options of its own, by --algorithm
ALGORITHMS = {"attributes": attributes, "process": process}


if __name__ == "__main__":
    launch(main)
