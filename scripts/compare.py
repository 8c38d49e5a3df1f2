"""Train several methods on one task and show what each costs and gives: a page, Markdown, CSV and PNG.

python scripts/compare.py --methods full lora bottleneck --dataset_name reviews --num_train_epochs 3 \\
    --output_dir runs/compare

Each method runs in a process of its own, so that peak memory is its own. Finished methods are not run again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.data.batching import BatchingArguments
    from finetune.data.narrowed import UnshownArguments
    from finetune.models.load import ModelArguments
    from finetune.reports.compare import CompareArguments
    from finetune.tasks.options import TaskArguments
    from finetune.training.options import TrainingArguments


def main(
    compare: CompareArguments,
    task: TaskArguments,
    data: UnshownArguments,
    model: ModelArguments,
    batching: BatchingArguments,
    training: TrainingArguments,
) -> None:
    import subprocess
    import sys
    from pathlib import Path

    from finetune.adapters.assess import assess_task
    from finetune.artefacts.folder import read_artefact, resolved_options
    from finetune.errors import InputError
    from finetune.methods import find_method
    from finetune.reports.compare import (
        comparison_row,
        comparison_sections,
        for_people,
        read_metrics,
        write_recipe,
    )
    from finetune.reports.page import sections_page
    from finetune.reports.plots import draw_comparison
    from finetune.reports.tables import comma_separated, markdown
    from finetune.tasks.table import find_task

    # all names before the first run, which may take an hour
    for method in compare.methods:
        find_method(method)
    root = Path(training.output_dir)
    root.mkdir(parents=True, exist_ok=True)
    table, row = [], find_task(task.task)
    # the figure that tells better from worse, where it has an interval
    measure = row.best if row.best in row.intervals else next(iter(row.intervals))
    for method in compare.methods:
        run, recipe = root / method, root / f"{method}.yaml"
        # the shared options, over them the folder, over them what is the method's alone
        options = (
            resolved_options(task, data, model, batching, training)
            | {"output_dir": str(run)}
            | compare.of_method(method)
        )
        # a finished run's recipe must be the same as now, or figures of two settings stood side by side
        write_recipe(recipe, options, finished=read_metrics(run) is not None)
        if read_metrics(run) is None:
            print(f"── {method}", flush=True)
            # a process of its own: peak memory is a process's, and never goes down
            script = Path(__file__).with_name("train.py")
            if subprocess.run([sys.executable, str(script), "--config", str(recipe)]).returncode:
                raise InputError(
                    f"The run of '{method}' stopped, see above; the finished ones are kept in {root}"
                )
        # on the rows of --eval_split, the same for all, whatever each run kept for itself
        assessed = assess_task(read_artefact(run), data)
        table.append(comparison_row(method, read_metrics(run) or {}, assessed, measure))
    text = markdown([for_people(row, measure) for row in table])
    (root / "comparison.md").write_text(text + "\n", encoding="utf-8")
    (root / "comparison.csv").write_text(comma_separated(table), encoding="utf-8")
    draw_comparison(table, root / "comparison.png", measure)
    page = sections_page(f"{len(table)} methods on {data.name}", "", comparison_sections(table, measure))
    (root / "comparison.html").write_text(page, encoding="utf-8")
    print(f"\n{text}\n\n{root / 'comparison.md'}, .html, .csv and .png")


if __name__ == "__main__":
    launch(main)
