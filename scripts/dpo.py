"""Align a model on preferences by DPO or a relative; after supervised fine-tuning the reference is the tuned
model.

python scripts/dpo.py --model_name_or_path runs/sft --dataset_name pairs --beta 0.1 --output_dir runs/dpo
python scripts/dpo.py --algorithm kto --model_name_or_path smollm2 --dataset_name answers.jsonl \\
    --output_dir runs/kto
python scripts/dpo.py --algorithm simpo --simpo_gamma 0.5 --model_name_or_path smollm2 --dataset_name pairs \\
    --output_dir runs/simpo

Rows, as JSON lines or as a table with these columns (others, and files: docs/data_layouts.md):

    pairs  {"prompt": "Capital of Norway?", "chosen": "Oslo", "rejected": "Bergen"}
    kto    {"prompt": "Capital of Norway?", "completion": "Oslo", "label": true}
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.parser import launch

# for the annotations alone: `--help` reads them as text, without torch and TRL
if TYPE_CHECKING:
    from finetune.alignment.dpo import DPOTrainingArguments
    from finetune.alignment.pair_options import (
        CPOTrainingArguments,
        KTOTrainingArguments,
        ORPOTrainingArguments,
    )
    from finetune.alignment.preferences import PairArguments
    from finetune.data.narrowed import PreferenceArguments
    from finetune.data.streaming import StreamingArguments
    from finetune.methods import MethodArguments
    from finetune.models.load import ModelArguments
    from finetune.privacy.options import PrivacyArguments

# asked for at once: no default of these would fit
REQUIRED = ("model_name_or_path", "dataset_name", "output_dir")


def main(
    data: PreferenceArguments,
    pairs: PairArguments,
    stream: StreamingArguments,
    model: ModelArguments,
    method: MethodArguments,
    privacy: PrivacyArguments,
    training: DPOTrainingArguments,
) -> None:
    from finetune.alignment.preference_run import align_on_pairs

    align_on_pairs(data, pairs, model, method, training, stream=stream, privacy=privacy)


# one main an algorithm, since a launcher shows the options of the one that was asked for
def kto(
    data: PreferenceArguments,
    pairs: PairArguments,
    stream: StreamingArguments,
    model: ModelArguments,
    method: MethodArguments,
    training: KTOTrainingArguments,
) -> None:
    # inside, as in every script: `--help` shall answer before torch is imported
    from finetune.alignment.preference_run import align_on_pairs

    align_on_pairs(data, pairs, model, method, training, stream=stream)


def orpo(
    data: PreferenceArguments,
    pairs: PairArguments,
    stream: StreamingArguments,
    model: ModelArguments,
    method: MethodArguments,
    training: ORPOTrainingArguments,
) -> None:
    from finetune.alignment.preference_run import align_on_pairs

    align_on_pairs(data, pairs, model, method, training, stream=stream)


def cpo(
    data: PreferenceArguments,
    pairs: PairArguments,
    stream: StreamingArguments,
    model: ModelArguments,
    method: MethodArguments,
    training: CPOTrainingArguments,
) -> None:
    from finetune.alignment.preference_run import align_on_pairs

    align_on_pairs(data, pairs, model, method, training, stream=stream)


# further mains, each with options of its own, by --algorithm; old recipes say it by --loss_type
ALGORITHMS = {"kto": kto, "apo_zero_unpaired": kto, "orpo": orpo, "cpo": cpo, "simpo": cpo, "alphapo": cpo}


if __name__ == "__main__":
    launch(main)
