"""Work on trained adapters: check them against a base, add them up, merge them into the base, export them.

python scripts/adapter.py --action check --adapters runs/films
python scripts/adapter.py --action stamp --adapters folder_of_plain_peft --base minilm
python scripts/adapter.py --action import --adapters folder_of_adapterhub --base minilm \\
    --output_dir runs/theirs
python scripts/adapter.py --action merge --adapters runs/films runs/books --weights 0.5 0.5 --head 0 \\
    --output_dir runs/both
python scripts/adapter.py --action into_base --adapters runs/films --output_dir runs/films_whole
python scripts/adapter.py --action int8 --adapters runs/films --output_dir runs/films_onnx \\
    --dataset_name reviews --eval_split test
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.adapters.actions import ActionArguments
    from finetune.adapters.merge import MergeArguments
    from finetune.data.narrowed import OwnRowsArguments


def main(action: ActionArguments, merge: MergeArguments, data: OwnRowsArguments) -> None:
    from finetune.training.allocator import keep_freed_memory
    from finetune.training.machine import processes

    keep_freed_memory()
    # refused under a launcher: every process would write the same files
    processes("adapter")
    from finetune.adapters.actions import act

    for line in act(action, merge, data):
        print(line)


if __name__ == "__main__":
    launch(main)
