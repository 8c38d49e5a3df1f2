"""Ask models by prompts and say what the answers are worth: templates × words or filters × examples, on
unseen rows.

python scripts/prompt.py --prompts sentiment --models smollm2 --dataset_name reviews --max_eval_rows 200 \\
    --output_dir runs/prompts
python scripts/prompt.py --prompts sentiment --dataset_name reviews --check true
python scripts/prompt.py --prompts sentiment --models smollm2 openai:NAME \\
    --base_url http://127.0.0.1:8000/v1
python scripts/prompt.py --suite suite.yaml --output_dir runs/suite
python scripts/prompt.py --rescore runs/prompts --metric macro_f1
accelerate launch --config_file scripts/accelerate/two_cpus.yaml scripts/prompt.py \\
    --config scripts/recipes/imdb_prompts.yaml

Ends with status 1 where a prompt, model or row couldn't be asked; the report names it.

Rows, as JSON lines or as a table with these columns (others, and files: docs/data_layouts.md):

    {"text": "a fine film", "label": "pos"}
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.data.sources import ColumnArguments
    from prompts.scoring.connection import EndpointArguments
    from prompts.scoring.load import ScoringArguments
    from prompts.study.instruct import InstructArguments
    from prompts.study.options import AnswerArguments, StudyArguments, StudyRunArguments
    from prompts.study.tune import TuneArguments


def main(
    study: StudyArguments,
    data: ColumnArguments,
    scoring: ScoringArguments,
    answers: AnswerArguments,
    endpoint: EndpointArguments,
    tuning: TuneArguments,
    instruct: InstructArguments,
    run: StudyRunArguments,
) -> None:
    from finetune.training.allocator import keep_freed_memory
    from finetune.training.machine import join_processes

    keep_freed_memory()
    from prompts.study.again import rescore
    from prompts.study.run import Options
    from prompts.study.suite import run_suite, study_once

    # rows are shared out, so that each process must know of the others
    state = join_processes("prompt")
    options = Options(study, scoring, answers, endpoint, run)
    # answers are in the folder: figures follow from them without a model
    if run.rescore:
        failed = rescore(options, data, tuning, instruct)
    elif run.suite:
        failed = run_suite(options, data, tuning, instruct)
    else:
        failed = study_once(options, data, tuning, instruct)
    # the first to leave would end the others' last messages
    state.wait_for_everyone()
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    launch(main)
