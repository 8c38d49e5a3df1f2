"""Score an artefact of any task on any rows: figures with 95 % intervals; of classifiers also each class,
confusion and a plot.

python scripts/assess.py --artefact runs/x --dataset_name reviews --eval_split test
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.adapters.assess import AssessArguments
    from finetune.data.narrowed import OwnRowsArguments


def main(assess: AssessArguments, data: OwnRowsArguments) -> Path:
    from finetune.training.allocator import keep_freed_memory
    from finetune.training.machine import processes

    keep_freed_memory()
    # refused under a launcher: each process would assess all rows
    processes("assess")
    import json

    from finetune.adapters.assess import assess_task, assessment_folder, rows_as_trained
    from finetune.artefacts.files import write_atomically
    from finetune.artefacts.folder import read_artefact
    from finetune.errors import InputError
    from finetune.reports.plots import draw_assessment
    from finetune.reports.tables import assessment_table

    if assess.artefact is None:
        raise InputError("No artefact; set --artefact to the --output_dir of a training script")
    artefact = read_artefact(assess.artefact)
    rows = rows_as_trained(artefact, data)
    # named by data and split, so that assessments of one artefact stand beside each other
    folder = assessment_folder(assess, rows)
    figures = assess_task(artefact, rows, assess, folder)
    # what they are figures of, since files are moved and mailed
    figures |= {"artefact": assess.artefact, "dataset_name": rows.name, "eval_split": rows.eval_split}
    folder.mkdir(parents=True, exist_ok=True)
    # whole or not at all: a page that reads it meanwhile finds no half file
    write_atomically(folder / "metrics.json", json.dumps(figures, indent=1))
    print(assessment_table(figures))
    print(f"\n{folder / 'metrics.json'}")
    # classifiers alone have one
    if "confusion" in figures:
        draw_assessment(figures, folder / "assessment.png")
        print(folder / "assessment.png")
    return folder


if __name__ == "__main__":
    launch(main)
