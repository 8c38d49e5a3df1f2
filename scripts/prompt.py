"""Ask models by prompts and say what the answers are worth: templates × label words × examples ×
calibrations, on unseen rows.

python scripts/prompt.py --prompts sentiment --models smollm2 --dataset_name reviews --max_eval_rows 200
--output_dir runs/prompts python scripts/prompt.py --prompts sentiment --dataset_name reviews --check true
accelerate launch --config_file scripts/accelerate/two_cpus.yaml scripts/prompt.py --config
scripts/recipes/imdb_prompts.yaml
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.data.sources import DataArguments
    from prompts.scoring.load import ScoringArguments
    from prompts.study.options import StudyArguments
    from prompts.study.tune import TuneArguments


def main(
    study: StudyArguments, data: DataArguments, scoring: ScoringArguments, tuning: TuneArguments
) -> None:
    from finetune.training.allocator import keep_freed_memory
    from finetune.training.machine import join_processes

    keep_freed_memory()
    from prompts.study.run import check, generate_all, keep_options, read_parts, study_prompts, tune_first

    state = join_processes()
    entry, prompts, parts, labels = read_parts(study, data, tuning)
    if state.is_main_process and not study.check:
        keep_options(Path(study.output_dir), study, data, scoring, tuning)
    if tuning.tune:
        study.models.append(tune_first(prompts[0], parts, study, tuning))
    if study.check:
        check(entry, prompts, parts, study, scoring)
    elif entry.targets:
        generate_all(entry, parts, study, scoring)
    else:
        study_prompts(entry, prompts, parts, labels, study, scoring)
    state.wait_for_everyone()


if __name__ == "__main__":
    launch(main)
