"""Which way of classifying is worth it: from the commonest class to full fine-tuning, at growing numbers of
labels.

python scripts/ladder.py --dataset_name tickets.csv --budget 20min
python scripts/ladder.py --dataset_name reviews --ways bag_of_words lora full --label_counts 16 64 256

All ways are measured on the same unseen rows; the page says what to take and what more labels would bring.
Started again with the same folder, only what is missing is run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.data.narrowed import UnshownArguments
    from finetune.models.load import ModelArguments
    from prompts.ladder.options import LadderArguments

# asked for at once: no default of these would fit
REQUIRED = ("dataset_name",)


def main(ladder: LadderArguments, data: UnshownArguments, model: ModelArguments) -> None:
    from finetune.training.allocator import keep_freed_memory
    from finetune.training.machine import processes

    keep_freed_memory()
    from prompts.ladder.run import climb

    # refused under a launcher: its ways start processes of their own
    processes("ladder")
    print(climb(ladder, data, model))


if __name__ == "__main__":
    launch(main)
